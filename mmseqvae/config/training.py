"""Configuration of objective and training."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmseqvae.config.checks import at_least
from mmseqvae.config.data import AugmentConfig


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is maximised; see `mmseqvae.objectives`.

    name: of an objective. options: what it takes besides beta, free bits and weights, such as {"coordination": 0.5}.
    beta: weight of the KL to the prior; above 1 it brings the latents of the data closer to N(0, I), whose draws then
    make matching pairs more often. beta_schedule: "linear" from a tenth of beta or "sigmoid", over beta_warm_up steps,
    or "cyclical", from 0 up and then constant, beta_cycles times in the training. target_kl: nats of the joint KL that
    beta is adapted to, between 0 and `beta`, instead of a schedule. free_bits: nats a latent dimension that cost the
    same; free_bits_item: nats an item.
    token_weight: weight of every token modality's reconstruction; a word is a few nats beside a thousand of log-mels.
    by_dimension: weigh all modalities by their size instead, the largest one 1 and another as many times more as it is
    smaller; the size is the mean number of steps times the channels of one. weights: {modality: weight}, over both.

    Raises ValueError for numbers that are negative or not finite.
    """

    name: str = "coordinated"
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    beta: float = 1.0
    beta_schedule: str = "linear"
    beta_warm_up: int = 600
    beta_cycles: int = 4
    target_kl: float | None = None
    free_bits: float = 0.0
    free_bits_item: float = 0.0
    token_weight: float = 40.0
    by_dimension: bool = False
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("beta", "beta_warm_up", "target_kl", "free_bits", "free_bits_item", "token_weight")
        at_least(0, "objective.", {name: getattr(self, name) for name in names})
        at_least(0, "objective.weights.", self.weights)
        at_least(1, "objective.", {"beta_cycles": self.beta_cycles})


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast.

    pretraining: epochs as a plain autoencoder (beta 0) before `epochs`, after which the decoders start anew and so do
    the schedules: the posterior is far from the prior before the decoder learns to do without it. epochs; batch_size:
    items of a step, on each process. frames_per_batch: most steps of all modalities, padding included, that a step may
    have instead, on each process; see `mmseqvae.data.sampler`. sampling: "plain", every item once an epoch; or as many
    draws, with every label as often as every other ("balanced"), in proportion to the square root of how often it is
    there ("square-root"), or with the manifest's column `weight` ("weights"). sampling_column: whose values are these
    labels, `label` or the name of one of the labels or covariates. learning_rate: peak of Adam, warmed up over warm_up
    steps, then half a cosine down to 2 %; prior_rate: how many times that a prior learnt with the model gets, whose
    parts must keep up with the codes. gaps: share of sequences of which a stretch is hidden from encoders and decoders,
    anew in every batch: the end, the beginning, a part in the middle or single steps, so that posteriors of prefixes
    and of series with holes are learnt (`mmseqvae.training.span_masking`). augment: noise and masks on what encoders
    read of recordings. clip: largest norm of the gradient, in nats an item. l1, l2: penalties on the weight matrices,
    l1 sum |w| and l2 / 2 sum w^2, in nats. ema: decay of the averaged weights that are kept, 0 to keep the last ones.
    patience: epochs without improvement of `monitor` before stopping, the weights being then those of the best epoch;
    None to never stop early and keep the last ones. monitor: "valid/elbo" or another logged quantity that should rise.
    checkpoint_steps: steps between checkpoints within an epoch, None for one at its end only; from either a training
    goes on as if nothing had been. fitted_prior: the "mixture" fitted to training posteriors at the end, or a "flow"
    that starts from it, takes longer and fits better; components: of it at most, how many being chosen by a tenth of
    the items; fitted_items: to at most so many training items, drawn at random, None for all. conditionals: "mixture"
    or "flow" fits a flexible q(z | x_m) of every modality at the end, which answers where that modality is alone;
    "none" leaves the encoders' own. sure: the least probability of the words that the model would write for an item
    that lacks them, for it to count as a pair there (`mmseqvae.training.pseudo_labels`); None to leave them out.
    precision: "32-true", or "bf16-mixed": matrix products in bf16, states, sums and nats in float32. seed: of
    everything random. threads: of torch, on a CPU; None for as many as OMP_NUM_THREADS, MKL_NUM_THREADS or
    `torch.set_num_threads` say, and else one, which no other process on the machine can slow down (docs/speed.md).

    Raises ValueError for numbers out of their range.
    """

    pretraining: int = 0
    epochs: int = 130
    batch_size: int = 64
    frames_per_batch: int | None = None
    sampling: str = "plain"
    sampling_column: str = "label"
    learning_rate: float = 2e-3
    prior_rate: float = 10.0
    warm_up: int = 100
    gaps: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    clip: float = 1000.0
    l1: float = 0.0
    l2: float = 0.0
    ema: float = 0.998
    patience: int | None = None
    monitor: str = "valid/elbo"
    checkpoint_steps: int | None = None
    fitted_prior: str = "mixture"
    components: int = 50
    fitted_items: int | None = 100_000
    conditionals: str = "mixture"
    sure: float | None = 0.9
    precision: str = "32-true"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        least = {
            0: ("pretraining", "learning_rate", "prior_rate", "warm_up", "clip", "l1", "l2", "ema", "patience"),
            1: ("epochs", "batch_size", "frames_per_batch", "checkpoint_steps", "components", "threads"),
            2: ("fitted_items",),
        }
        for floor, names in least.items():
            at_least(floor, "training.", {name: getattr(self, name) for name in names})
        if self.ema >= 1:
            raise ValueError(f"training.ema must be below 1, or the averaged weights never change; got {self.ema}")
        if self.sure is not None and not 0 <= self.sure <= 1:
            raise ValueError(f"training.sure is a probability, between 0 and 1, or None; got {self.sure}")
        if not 0 <= self.gaps <= 1:
            raise ValueError(f"training.gaps is a share of sequences, between 0 and 1, got {self.gaps}")
