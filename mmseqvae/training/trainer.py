"""fit(): a corpus in, a trained model in its run directory out; on one process, or on several at once."""

from __future__ import annotations

import csv
import json
import logging
import os
import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from mmseqvae.config import AugmentConfig, ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Augmented, Corpus, SequenceDataset, make_loader
from mmseqvae.data.data_warning import warn
from mmseqvae.distributed import by_first, cluster, joined, processes, wait
from mmseqvae.files import replacing, write_json
from mmseqvae.fusion import Encoded
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import chosen, weights_by_dimension
from mmseqvae.pipeline.build import build, check_names, start_prior
from mmseqvae.pipeline.posteriors import encoded
from mmseqvae.pipeline.trained import Trained, load
from mmseqvae.priors.mixtures import Mixture
from mmseqvae.priors.registry import FITTED
from mmseqvae.priors.unimodal_posteriors import KINDS, LEAST
from mmseqvae.tokenizers.categories import Category, Labels
from mmseqvae.tokenizers.characters import Tokenizer
from mmseqvae.training.callbacks import callbacks
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.malloc import keep_freed_memory
from mmseqvae.training.pseudo_labels import with_pseudo_labels
from mmseqvae.training.schedules import BETA_SCHEDULES, TargetKL
from mmseqvae.training.threads import threads_restored, use_threads

logger = logging.getLogger(__name__)
PRECISIONS = ("32-true", "bf16-mixed")
DRAWS = 4  # of every posterior, that the prior is fitted to


@threads_restored()
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

    An interrupted training goes on from `out/checkpoints/last.ckpt`. Called in every process that torchrun or srun
    started, it trains one model on all of them; the first process writes, and the others load what it wrote (see
    docs/distributed.md). Raises ValueError where `out` holds a training with other settings or on another number of
    processes, or where settings do not fit together, before anything is trained.
    """
    out = Path(out)
    model, objective, training = model or ModelConfig(), objective or ObjectiveConfig(), training or TrainingConfig()
    check_settings(model, objective, training)
    use_threads(training.threads)
    keep_freed_memory()
    lightning.seed_everything(training.seed, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its greetings would bury what matters
    if len(corpus.datasets["train"]) < 2:
        rows = len(corpus.datasets["train"])
        raise ValueError(f"{corpus.manifest.path}: the split train has {rows} item(s), at least 2 are needed")
    datasets = {name: dataset for name, dataset in corpus.datasets.items() if len(dataset)}
    drawn = datasets["train"]  # what steps of training see
    if training.augment.on or drawn.speeds:
        drawn = Augmented(drawn, corpus.front_ends, training.augment, training.seed)
    longest = {
        name: int(model.longest * max(int(d.lengths(name).max()) for d in [drawn, *datasets.values()])) + 1
        for name, end in corpus.front_ends.items()
        if not isinstance(end, Labels | Category)
    }
    trained = Trained(build(corpus.front_ends, longest, model), corpus.front_ends, longest, model, corpus.windows)
    start_prior(trained.model, datasets["train"], training.seed)
    weights = reconstruction_weights(corpus, objective)
    if training.patience is not None and training.monitor.startswith("valid/") and "valid" not in datasets:
        raise ValueError(f"patience watches {training.monitor}, but no row is in the split valid")

    here = processes()
    most, rank, ranks = training.frames_per_batch, here.rank, here.ranks
    loader = make_loader(
        drawn, training.batch_size, seed=training.seed, frames_per_batch=most, sampling=training.sampling,
        sampling_column=training.sampling_column, rank=rank, ranks=ranks,
    )  # fmt: skip
    valid = None
    if "valid" in datasets:
        valid = make_loader(datasets["valid"], 256, False, frames_per_batch=most, rank=rank, ranks=ranks)
    steps = len(loader) * training.epochs
    module = TrainingModule(trained.model, objective, training, weights, steps)
    data = {"front_ends": {name: end.to_dict() for name, end in corpus.front_ends.items()}, "longest": longest}
    data |= {"windows": asdict(corpus.windows)} if corpus.windows.on else {}
    data |= {"speeds": list(corpus.speeds)} if corpus.speeds else {}
    noted = {**settings(model, objective, training), **data, "processes": here.ranks}
    checkpoint = by_first(_checkpoint_of, out, noted)
    check_first_step(module, datasets["train"])
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
                   "have no `val_dataloader`", "find_unused_parameters=True was specified")  # fmt: skip
        warnings.filterwarnings("ignore", f".*({'|'.join(ignored)}).*")
        if here.ranks > 1:  # Lightning asks the first process before every step whether to stop, and waits for it
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        with repeatable():
            trainer.fit(module, loader, valid, ckpt_path=checkpoint, weights_only=True)

    if here.first:
        finish(trained, datasets["train"], training, progress)
        trained.save(out)
        write_skipped(out, corpus.skipped)
    wait()
    return trained if here.first else load(out)


@contextmanager
def repeatable() -> Iterator[None]:
    """On a GPU, kernels that add up in the same order every time; without, gradients differ from run to run."""
    if not torch.cuda.is_available():
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    before = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


def check_settings(model: ModelConfig, objective: ObjectiveConfig, training: TrainingConfig) -> None:
    """Raise ValueError for names and options that are not known, which needs no data."""
    check_names(model)
    chosen(objective.name, objective.options)
    if objective.target_kl is not None:
        TargetKL(objective.target_kl, objective.beta)
    for name, value, known in (
        ("beta_schedule", objective.beta_schedule, BETA_SCHEDULES),
        ("precision", training.precision, PRECISIONS),
        ("fitted_prior", training.fitted_prior, tuple(FITTED)),
        ("conditionals", training.conditionals, ("none", *KINDS)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


@torch.no_grad()
def check_first_step(module: TrainingModule, dataset: SequenceDataset) -> None:
    """Raise ValueError for what this model's objective refuses and for a monitor that is not logged, by two items."""
    with torch.random.fork_rng(devices=[]):
        terms = module.eval().terms(dataset.__getitems__([0, 1]))
    module.train()
    there = [f"{stage}/{name}" for stage in ("train", "valid") for name in module.numbers(terms)]
    there += [f"valid/active_units/{name}" for name in terms.means]
    if module.training_config.patience is not None and module.training_config.monitor not in there:
        raise ValueError(f"monitor must be one of {', '.join(there)}, got {module.training_config.monitor!r}")


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
    most, items = training.fitted_items, None
    if most is not None and len(dataset) > most:
        items = np.sort(np.random.default_rng(training.seed).choice(len(dataset), most, replace=False))
    said = encoded(trained.model, dataset, items=items)
    with torch.no_grad():  # a fusion may have weights
        draws = said.posterior().rsample(DRAWS, generator=trained.model.generator(training.seed))
    fit_prior(trained.model, draws, training, progress)
    if training.conditionals != "none":
        fit_conditionals(trained.model, dataset, said, training, progress, items)
    trained.model.eval()


