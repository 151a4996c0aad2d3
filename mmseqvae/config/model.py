"""Configuration of the networks: what all modalities share, and what a single one has of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mmseqvae.config.range_checks import at_least, share
from mmseqvae.config.renamed_options import accepts_old_names

Kind = Literal["tokens", "frames"]

LEAST = {
    0: ("private", "mean_scale", "dropout", "scale_floor", "input_dropout", "input_noise"),
    1: ("latent", "prior_components", "layers", "reduction", "max_steps_factor", "token_embedding", "token_encoder",
        "token_decoder", "frame_encoder", "frame_inputs", "frame_decoder", "embedding", "inputs", "hidden",
        "encoder_hidden", "decoder_hidden"),
}  # fmt: skip


@dataclass(frozen=True)
class ModalityConfig:
    """The networks of one modality where they differ from `ModelConfig`, in its `modalities`; None is as there.

    Raises:
        ValueError: from `ModelConfig`, for numbers out of their range.
    """

    likelihood: str | None = None
    """Of frames: "normal", "laplace", or "bernoulli" for frames of 0 and 1."""
    scale: str | None = None
    """Scale of the likelihood of frames: "fixed" at 1, "learnt" per channel or "predicted" per step."""
    scale_floor: float | None = None
    """Least scale of the likelihood of frames, in standard deviations of the data."""
    embedding: int | None = None
    """Of tokens: size of their embeddings."""
    inputs: int | None = None
    """Of frames: size of the layer through which the decoder reads past frames."""
    hidden: int | None = None
    """Units of the recurrent layers of encoder and decoder, where the two below say nothing else."""
    encoder_hidden: int | None = None
    """Units of the encoder's recurrent layers."""
    decoder_hidden: int | None = None
    """Units of the decoder's recurrent layers."""
    cell: str | None = None
    """Recurrent cell: "tanh", "gru" or "lstm"."""
    layers: int | None = None
    """Recurrent layers of encoder and decoder each."""
    bidirectional: bool | None = None
    """Whether the encoder reads in both directions."""
    pooling: str | None = None
    """What of the encoder's steps becomes the posterior: the "last" one, their "mean" or their "max"."""
    dropout: float | None = None
    """Share of units that are dropped between layers and before last layers."""
    reduction: int | None = None
    """Frames that are read and written in one recurrent step."""
    input_dropout: float | None = None
    """Share of the decoder's past that is hidden in training, so that the latent is used."""
    input_noise: float | None = None
    """Noise on the past frames that the decoder reads in training, in standard deviations of the data."""
    mean_scale: float | None = None
    """Spread of batch-normalised posterior means, which cannot collapse (0.6 or so); 0 to learn them freely."""

    @property
    def given(self) -> dict[str, str | int | float | bool]:
        """The settings that are not left to `ModelConfig`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@accepts_old_names("model")
@dataclass(frozen=True)
class ModelConfig:
    """The networks that `mmseqvae.pipeline.build` makes for the modalities of a corpus.

    Raises:
        ValueError: for numbers out of their range.
    """

    latent: int = 32
    """Dimensions of the latent that all modalities share."""
    private: int = 0
    """Further dimensions of each modality, which no other one reads or writes."""
    fusion: str = "poe"
    """How what the encoders believe becomes one posterior: "poe", "poe-without-base", "generalised-poe", "moe",
    "mopoe", "joint" or "attention"; see `mmseqvae.fusion`."""
    prior: str = "mixture"
    """What the KL is taken to in training: "standard" for N(0, I), or, learnt with the model, a "mixture" of Gaussians
    or "vamp", the posteriors of pseudo-inputs; see `mmseqvae.priors`."""
    prior_components: int = 100
    """Gaussians or pseudo-inputs of a prior that is learnt with the model."""
    cell: str = "gru"
    """Recurrent cell of encoders and decoders: "tanh", "gru" or "lstm"."""
    layers: int = 1
    """Recurrent layers of every encoder and decoder."""
    bidirectional: bool = True
    """Whether encoders read in both directions."""
    pooling: str = "last"
    """What of an encoder's steps becomes the posterior: the "last" one, their "mean" or their "max"."""
    mean_scale: float = 0.0
    """Spread of batch-normalised posterior means, which cannot collapse (0.6 or so); 0 to learn them freely."""
    dropout: float = 0.0
    """Share of units that are dropped between layers and before last layers."""
    token_embedding: int = 32
    """Size of the embeddings of tokens."""
    token_encoder: int = 32
    """Units of the recurrent layers of token encoders."""
    token_decoder: int = 64
    """Units of the recurrent layers of token decoders."""
    frame_encoder: int = 96
    """Units of the recurrent layers of frame encoders."""
    frame_inputs: int = 128
    """Size of the layer through which frame decoders read past frames."""
    frame_decoder: int = 192
    """Units of the recurrent layers of frame decoders."""
    reduction: int = 2
    """Frames that are read and written in one recurrent step."""
    likelihood: str = "normal"
    """Likelihood of frames: "normal", "laplace", or "bernoulli" for frames of 0 and 1, which are not standardised."""
    scale: str = "learnt"
    """Scale of the likelihood of frames: "fixed" at 1, "learnt" per channel or "predicted" per step."""
    scale_floor: float = 0.01
    """Least scale of the likelihood of frames, in standard deviations of the data."""
    input_dropout: float = 0.4
    """Share of the decoders' past that is hidden in training, so that the latent is used."""
    input_noise: float = 0.3
    """Noise on the past frames that decoders read in training, in standard deviations of the data."""
    max_steps_factor: float = 1.25
    """Most steps that a decoder may write, as a multiple of the longest sequence that was seen in training."""
    modalities: dict[str, ModalityConfig] = field(default_factory=dict)
    """What single modalities have of their own, such as {"roll": ModalityConfig(likelihood="bernoulli")}. On the
    command line: --model.modalities.roll.likelihood bernoulli; --model.modalities.help lists what there is."""

    def __post_init__(self) -> None:
        own = {
            name: ModalityConfig(**one) if isinstance(one, Mapping) else one for name, one in self.modalities.items()
        }
        object.__setattr__(self, "modalities", own)
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for prefix, found in (("", values), *((f"modalities.{name}.", one.given) for name, one in own.items())):
            for floor, names in LEAST.items():
                at_least(floor, f"model.{prefix}", {name: found[name] for name in names if name in found})
            for name in ("dropout", "input_dropout"):
                share(f"model.{prefix}{name}", found.get(name))

    def of(self, kind: Kind, name: str = "") -> dict[str, Any]:
        """All settings of the modality `name`, which holds tokens or frames, by the names of `ModalityConfig`."""
        own = self.modalities.get(name, ModalityConfig()).given
        sizes = {"encoder_hidden": own["hidden"], "decoder_hidden": own["hidden"]} if "hidden" in own else {}
        shared = {setting: getattr(self, default) for setting, default in DEFAULTS[kind].items()}
        return {setting: value for setting, value in {**shared, **sizes, **own}.items() if setting in shared}


_BOTH = {
    name: name for name in ("cell", "layers", "bidirectional", "pooling", "dropout", "input_dropout", "mean_scale")
}
DEFAULTS: dict[Kind, dict[str, str]] = {
    "tokens": _BOTH
    | {"embedding": "token_embedding", "encoder_hidden": "token_encoder", "decoder_hidden": "token_decoder"},
    "frames": _BOTH
    | {"inputs": "frame_inputs", "encoder_hidden": "frame_encoder", "decoder_hidden": "frame_decoder"}
    | {name: name for name in ("likelihood", "scale", "scale_floor", "reduction", "input_noise")},
}
"""{setting of a modality: the field of `ModelConfig` that it is taken from}, for either kind."""
