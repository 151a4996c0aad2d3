"""Configuration of the networks."""

from __future__ import annotations

from dataclasses import dataclass

from mmseqvae.config.checks import at_least
from mmseqvae.config.renamed import accepts_old_names


@accepts_old_names("model")
@dataclass(frozen=True)
class ModelConfig:
    """The networks that `mmseqvae.pipeline.trained.build` makes for the modalities of a corpus.

    latent: dimensions that all modalities share; private: further ones of each modality, which no other reads or
    writes. fusion: how what the encoders believe becomes one posterior, "poe", "poe-without-base",
    "generalised-poe", "moe", "mopoe", "joint" or "attention"; see `mmseqvae.fusion`.
    prior: what the KL is taken to in training, "standard" for N(0, I), or, learnt with the model, a "mixture" of
    prior_components Gaussians or "vamp", the posteriors of as many pseudo-inputs; see `mmseqvae.priors.mixtures`.
    cell: "tanh", "gru" or "lstm", everywhere. layers: recurrent layers, everywhere. bidirectional, pooling
    ("last", "mean" or "max"): of the encoders. mean_scale: spread of batch-normalised posterior means, which cannot
    collapse (0.6 or so), 0 to learn them freely. dropout: between layers and before last layers.
    token_embedding, token_encoder, token_decoder: sizes for tokens; frame_encoder, frame_inputs, frame_decoder: sizes
    for frames. reduction: frames that are read and written a recurrent step.
    likelihood: "normal", "laplace" or "bernoulli" frames (bernoulli for 0/1 data, which is not standardised);
    scale: "fixed" at 1, "learnt" per channel or "predicted" per step; scale_floor: its least value.
    input_dropout, input_noise: share of the decoders' past that is hidden in training, and noise on past frames in
    standard deviations, so that the latent is used. max_steps_factor: room beyond the longest training sequence.

    Raises ValueError for numbers out of their range.
    """

    latent: int = 32
    private: int = 0
    fusion: str = "poe"
    prior: str = "mixture"
    prior_components: int = 100
    cell: str = "gru"
    layers: int = 1
    bidirectional: bool = True
    pooling: str = "last"
    mean_scale: float = 0.0
    dropout: float = 0.0
    token_embedding: int = 32
    token_encoder: int = 32
    token_decoder: int = 64
    frame_encoder: int = 96
    frame_inputs: int = 128
    frame_decoder: int = 192
    reduction: int = 2
    likelihood: str = "normal"
    scale: str = "learnt"
    scale_floor: float = 0.01
    input_dropout: float = 0.4
    input_noise: float = 0.3
    max_steps_factor: float = 1.25

    def __post_init__(self) -> None:
        least = {
            0: ("private", "mean_scale", "dropout", "scale_floor", "input_dropout", "input_noise"),
            1: ("latent", "prior_components", "layers", "reduction", "max_steps_factor"),
        }
        for floor, names in least.items():
            at_least(floor, "model.", {name: getattr(self, name) for name in names})
        for name, share in (("dropout", self.dropout), ("input_dropout", self.input_dropout)):
            if share > 1:
                raise ValueError(f"model.{name} is a share, between 0 and 1, got {share}")
