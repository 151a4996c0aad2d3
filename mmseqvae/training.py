"""The Lightning module and fit(): a corpus in, a trained model in its run directory out."""

from __future__ import annotations

import csv
import json
import logging
import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from mmseqvae.callbacks import callbacks
from mmseqvae.conditionals import KINDS, LEAST
from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Corpus, make_loader
from mmseqvae.files import replacing, write_json
from mmseqvae.fusion import Encoded
from mmseqvae.labels import Category, Labels
from mmseqvae.measures import active_units
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives import Terms, chosen, weights_by_dimension
from mmseqvae.pretrained import Trained, build, encoded, start_prior, to_device
from mmseqvae.schedules import BETA_SCHEDULES, TargetKL, beta_at, warm_up, warm_up_then_cosine
from mmseqvae.text import Tokenizer

logger = logging.getLogger(__name__)
PRECISIONS = ("32-true", "bf16-mixed")


class Training(lightning.LightningModule):
    """One model, one objective, one optimiser. Loss: minus the mean over the batch of the objective, plus penalties."""

    def __init__(
        self, model: MultimodalVAE, objective: ObjectiveConfig, training: TrainingConfig, weights: dict[str, float],
        total_steps: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.maximised = chosen(objective.name, objective.options)
        if objective.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(
                f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {objective.beta_schedule!r}"
            )
        if objective.beta_cycles < 1:
            raise ValueError(f"beta_cycles must be at least 1, got {objective.beta_cycles}")
        self.model, self.objective, self.training_config, self.weights = model, objective, training, weights
        self.total_steps = total_steps
        self.target = None if objective.target_kl is None else TargetKL(objective.target_kl, objective.beta)
        self.seen: list[Terms] = []
        self.pretraining_steps = total_steps // max(1, training.epochs) * training.pretraining
        self.untrained = {name: weight.clone() for name, weight in self.decoders()} if training.pretraining else {}

    def decoders(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that `start_decoders_anew` resets, by name."""
        for name in self.model.writable:
            decoder = self.model.modality(name).decoder
            assert decoder is not None
            yield from ((f"{name}.{key}", weight) for key, weight in decoder.state_dict().items())

    @property
    def pretraining(self) -> bool:
        return self.global_step < self.pretraining_steps

    def on_train_epoch_start(self) -> None:
        """Noise depends on the seed and the epoch alone, so that a training that is resumed is the same."""
        torch.manual_seed(self.training_config.seed * 1_000_003 + self.current_epoch)
        if self.training_config.pretraining and self.current_epoch == self.training_config.pretraining:
            self.start_decoders_anew()

    @torch.no_grad()
    def start_decoders_anew(self) -> None:
        """Decoders as before training, and an optimiser that knows nothing (Li et al. 2019, section 3).

        "A surprisingly effective fix for deep latent variable modeling of text": encoders that an autoencoder has
        trained say much from the first step, and a decoder that starts anew has not yet learnt to do without them.
        """
        for name, weight in self.decoders():
            weight.copy_(self.untrained[name])
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.optimizer.state.clear()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        terms = self.terms(batch)
        self.report("train", terms)
        if self.target is not None and not self.pretraining:
            beta = self.target.update(float(terms.kl.detach().mean()))
            self.log("train/beta", beta, on_step=False, on_epoch=True, batch_size=len(terms.kl))
        return self.penalty() - terms.objective.mean()

    @property
    def beta(self) -> float:
        """Weight of the KL to the prior at this step."""
        config = self.objective
        if self.pretraining:
            return 0.0
        if self.target is not None:
            return self.target.beta
        step = self.global_step - self.pretraining_steps
        share = beta_at(step, config.beta_schedule, config.beta_warm_up, self.total_steps, config.beta_cycles)
        return config.beta * share

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["target_kl"] = None if self.target is None else self.target.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.target is not None:
            self.target.state = checkpoint["target_kl"]

    def validation_step(self, batch: Batch, index: int) -> None:
        self.seen.append(self.terms(batch))

    def terms(self, batch: Batch) -> Terms:
        config = self.objective
        common = {"beta": self.beta, "free_bits": config.free_bits, "free_bits_item": config.free_bits_item}
        return self.maximised(self.model, batch, **common, weights=self.weights, **config.options)

    def penalty(self) -> Tensor:
        """l1 sum |w| + l2 / 2 sum w^2 over weight matrices, in nats."""
        l1, l2 = self.training_config.l1, self.training_config.l2
        total = torch.zeros((), device=self.device)
        for weight in self.model.parameters() if l1 or l2 else ():
            if weight.ndim > 1:
                total = total + l1 * weight.abs().sum() + l2 / 2 * weight.square().sum()
        return total

    def report(self, stage: str, terms: Terms) -> None:
        """Log means over the items: the bound, and KL and reconstruction per modality, so that a collapse is seen."""
        with torch.no_grad():
            numbers = {"objective": terms.objective.mean(), "elbo": terms.elbo.mean(), "kl/joint": terms.kl.mean()}
            numbers |= {f"reconstruction/{name}": value.mean() for name, value in terms.reconstruction.items()}
            numbers |= {f"coordination/{name}": value.mean() for name, value in terms.coordination.items()}
            numbers |= {f"kl/{name}": value.nanmean() for name, value in terms.expert_kl.items()}
            numbers |= {name: value.mean() for name, value in terms.others.items()}
            size = len(terms.elbo)
            for name, value in numbers.items():
                self.log(f"{stage}/{name}", value, on_step=False, on_epoch=True, batch_size=size)

    def on_validation_epoch_end(self) -> None:
        if not self.seen:
            return
        seen, self.seen = self.seen, []
        merged = _merged(seen)
        self.report("valid", merged)
        for name, means in merged.means.items():
            there = means[~means.isnan().any(1)]
            if len(there) > 1:
                self.log(f"valid/active_units/{name}", float(active_units(there)))

    def configure_optimizers(self) -> Any:
        config = self.training_config
        groups = parameter_groups(self.model, config.learning_rate, config.prior_rate)
        whole = config.precision == "32-true"  # Lightning cannot clip gradients beside a fused Adam in mixed precision
        optimizer = torch.optim.Adam(groups, lr=config.learning_rate, fused=whole)

        def factor(step: int) -> float:
            if step < self.pretraining_steps:
                return warm_up(step + 1, config.warm_up)
            return warm_up_then_cosine(step - self.pretraining_steps, config.warm_up, self.total_steps)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return to_device(batch, device)


def parameter_groups(model: MultimodalVAE, rate: float, prior_rate: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser: those of a prior learnt with the model go `prior_rate` times as fast."""
    learnt = [] if model.learnt is None else list(model.learnt.parameters())
    own = {id(parameter) for parameter in learnt}
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in own], "lr": rate}]
    return [*groups, {"params": learnt, "lr": prior_rate * rate}] if learnt else groups


