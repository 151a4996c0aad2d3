"""A modality is an encoder that reads one view of it and a decoder that writes one; either may be absent."""

from __future__ import annotations

from torch import nn

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.encoders import FrameEncoder, TokenEncoder

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
        sizes = {part.latent for part in (encoder, decoder) if part is not None}
        if not sizes:
            raise ValueError("a modality needs an encoder, a decoder or both")
        if len(sizes) > 1:
            raise ValueError(f"the encoder and the decoder of a modality disagree about the latent: {sorted(sizes)}")
        self.latent = sizes.pop()
        self.encoder, self.decoder = encoder, decoder
        self.reads, self.writes = reads, writes
