"""The Lightning module and fit(): a corpus in, a trained model in its run directory out."""

from __future__ import annotations

import csv
import json
import logging
import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from mmseqvae.callbacks import callbacks
from mmseqvae.conditionals import KINDS, LEAST
from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Corpus, SequenceDataset, make_loader
from mmseqvae.distributed import cluster, first_before_others, gathered, joined, processes, total, wait
from mmseqvae.files import replacing, write_json
from mmseqvae.fusion import Encoded
from mmseqvae.gaps import with_gaps
from mmseqvae.labels import Category, Labels
from mmseqvae.measures import ACTIVE
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives import Terms, chosen, weights_by_dimension
from mmseqvae.pretrained import Trained, build, encoded, load, start_prior, to_device
from mmseqvae.schedules import BETA_SCHEDULES, TargetKL, beta_at, warm_up, warm_up_then_cosine
from mmseqvae.text import Tokenizer
from mmseqvae.totals import Totals

logger = logging.getLogger(__name__)
PRECISIONS = ("32-true", "bf16-mixed")


class Training(lightning.LightningModule):
    """One model, one objective, one optimiser. Loss: minus the mean over the batch of the objective, plus penalties.

    On several processes the mean is over the items of all of their batches, and every process draws noise of its own.
    """

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
        self.trained_on, self.seen, self.means_seen = Totals(), Totals(), Totals()
        self.noise: Tensor | None = None  # state of the generators at a checkpoint within an epoch
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
        """Noise depends on the seed, the epoch and the rank alone, so that a training that is resumed is the same."""
        self.noise, self.trained_on = None, Totals()
        seed = self.training_config.seed * 1_000_003 + self.current_epoch
        torch.manual_seed(seed + self.global_rank * 15_485_863)
        if self.training_config.pretraining and self.current_epoch == self.training_config.pretraining:
            self.start_decoders_anew()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        if self.noise is not None:  # going on within an epoch
            self._set_noise(self.noise)
            self.noise = None

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
        rows = _rows(batch)
        if not rows:  # others have the last items of the epoch: take part with something that counts nothing
            batch = to_device(self.trainer.train_dataloader.dataset[0], self.device)
        terms = self.terms(with_gaps(batch, self.training_config.gaps))
        if rows:
            self.trained_on.add(self.numbers(terms))
        if self.target is None or self.pretraining:
            return self.penalty() - self.mean(terms.objective, rows)
        kl, items = total(torch.stack([terms.kl.detach().sum() * bool(rows), terms.kl.new_tensor(rows)])).tolist()
        beta = self.target.update(kl / items)
        self.log("train/beta", beta, on_step=False, on_epoch=True, batch_size=1)
        return self.penalty() - self.mean(terms.objective, rows)

    def mean(self, values: Tensor, rows: int) -> Tensor:
        """Of [B] over the batches of all processes, of which `rows` here, times what their gradients are divided by."""
        ranks = self.trainer.world_size
        if ranks == 1:
            return values.mean()
        items = total(torch.full((), float(rows), device=values.device))
        return values.sum() * (ranks * bool(rows)) / items  # DDP takes the mean of the gradients over the processes

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
        """Runs on every process, although the first alone writes."""
        checkpoint["target_kl"] = None if self.target is None else self.target.state
        checkpoint["noise"] = gathered(self._noise())
        checkpoint["trained_on"] = {name: total(sums) for name, sums in self.trained_on.sums.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.target is not None:
            self.target.state = checkpoint["target_kl"]
        if "noise" in checkpoint:
            self.noise = checkpoint["noise"][self.global_rank].cpu()
            first = self.global_rank == 0  # whose sums were those of all
            self.trained_on.sums = {n: first * sums.to(self.device) for n, sums in checkpoint["trained_on"].items()}

    def _noise(self) -> Tensor:
        """State of the generators that draws come from, in memory."""
        here = torch.get_rng_state()
        return torch.cat([here, torch.cuda.get_rng_state(self.device)]) if self.device.type == "cuda" else here

    def _set_noise(self, state: Tensor) -> None:
        size = len(torch.get_rng_state())
        torch.set_rng_state(state[:size])
        if len(state) > size:
            torch.cuda.set_rng_state(state[size:], self.device)

    def validation_step(self, batch: Batch, index: int) -> None:
        if _rows(batch):
            terms = self.terms(batch)
            self.seen.add(self.numbers(terms))
            self.means_seen.add_rows(terms.means)

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

    def numbers(self, terms: Terms) -> dict[str, Tensor]:
        """What is logged of every item, [B]: the bound, KL and reconstruction per modality; they show a collapse."""
        numbers = {"objective": terms.objective, "elbo": terms.elbo, "kl/joint": terms.kl}
        numbers |= {f"reconstruction/{name}": value for name, value in terms.reconstruction.items()}
        numbers |= {f"coordination/{name}": value for name, value in terms.coordination.items()}
        return numbers | {f"kl/{name}": value for name, value in terms.expert_kl.items()} | terms.others

    def on_train_epoch_end(self) -> None:
        self.report("train", self.trained_on)

    def on_validation_epoch_end(self) -> None:
        self.report("valid", self.seen)
        for name, variance in self.means_seen.variances().items():
            if not variance.isnan().any():
                self.log(f"valid/active_units/{name}", float((variance > ACTIVE).sum()))
        self.seen, self.means_seen = Totals(), Totals()

    def report(self, stage: str, totals: Totals) -> None:
        """Log the means over all items of the epoch that are there."""
        for name, value in totals.means().items():
            if value == value:
                self.log(f"{stage}/{name}", value)

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
    if not 0 <= training.gaps <= 1:
        raise ValueError(f"gaps is a share of sequences, between 0 and 1, got {training.gaps}")
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

    here = processes()
    dealt = {"frames_per_batch": training.frames_per_batch, "rank": here.rank, "ranks": here.ranks}
    loader = make_loader(
        datasets["train"], training.batch_size, seed=training.seed, sampling=training.sampling,
        sampling_column=training.sampling_column, **dealt,
    )  # fmt: skip
    valid = make_loader(datasets["valid"], 256, shuffle=False, **dealt) if "valid" in datasets else None
    steps = len(loader) * training.epochs
    module = Training(trained.model, objective, training, weights, steps)
    data = {"front_ends": {name: end.to_dict() for name, end in corpus.front_ends.items()}, "longest": longest}
    with first_before_others():
        checkpoint = _checkpoint_of(out, {**settings(model, objective, training), **data, "processes": here.ranks})
    progress = progress and here.first
    trainer = lightning.Trainer(
        accelerator="auto", max_epochs=training.pretraining + training.epochs,
        precision=training.precision,  # type: ignore[arg-type]
        gradient_clip_val=training.clip, use_distributed_sampler=False,
        enable_model_summary=False, enable_progress_bar=progress, default_root_dir=out,
        logger=TensorBoardLogger(out, name="", version="tensorboard"),
        callbacks=callbacks(out, training, steps, progress),
        log_every_n_steps=min(50, len(loader)), num_sanity_val_steps=0, **_several(model),
    )  # fmt: skip
    with warnings.catch_warnings():
        ignored = ("does not have many workers", "LeafSpec", "exists and is not empty", "sync_dist=True",
                   "find_unused_parameters=True was specified")  # fmt: skip
        warnings.filterwarnings("ignore", f".*({'|'.join(ignored)}).*")
        if here.ranks > 1:  # Lightning asks the first process before every step whether to stop, and waits for it
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        trainer.fit(module, loader, valid, ckpt_path=checkpoint, weights_only=True)

    if here.first:
        finish(trained, datasets["train"], training, progress)
        trained.save(out)
        write_skipped(out, corpus.skipped)
    wait()
    return trained if here.first else load(out)


def _several(model: ModelConfig) -> dict[str, Any]:
    """What a Trainer needs to know of the processes that there are.

    Parameters may go unused, where nobody in a process's batch has a modality. Buffers change only where means are
    normalised; they are then those of the first process.
    """
    here = processes()
    if here.ranks == 1:
        return {"devices": 1}
    joined()
    strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=model.mean_scale > 0)
    return {"devices": here.a_node, "num_nodes": here.nodes, "strategy": strategy, "plugins": [cluster(here)]}


def finish(trained: Trained, dataset: SequenceDataset, training: TrainingConfig, progress: bool = False) -> None:
    """What is fitted to the training posteriors after training: the prior that is drawn from, conditionals."""
    said = encoded(trained.model, dataset)
    with torch.no_grad():  # a fusion may have weights
        draws = said.posterior().rsample(generator=trained.model.generator(training.seed))
    trained.model.fit_prior(draws, training.components, training.seed, progress)
    if training.conditionals != "none":
        fit_conditionals(trained.model, said, training, progress)
    trained.model.eval()


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
        there = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
        if {**there, "processes": 0} == {**noted, "processes": 0} and there["processes"] != noted["processes"]:
            raise ValueError(
                f"{out} holds a training on {there['processes']} process(es), which cannot go on with "
                f"{noted['processes']}: use as many, choose another --out, or delete the folder"
            )
        if there != noted:
            raise ValueError(
                f"{out} holds a training with other settings or data: choose another --out, or delete the folder"
            )
        return checkpoint
    if processes().first:
        write_json(notes, noted)
    return None


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())).lengths)
