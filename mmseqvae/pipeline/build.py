"""A model from what its data look like and a configuration, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from mmseqvae.config import ModelConfig
from mmseqvae.data import FrontEnd, SequenceDataset
from mmseqvae.data.dataset import to_device
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.likelihoods import FRAME_LIKELIHOODS
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.features.arrays import FrontEnd as FrameFrontEnd
from mmseqvae.fusion import FUSIONS
from mmseqvae.modality import Covariate, Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.priors.registry import PRIORS
from mmseqvae.priors.vamp import VampPrior
from mmseqvae.tokenizers.categories import Category, Labels
from mmseqvae.tokenizers.characters import Tokenizer

COVARIATE_WIDTH = 16


@dataclass(frozen=True)
class CorpusInfo:
    """What a model is built from: the same when it is trained and whenever its run is loaded.

    front_ends: {modality or covariate: tokenizer, log-mels or arrays}. longest: {modality: most steps that a decoder
    must be able to write}, with some room beyond the longest training sequence; labels have none.
    """

    front_ends: dict[str, FrontEnd]
    longest: dict[str, int]

    def vocabulary(self, name: str) -> int:
        """How many tokens a modality of tokens has, or values a covariate."""
        return cast(Tokenizer | Category, self._front_end(name, Tokenizer | Category, "tokens")).vocabulary_size

    def end(self, name: str) -> int:
        """The token that ends a sequence."""
        return cast(Tokenizer, self._front_end(name, Tokenizer, "tokens")).end_id

    def channels(self, name: str) -> int:
        """How many channels a modality of frames has."""
        return cast(FrameFrontEnd, self._front_end(name, FrameFrontEnd, "frames")).channels

    def max_steps(self, name: str) -> int:
        """The most steps that a decoder must be able to write."""
        return Labels.STEPS if isinstance(self.front_ends.get(name), Labels) else self.longest[name]

    def _front_end(self, name: str, kind: Any, called: str) -> FrontEnd:
        front_end = self.front_ends.get(name)
        if not isinstance(front_end, kind):
            raise ValueError(
                f"{name} is no column of {called} in this corpus; its columns: {', '.join(self.front_ends)}"
            )
        return front_end


ModelSource = ModelConfig | MultimodalVAE | Callable[[CorpusInfo], MultimodalVAE]


def model_from(source: ModelSource, info: CorpusInfo) -> MultimodalVAE:
    """The model that a configuration, a function of the user's or the model itself stands for.

    Raises ValueError where it does not fit the corpus: columns that it does not know, or reads and writes otherwise.
    """
    if isinstance(source, ModelConfig):
        return build(info.front_ends, info.longest, source)
    model = source if isinstance(source, MultimodalVAE) else source(info)
    if not isinstance(model, MultimodalVAE):
        raise ValueError(
            f"model must be a ModelConfig, a MultimodalVAE or a function that returns one, got {model!r:.80}"
        )
    parts = model.modalities
    covariates, views = set(model.covariates), {v for name in parts for v in (parts.reads(name), parts.writes(name))}
    known = {name for name, end in info.front_ends.items() if isinstance(end, Category)}
    if wrong := sorted((views | covariates) - info.front_ends.keys()):
        raise ValueError(
            f"the model knows {', '.join(wrong)}, which the corpus lacks; it has {', '.join(info.front_ends)}"
        )
    if left := [name for name in info.front_ends if name not in views | covariates]:
        kept = ", ".join(repr(name) for name in info.front_ends if name not in left)
        raise ValueError(f"the model does not know the columns {', '.join(left)}: train on corpus.only({kept})")
    if wrong := sorted((known & views) | (covariates - known)):
        raise ValueError(
            f"{', '.join(wrong)}: a covariate in the model and a modality in the corpus, or the other way round"
        )
    for name in model.writable:
        view = parts.writes(name)
        kind = "tokens" if isinstance(info.front_ends[view], Tokenizer) else "frames"
        if kind != ("tokens" if parts.writes_tokens(name) else "frames"):
            raise ValueError(f"the decoder of {name} writes {parts.decoder(name).writes}, but {view} holds {kind}")
    return model


def build(front_ends: Mapping[str, FrontEnd], longest: Mapping[str, int], config: ModelConfig) -> MultimodalVAE:
    """A new model with one modality a front end, or one covariate; `longest` is the hard limit of a modality's steps.

    Labels need none. A VampPrior still needs its pseudo-inputs (`start_prior`). Raises ValueError for an unknown
    fusion, prior or likelihood, and where bernoulli frames are not of 0 and 1.
    """
    check_names(config)
    covariates = {
        name: Covariate(front_end.vocabulary_size, COVARIATE_WIDTH)
        for name, front_end in front_ends.items()
        if isinstance(front_end, Category)
    }
    width = COVARIATE_WIDTH * len(covariates)
    modalities = {}
    for name, front_end in front_ends.items():
        if isinstance(front_end, Tokenizer):
            size, end, label = front_end.vocabulary_size, front_end.end_id, isinstance(front_end, Labels)
            limit = Labels.STEPS if label else longest[name]
            never_first = (end, front_end.unknown_id) if label else ()
            modalities[name] = token_modality(size, end, limit, config, width, never_first)
        elif not isinstance(front_end, Category):
            if config.likelihood == "bernoulli" and not getattr(front_end, "binary", False):
                raise ValueError(f"bernoulli is a likelihood of frames of 0 and 1, which those of {name} are not")
            modalities[name] = frame_modality(front_end.channels, longest[name], config, width)
    latent = config.latent + config.private * len(modalities)
    fusion = FUSIONS[config.fusion](len(modalities), latent)
    return MultimodalVAE(modalities, fusion, PRIORS[config.prior](config.prior_components, latent), covariates)


def check_names(config: ModelConfig) -> None:
    """Raise ValueError for an unknown fusion, prior or likelihood."""
    for name, known in (("fusion", FUSIONS), ("prior", PRIORS), ("likelihood", FRAME_LIKELIHOODS)):
        if getattr(config, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}")


def start_prior(model: MultimodalVAE, dataset: SequenceDataset, seed: int = 0) -> None:
    """Give a VampPrior its pseudo-inputs, items of the training set drawn without replacement; other priors need none.

    Raises ValueError where the data set has fewer items than the prior has components.
    """
    if isinstance(model.learnt, VampPrior):
        if len(dataset) < model.learnt.components:
            raise ValueError(f"a VampPrior of {model.learnt.components} pseudo-inputs needs as many training items, "
                             f"got {len(dataset)}: lower prior_components")  # fmt: skip
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[: model.learnt.components]
        batch = to_device(dataset.__getitems__(rows.tolist()), model.device)
        read = {model.modality(name).reads or name for name in model.readable}
        model.learnt.start({view: x for view, x in batch.items() if view in read})


def token_modality(
    vocabulary: int, end: int, longest: int, config: ModelConfig, conditions: int = 0, never_first: tuple[int, ...] = ()
) -> Modality:
    """Encoder and decoder of tokens 0..vocabulary-1 that end with `end`; `longest` counts it."""
    return Modality(
        TokenEncoder(
            vocabulary,
            config.latent + config.private,
            embedding=config.token_embedding,
            hidden=config.token_encoder,
            **_recurrent(config),
            bidirectional=config.bidirectional,
            pooling=config.pooling,
            mean_scale=config.mean_scale,
        ),
        TokenDecoder(
            vocabulary,
            config.latent + config.private + conditions,
            end=end,
            max_steps=longest,
            embedding=config.token_embedding,
            hidden=config.token_decoder,
            **_recurrent(config),
            input_dropout=config.input_dropout,
            never_first=never_first,
        ),
        private=config.private,
        conditions=conditions,
    )


def frame_modality(channels: int, longest: int, config: ModelConfig, conditions: int = 0) -> Modality:
    """Encoder and decoder of frames [T, channels], at most `longest` of them."""
    if config.likelihood not in FRAME_LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(FRAME_LIKELIHOODS)}, got {config.likelihood!r}")
    scale = {} if config.likelihood == "bernoulli" else {"scale_kind": config.scale, "floor": config.scale_floor}
    return Modality(
        FrameEncoder(
            channels,
            config.latent + config.private,
            hidden=config.frame_encoder,
            **_recurrent(config),
            bidirectional=config.bidirectional,
            pooling=config.pooling,
            mean_scale=config.mean_scale,
            reduction=config.reduction,
        ),
        FrameDecoder(
            FRAME_LIKELIHOODS[config.likelihood](channels, **scale),
            config.latent + config.private + conditions,
            max_steps=longest,
            reduction=config.reduction,
            inputs=config.frame_inputs,
            hidden=config.frame_decoder,
            **_recurrent(config),
            input_dropout=config.input_dropout,
            input_noise=config.input_noise,
        ),
        private=config.private,
        conditions=conditions,
    )


def _recurrent(config: ModelConfig) -> dict[str, Any]:
    return {"kind": config.cell, "layers": config.layers, "dropout": config.dropout}