def fit_prior(model: MultimodalVAE, draws: torch.Tensor, training: TrainingConfig, progress: bool = False) -> None:
    """Fit what `training.fitted_prior` names, of at most `training.components` parts, to draws [S, N, D] of all items.

    How many parts, and when a flow is good enough, is chosen by the log-density of a tenth of them, drawn at random; a
    mixture is then fitted to all. With fewer than 2 LEAST items no tenth is large enough to choose by: it is then a
    mixture, of as many parts as `fit_mixture` allows.
    """
    size, items = training.components, np.random.default_rng(training.seed).permutation(draws.shape[1])
    held, others = np.split(items, [len(items) // 10])
    if draws.shape[1] >= 2 * LEAST:
        fitted = model.fit_prior(draws[:, others], size, training.seed, progress, draws[:, held], training.fitted_prior)
        if not isinstance(fitted, Mixture):
            return
        if len(fitted.means) < min(size, len(others) // 10):  # else all are wanted that may be had
            size = len(fitted.means)
    elif training.fitted_prior != "mixture":
        warn(f"a mixture instead of a {training.fitted_prior} is the prior: only {draws.shape[1]} items")
    model.fit_prior(draws, size, training.seed, progress)


def fit_conditionals(
    model: MultimodalVAE, dataset: SequenceDataset, said: Encoded, training: TrainingConfig, progress: bool = False,
    items: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Fit q(z | x_m) of every modality that stands beside another often enough, by what is said of `items`.

    Where items lack words, it is done again with those of which the model is then sure, see
    `mmseqvae.training.pseudo_labels`.
    """
    _fit_each(model, said, training, progress)
    if training.sure is not None:
        whole = with_pseudo_labels(model, dataset, said, training.sure, items, training.seed)
        if len(whole.like) > len(said.like):
            _fit_each(model, whole, training, progress)


def _fit_each(model: MultimodalVAE, said: Encoded, training: TrainingConfig, progress: bool) -> None:
    """Fit q(z | x_m) of every modality that stands beside another in at least 2 LEAST items; tell of the others."""
    for name in said.names:
        together = int((said.here(name) & said.several).sum())
        if together < 2 * LEAST:
            if len(said.names) > 1:  # a modality that is alone needs none
                warn(f"no conditional of {name}: {together} items have it and something else, {2 * LEAST} are needed")
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
    """What tells two trainings on the same data apart, as plain data; the number of threads does not.

    What is off and newer than runs that may be there is not named.
    """
    told = asdict(replace(training, threads=None))
    if training.augment == AugmentConfig():
        del told["augment"]
    return {"model": asdict(model), "objective": asdict(objective), "training": told}


def write_skipped(out: Path, skipped: Many[Any]) -> None:
    """`skipped.csv`: the rows that were left out and why; only a header where there are none."""
    with replacing(out / "skipped.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("row", "id", "problem"), *skipped])


def _checkpoint_of(out: Path, noted: dict[str, Any]) -> Path | None:
    """Where to go on, if a training with the same settings and data was interrupted in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    notes, checkpoint = out / "training.json", out / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        there = {"processes": 1, **json.loads(notes.read_text(encoding="utf-8"))} if notes.exists() else {}
        if there != noted and {**there, "processes": noted["processes"]} == noted:
            raise ValueError(
                f"{out} holds a training on {there['processes']} process(es), which cannot go on with "
                f"{noted['processes']}: use as many, choose another --out, or delete the folder"
            )
        if there != noted:
            raise ValueError(
                f"{out} holds a training with other settings or data: choose another --out, or delete the folder"
            )
        return checkpoint
    write_json(notes, noted)
    return None
