"""Configuration of objective and training."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmseqvae.config.data import AugmentConfig
from mmseqvae.config.range_checks import at_least, share
from mmseqvae.config.renamed_options import OF_OPTIONS, accepts_old_names, warned_keys


@dataclass(frozen=True)
class ObjectiveConfig:
    """What training maximises; see `mmseqvae.objectives`.

    Raises:
        ValueError: for numbers that are negative or not finite.
    """

    name: str = "coordinated"
    """Name of the objective; docs/objectives.md lists them all."""
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """What this objective takes besides beta, free bits and weights, such as {"coordination": 0.5}."""
    beta: float = 1.0
    """Weight of the KL to the prior; above 1 it brings the latents of the data closer to N(0, I), whose draws then make
    matching pairs more often."""
    beta_schedule: str = "linear"
    """How beta is reached: "linear" from a tenth of beta or "sigmoid", both over beta_warm_up steps, or "cyclical",
    from 0 up and then constant, beta_cycles times in the training."""
    beta_warm_up: int = 600
    """Steps until beta is reached, of the schedules linear and sigmoid."""
    beta_cycles: int = 4
    """How many times the schedule cyclical starts again."""
    target_kl: float | None = None
    """Nats of the joint KL that beta is adapted to, between 0 and `beta`, in place of a schedule."""
    free_bits: float = 0.0
    """Nats of a latent dimension up to which its KL costs the same."""
    free_bits_item: float = 0.0
    """Nats of an item up to which its KL costs the same."""
    token_weight: float = 40.0
    """Weight of the reconstruction of every token modality: a word is a few nats beside a thousand of log-mels."""
    by_dimension: bool = False
    """Weigh all modalities by their size instead: the largest one 1, another as many times more as it is smaller. The
    size is the mean number of steps times the channels of one step."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of the reconstruction of single modalities, {modality: weight}; they go before the two above."""

    def __post_init__(self) -> None:
        names = ("beta", "beta_warm_up", "target_kl", "free_bits", "free_bits_item", "token_weight")
        at_least(0, "objective.", {name: getattr(self, name) for name in names})
        at_least(0, "objective.weights.", self.weights)
        at_least(1, "objective.", {"beta_cycles": self.beta_cycles})
        if self.name == OF_OPTIONS:
            object.__setattr__(self, "options", warned_keys("objective.options", self.options, 3))


@accepts_old_names("training")
@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast a model is trained, and what is fitted afterwards; see `mmseqvae.training`.

    Raises:
        ValueError: for numbers out of their range.
    """

    pretraining: int = 0
    """Epochs as a plain autoencoder (beta 0) before `epochs`, after which decoders and schedules start anew: the
    posterior is then far from the prior before the decoder learns to do without it."""
    epochs: int = 130
    """How many times training goes through the training set."""
    batch_size: int = 64
    """Items of a step, on each process."""
    frames_per_batch: int | None = None
    """Most steps of all modalities that a batch has instead, padding included, on each process; see
    `mmseqvae.data.sampler`."""
    sampling: str = "plain"
    """How often items come: "plain", every item once an epoch; or as many draws, with every label as often as every
    other ("balanced"), in proportion to the square root of how often it is there ("square-root"), or by the manifest's
    column `weight` ("weights")."""
    sampling_column: str = "label"
    """Column of these labels: `label` or the name of one of the labels or covariates."""
    learning_rate: float = 2e-3
    """Highest learning rate of Adam, reached after warm_up steps; then half a cosine goes down to 2 % of it."""
    prior_rate: float = 10.0
    """Learning rate of a prior that is learnt with the model, as a factor: its parts must keep up with the codes."""
    warm_up: int = 100
    """Steps until the learning rate is at its highest."""
    span_masking: float = 0.0
    """Share of sequences of which a part is hidden from encoders and decoders, anew in every batch: the end, the
    beginning, a part in the middle or single steps. Posteriors of prefixes and of series with holes are learnt so; see
    `mmseqvae.training.span_masking`."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Noise and masks on what encoders read of recordings."""
    gradient_clip: float = 1000.0
    """Largest norm of the gradient, in nats an item."""
    l1: float = 0.0
    """Penalty l1 sum |w| on the weight matrices, in nats."""
    l2: float = 0.0
    """Penalty l2 / 2 sum w^2 on the weight matrices, in nats."""
    ema_decay: float = 0.998
    """Decay of the exponential moving average of the weights, which is what is kept; 0 keeps the last weights."""
    patience: int | None = None
    """Epochs without improvement of `monitor` after which training stops and keeps the weights of the best epoch; None
    never stops early and keeps the last ones."""
    monitor: str = "valid/elbo"
    """What patience watches: a logged quantity that should rise."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints within an epoch; None for one at its end only. From either a training goes on as if
    nothing had been."""
    fitted_prior: str = "mixture"
    """What is fitted to the training posteriors at the end: a "mixture", or a "flow" that starts from it, takes longer
    and fits better."""
    fitted_components: int = 50
    """Most Gaussians of the fitted prior; a tenth of the items chooses how many."""
    fitted_items: int | None = 100_000
    """Most training items that it is fitted to, drawn at random; None for all."""
    unimodal_posteriors: str = "mixture"
    """Flexible q(z | x_m) of every modality, fitted at the end, which answer where that modality is alone: "mixture" or
    "flow"; "none" leaves those of the encoders."""
    pseudo_label_threshold: float | None = 0.9
    """Least probability of the words that the model would write for an item without words, for the two to count as a
    pair when unimodal posteriors are fitted (`mmseqvae.training.pseudo_labels`); None leaves such items out."""
    precision: str = "32-true"
    """"32-true", or "bf16-mixed": matrix products in bf16; states, sums and nats in float32."""
    seed: int = 0
    """Seed of everything random."""
    threads: int | None = None
    """Threads of torch, on a CPU; None for as many as OMP_NUM_THREADS, MKL_NUM_THREADS or `torch.set_num_threads` say,
    and else one, which no other process on the machine can slow down (docs/speed.md)."""

    def __post_init__(self) -> None:
        least = {
            0: ("pretraining", "learning_rate", "prior_rate", "warm_up", "gradient_clip", "l1", "l2", "ema_decay",
                "patience"),
            1: ("epochs", "batch_size", "frames_per_batch", "checkpoint_steps", "fitted_components", "threads"),
            2: ("fitted_items",),
        }  # fmt: skip
        for floor, names in least.items():
            at_least(floor, "training.", {name: getattr(self, name) for name in names})
        if self.ema_decay >= 1:
            told = f"training.ema_decay must be below 1, or the averaged weights never change; got {self.ema_decay}"
            raise ValueError(told)
        share("training.pseudo_label_threshold", self.pseudo_label_threshold, "probability")
        share("training.span_masking", self.span_masking, "share of sequences")