def fit(
    corpus: Corpus,
    out: str | Path,
    *,
    model: ModelConfig | None = None,
    objective: ObjectiveConfig | None = None,
    training: TrainingConfig | None = None,
    progress: bool = True,
) -> Trained:
    """Train on `corpus.datasets["train"]`, fit the mixture prior, write the run directory `out`, return the model.

    An interrupted training goes on from `out/checkpoints/last.ckpt`. Raises ValueError where `out` holds a training
    with other settings, or where settings do not fit together, before anything is trained.
    """
    out = Path(out)
    model, objective, training = model or ModelConfig(), objective or ObjectiveConfig(), training or TrainingConfig()
    if training.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {training.precision!r}")
    if training.threads:
        torch.set_num_threads(training.threads)
    lightning.seed_everything(training.seed, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its greetings would bury what matters
    datasets = {name: dataset for name, dataset in corpus.datasets.items() if len(dataset)}
    longest = {
        name: int(model.longest * max(int(d.lengths(name).max()) for d in datasets.values())) + 1
        for name, end in corpus.front_ends.items()
        if not isinstance(end, Labels | Category)
    }
    trained = Trained(build(corpus.front_ends, longest, model), corpus.front_ends, longest, model)
    start_prior(trained.model, datasets["train"], training.seed)
    weights = reconstruction_weights(corpus, objective)
    if training.conditionals not in ("none", *KINDS):
        raise ValueError(f"conditionals must be one of none, {', '.join(KINDS)}, got {training.conditionals!r}")
    if training.patience is not None and training.monitor.startswith("valid/") and "valid" not in datasets:
        raise ValueError(f"patience watches {training.monitor}, but no row is in the split valid")

    loader = make_loader(
        datasets["train"], training.batch_size, seed=training.seed, frames_per_batch=training.frames_per_batch,
        sampling=training.sampling, sampling_column=training.sampling_column,
    )  # fmt: skip
    steps = len(loader) * training.epochs
    module = Training(trained.model, objective, training, weights, steps)
    data = {"front_ends": {name: end.to_dict() for name, end in corpus.front_ends.items()}, "longest": longest}
    checkpoint = _checkpoint_of(out, {**settings(model, objective, training), **data})
    trainer = lightning.Trainer(
        accelerator="auto", devices=1, max_epochs=training.pretraining + training.epochs,
        precision=training.precision,  # type: ignore[arg-type]
        gradient_clip_val=training.clip, use_distributed_sampler=False,
        enable_model_summary=False, enable_progress_bar=progress,
        logger=TensorBoardLogger(out, name="", version="tensorboard"),
        callbacks=callbacks(out, training, steps, progress),
        log_every_n_steps=min(50, len(loader)), num_sanity_val_steps=0,
    )  # fmt: skip
    valid = make_loader(datasets["valid"], 256, shuffle=False) if "valid" in datasets else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|exists and is not empty).*")
        trainer.fit(module, loader, valid, ckpt_path=checkpoint, weights_only=True)

    said = encoded(trained.model, datasets["train"])
    with torch.no_grad():  # a fusion may have weights
        draws = said.posterior().rsample(generator=trained.model.generator(training.seed))
    trained.model.fit_prior(draws, training.components, training.seed, progress)
    if training.conditionals != "none":
        fit_conditionals(trained.model, said, training, progress)
    trained.model.eval()
    trained.save(out)
    write_skipped(out, corpus.skipped)
    return trained


