"""A modality is an encoder that reads one view of it and a decoder that writes one; either may be absent."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmseqvae.config import ModelConfig
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.likelihoods import FRAME_LIKELIHOODS

Encoder = TokenEncoder | FrameEncoder
Decoder = TokenDecoder | FrameDecoder


class Modality(nn.Module):
    """One modality of a model.

    reads, writes: the batch keys of the view that the encoder reads and of the view that the decoder is scored on;
    by default both are the modality's own name. Encode speech features and write log-mels with
    `Modality(encoder, decoder, reads="features", writes="audio")`. Raises ValueError with neither part, or where the
    two disagree about the size of the latent. Any encoder `Sequence -> Gaussian` with an attribute `latent` will do.
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: Decoder | None = None,
        *,
        reads: str | None = None,
        writes: str | None = None,
    ) -> None:
        super().__init__()
        sizes: set[Any] = {part.latent for part in (encoder, decoder) if part is not None}
        if not sizes:
            raise ValueError("a modality needs an encoder, a decoder or both")
        if len(sizes) > 1:
            raise ValueError(f"the encoder and the decoder of a modality disagree about the latent: {sorted(sizes)}")
        self.latent: int = sizes.pop()
        self.encoder, self.decoder = encoder, decoder
        self.reads, self.writes = reads, writes


def tokens(vocabulary: int, end: int, longest: int, config: ModelConfig) -> Modality:
    """Encoder and decoder of tokens 0..vocabulary-1 that end with `end`; `longest` counts it."""
    return Modality(
        TokenEncoder(
            vocabulary,
            config.latent,
            embedding=config.token_embedding,
            hidden=config.token_encoder,
            **_recurrent(config),
            bidirectional=config.bidirectional,
            pooling=config.pooling,
        ),
        TokenDecoder(
            vocabulary,
            config.latent,
            end=end,
            max_steps=longest,
            embedding=config.token_embedding,
            hidden=config.token_decoder,
            **_recurrent(config),
            input_dropout=config.input_dropout,
        ),
    )


def frames(channels: int, longest: int, config: ModelConfig) -> Modality:
    """Encoder and decoder of frames [T, channels], at most `longest` of them."""
    if config.likelihood not in FRAME_LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(FRAME_LIKELIHOODS)}, got {config.likelihood!r}")
    scale = {} if config.likelihood == "bernoulli" else {"scale_kind": config.scale, "floor": config.scale_floor}
    return Modality(
        FrameEncoder(
            channels,
            config.latent,
            hidden=config.frame_encoder,
            **_recurrent(config),
            bidirectional=config.bidirectional,
            pooling=config.pooling,
            reduction=config.reduction,
        ),
        FrameDecoder(
            FRAME_LIKELIHOODS[config.likelihood](channels, **scale),
            config.latent,
            max_steps=longest,
            reduction=config.reduction,
            inputs=config.frame_inputs,
            hidden=config.frame_decoder,
            **_recurrent(config),
            input_dropout=config.input_dropout,
            input_noise=config.input_noise,
        ),
    )


def _recurrent(config: ModelConfig) -> dict[str, Any]:
    return {"kind": config.rnn, "layers": config.layers, "dropout": config.dropout}
