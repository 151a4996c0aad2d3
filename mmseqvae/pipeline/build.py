"""A model from what its data look like and a configuration, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from mmseqvae.config import ModalityConfig, ModelConfig
from mmseqvae.config.model import DEFAULTS, Kind
from mmseqvae.data import FrontEnd, SequenceDataset
from mmseqvae.data.dataset import to_device
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.likelihoods import FRAME_LIKELIHOODS, SCALES
from mmseqvae.encoders import POOLINGS, FrameEncoder, TokenEncoder
from mmseqvae.features.arrays import FrontEnd as FrameFrontEnd
from mmseqvae.fusion import FUSIONS
from mmseqvae.modality import Covariate, Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.priors.registry import PRIORS
from mmseqvae.rnn.layer import CELLS
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
    fusion, prior or likelihood, where settings of a modality do not fit it, and where bernoulli frames are not of 0 and
    1.
    """
    check_names(config)
    check_modalities(front_ends, config)
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
            modalities[name] = token_modality(size, end, limit, config, width, never_first, name=name)
        elif not isinstance(front_end, Category):
            modalities[name] = frame_modality(front_end.channels, longest[name], config, width, name=name)
    latent = config.latent + config.private * len(modalities)
    fusion = FUSIONS[config.fusion](len(modalities), latent)
    return MultimodalVAE(modalities, fusion, PRIORS[config.prior](config.prior_components, latent), covariates)


def check_names(config: ModelConfig) -> None:
    """Raise ValueError for a fusion, a prior, a likelihood and the like that is not known."""
    parts: dict[str, Collection[str]] = {
        "cell": CELLS,
        "pooling": POOLINGS,
        "likelihood": FRAME_LIKELIHOODS,
        "scale": SCALES,
    }
    known_names: dict[str, Collection[str]] = {"fusion": FUSIONS, "prior": PRIORS, **parts}
    for setting, known in known_names.items():
        told = {setting: getattr(config, setting)}
        if setting in parts:
            told |= {f"modalities.{name}.{setting}": own.given.get(setting) for name, own in config.modalities.items()}
        for where, value in told.items():
            if value is not None and value not in known:
                raise ValueError(f"{where} must be one of {', '.join(known)}, got {value!r}")


def check_modalities(front_ends: Mapping[str, FrontEnd], config: ModelConfig) -> None:
    """Raise ValueError where settings of a modality do not fit what it holds."""
    kinds: dict[str, Kind] = {
        name: "tokens" if isinstance(front_end, Tokenizer) else "frames"
        for name, front_end in front_ends.items()
        if not isinstance(front_end, Category)
    }
    for name, own in config.modalities.items():
        if name not in kinds:
            raise ValueError(f"model.modalities names {name}, which is no modality here; there are {', '.join(kinds)}")
        allowed = {*DEFAULTS[kinds[name]], "hidden"}
        if wrong := [setting for setting in own.given if setting not in allowed]:
            raise ValueError(
                f"model.modalities.{name}.{wrong[0]} does not go with {kinds[name]}, which {name} holds; what does: "
                f"{', '.join(sorted(allowed))}"
            )
    for name, kind in kinds.items():
        if config.of(kind, name).get("likelihood") == "bernoulli":
            if not getattr(front_ends[name], "binary", False):
                raise ValueError(f"bernoulli is a likelihood of frames of 0 and 1, which those of {name} are not")
            if {"scale", "scale_floor"} & config.modalities.get(name, ModalityConfig()).given.keys():
                raise ValueError(f"model.modalities.{name}: bernoulli has no scale: leave scale and scale_floor out")


def start_prior(model: MultimodalVAE, dataset: SequenceDataset, seed: int = 0) -> None:
    """Give a learnt prior the items that it starts from, drawn from the training set without replacement, if it asks.

    Raises ValueError where the data set has fewer items than the prior needs.
    """
    if (prior := model.learnt) is None or not prior.items_needed:
        return
    if len(dataset) < prior.items_needed:
        raise ValueError(
            f"the prior, {prior}, needs as many training items, got {len(dataset)}: lower prior_components"
        )
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[: prior.items_needed]
    batch = to_device(dataset.__getitems__(rows.tolist()), model.device)
    read = {model.modality(name).reads or name for name in model.readable}
    prior.start({view: x for view, x in batch.items() if view in read})


def token_modality(
    vocabulary: int, end: int, longest: int, config: ModelConfig, conditions: int = 0,
    never_first: tuple[int, ...] = (), name: str = "",
) -> Modality:  # fmt: skip
    """Encoder and decoder of tokens 0..vocabulary-1 that end with `end`; `longest` counts it."""
    part, latent = config.of("tokens", name), config.latent + config.private
    shared = {"embedding": part["embedding"], **_recurrent(part)}
    encoder = TokenEncoder(vocabulary, latent, **shared, **_encoder(part))
    decoder = TokenDecoder(
        vocabulary, latent + conditions, end=end, max_steps=longest, hidden=part["decoder_hidden"], **shared,
        input_dropout=part["input_dropout"], never_first=never_first,
    )  # fmt: skip
    return Modality(encoder, decoder, private=config.private, conditions=conditions)


def frame_modality(channels: int, longest: int, config: ModelConfig, conditions: int = 0, name: str = "") -> Modality:
    """Encoder and decoder of frames [T, channels], at most `longest` of them."""
    part, latent = config.of("frames", name), config.latent + config.private
    scale = {} if part["likelihood"] == "bernoulli" else {"scale_kind": part["scale"], "floor": part["scale_floor"]}
    shared = {"reduction": part["reduction"], **_recurrent(part)}
    encoder = FrameEncoder(channels, latent, **shared, **_encoder(part))
    decoder = FrameDecoder(
        FRAME_LIKELIHOODS[part["likelihood"]](channels, **scale), latent + conditions, max_steps=longest,
        inputs=part["inputs"], hidden=part["decoder_hidden"], **shared, input_dropout=part["input_dropout"],
        input_noise=part["input_noise"],
    )  # fmt: skip
    return Modality(encoder, decoder, private=config.private, conditions=conditions)


def _recurrent(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": part["cell"], "layers": part["layers"], "dropout": part["dropout"]}


def _encoder(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden": part["encoder_hidden"], "bidirectional": part["bidirectional"], "pooling": part["pooling"],
        "mean_scale": part["mean_scale"],
    }  # fmt: skip