def fit_conditionals(model: MultimodalVAE, said: Encoded, training: TrainingConfig, progress: bool = False) -> None:
    """Fit q(z | x_m) of every modality that stands beside another in at least 2 LEAST items; log which do not."""
    for name in said.names:
        together = int((said.here(name) & said.several).sum())
        if together < 2 * LEAST:
            logger.info("no conditional of %s: %d items have it and something else", name, together)
            continue
        nats = model.fit_conditional(name, said, kind=training.conditionals, seed=training.seed, progress=progress)
        logger.info("conditional of %s: %.2f nats a held-out draw of the joint posterior", name, nats)


def reconstruction_weights(corpus: Corpus, objective: ObjectiveConfig) -> dict[str, float]:
    """{modality: weight} of reconstruction as the configuration asks. Raises ValueError for unknown modalities."""
    modalities = {name: end for name, end in corpus.front_ends.items() if not isinstance(end, Category)}
    foreign = sorted(objective.weights.keys() - modalities.keys())
    if foreign:
        raise ValueError(f"weights name {foreign}, which are no modalities; there are {list(modalities)}")
    weights = {n: objective.token_weight for n, end in modalities.items() if isinstance(end, Tokenizer)}
    if objective.by_dimension:
        sizes = {}
        for name, end in modalities.items():
            lengths = corpus.datasets["train"].lengths(name)
            steps = float(lengths.sum()) / max(1, (lengths > 0).sum())
            sizes[name] = max(steps, 1.0) * (1 if isinstance(end, Tokenizer) else end.channels)
        weights = weights_by_dimension(sizes)
    return weights | objective.weights


def settings(model: ModelConfig, objective: ObjectiveConfig, training: TrainingConfig) -> dict[str, Any]:
    """What tells two trainings on the same data apart, as plain data; the number of threads does not."""
    return {"model": asdict(model), "objective": asdict(objective), "training": asdict(replace(training, threads=None))}


def write_skipped(out: Path, skipped: Many[Any]) -> None:
    """`skipped.csv`: the rows that were left out and why; only a header where there are none."""
    with replacing(out / "skipped.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("row", "id", "problem"), *skipped])


def _checkpoint_of(out: Path, noted: dict[str, Any]) -> Path | None:
    """Where to go on, if a training with the same settings and data was interrupted in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    notes, checkpoint = out / "training.json", out / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        if not notes.exists() or json.loads(notes.read_text(encoding="utf-8")) != noted:
            raise ValueError(
                f"{out} holds a training with other settings or data: choose another --out, or delete the folder"
            )
        return checkpoint
    write_json(notes, noted)
    return None


def _merged(parts: list[Terms]) -> Terms:
    """The terms of several batches as those of one."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: torch.cat([value[name] for value in values]) for name in values[0]}
        return torch.cat(values)

    return Terms(**{field.name: join([getattr(part, field.name) for part in parts]) for field in fields(Terms)})
