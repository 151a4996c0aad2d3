"""fit(): a corpus in, a trained model in its run directory out; on one process, or on several at once."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Augmented, Corpus, SequenceDataset, make_loader
from mmseqvae.distributed import by_first, cluster, joined, processes, wait
from mmseqvae.inference.unimodal_posteriors import KINDS
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import Objective, chosen, weights_by_dimension
from mmseqvae.pipeline.build import CorpusInfo, ModelSource, check_names, model_from, start_prior
from mmseqvae.pipeline.trained_model import Trained, load
from mmseqvae.priors.registry import FITTED
from mmseqvae.tokenizers.categories import Category, Labels
from mmseqvae.tokenizers.characters import Tokenizer
from mmseqvae.training.callbacks import TrainingClock, callbacks_of
from mmseqvae.training.density_fitting import fit_densities
from mmseqvae.training.fine_tuning import start_from
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.malloc import keep_freed_memory
from mmseqvae.training.run_state import note_finished, settings, state_of_run, write_skipped
from mmseqvae.training.schedules import BETA_SCHEDULES, TargetKL
from mmseqvae.training.threads import threads_restored, use_threads

log = logging.getLogger(__name__)
PRECISIONS = ("32-true", "bf16-mixed")


@threads_restored()
def fit(
    corpus: Corpus,
    out: str | Path,
    *,
    model: ModelSource | None = None,
    objective: ObjectiveConfig | Objective | None = None,
    training: TrainingConfig | None = None,
    start: str | Path | Trained | None = None,
    callbacks: Many[lightning.Callback] = (),
    logger: Logger | Many[Logger] | bool | None = None,
    progress: bool = True,
) -> Trained:
    """Train a model on `corpus.datasets["train"]`, write its run directory, and return it.

    A training that was interrupted goes on from `out/checkpoints/last.ckpt`. One that is finished is loaded as it is,
    and no file of it changes; where `training.epochs` is higher than before, it goes on for the epochs that are new.
    Called in every process that torchrun or srun started, it trains one model on all of them; the first process writes,
    and the others load what it wrote (docs/distributed.md).

    Args:
        corpus: from `prepare`.
        out: the run directory.
        model: a `ModelConfig`; or networks of your own (docs/own_parts.md), as a `MultimodalVAE`, or as a function from
            a `CorpusInfo` (vocabularies, channels, longest sequences) to one, with which `load(out, model=...)` finds
            them again. None for the defaults, or for the networks of `start`.
        objective: an `ObjectiveConfig`, or a function `(model, batch, *, beta, free_bits, free_bits_item, weights) ->
            Terms` of your own, used with the default settings.
        training: how long and how fast.
        start: a run, or a loaded model, whose weights training starts from. The corpus is prepared with
            `prepare(..., start=run.front_ends)`; what has no counterpart in the run starts as new, and is told.
        callbacks: of Lightning, beside those that keep checkpoints, average weights and stop early.
        logger: of Lightning, one or several in place of TensorBoard's in `out`; False for none.
        progress: whether to show progress bars.

    Returns:
        The trained model with its tokenizers and features.

    Raises:
        ValueError: before anything is trained, where `out` holds a training with other settings or data or on another
            number of processes, or where settings, model and corpus do not fit together.
    """
    out = Path(out)
    start = load(start) if isinstance(start, str | Path) else start
    model = model or (None if start is None else start.config) or ModelConfig()
    config = model if isinstance(model, ModelConfig) else None
    training = training or TrainingConfig()
    own_objective = None if isinstance(objective, ObjectiveConfig) else objective
    objective = objective if isinstance(objective, ObjectiveConfig) else ObjectiveConfig()
    check_settings(config or ModelConfig(), objective, training)
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
    room = (config or ModelConfig()).max_steps_factor
    longest = {
        name: int(room * max(int(d.lengths(name).max()) for d in [drawn, *datasets.values()])) + 1
        for name, end in corpus.front_ends.items()
        if not isinstance(end, Labels | Category)
    }
    if start is not None:
        longest = {name: max(steps, start.longest.get(name, 0)) for name, steps in longest.items()}
    built = model_from(model, CorpusInfo(corpus.front_ends, longest))
    trained = Trained(built, corpus.front_ends, longest, config, corpus.windows)
    start_prior(built, datasets["train"], training.seed)
    told = [] if start is None else start_from(start, trained)
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
    module = TrainingModule(built, objective, training, weights, steps, own_objective)
    noted = {**settings(config or _digest(built), objective, training), **_data(corpus, longest), "processes": ranks}
    noted |= {"objective_function": getattr(own_objective, "__name__", "own")} if own_objective else {}
    noted |= {"start": _digest(start.model, values=True)} if start is not None else {}
    state = by_first(state_of_run, out, noted)
    if state.finished:
        log.warning("%s: finished before, loaded as it is; a higher training.epochs would go on", out)
        return load(out, None if config else built)
    if start is not None and state.checkpoint is None:
        for line in told:
            log.warning("%s", line)
    check_first_step(module, datasets["train"])
    progress = progress and here.first
    clock = TrainingClock()
    trainer = lightning.Trainer(
        accelerator="auto", max_epochs=training.pretraining + training.epochs,
        precision=training.precision,  # type: ignore[arg-type]
        gradient_clip_val=training.gradient_clip, use_distributed_sampler=False,
        enable_model_summary=False, enable_progress_bar=progress, default_root_dir=out,
        logger=TensorBoardLogger(out, name="", version="tensorboard") if logger is None else logger,
        callbacks=[*callbacks_of(out, training, steps, progress), clock, *callbacks],
        log_every_n_steps=min(50, len(loader)), num_sanity_val_steps=0, **_several(built),
    )  # fmt: skip
    with warnings.catch_warnings():
        ignored = ("does not have many workers", "LeafSpec", "exists and is not empty", "sync_dist=True",
                   "have no `val_dataloader`", "find_unused_parameters=True was specified")  # fmt: skip
        warnings.filterwarnings("ignore", f".*({'|'.join(ignored)}).*")
        if here.ranks > 1:  # Lightning asks the first process before every step whether to stop, and waits for it
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        with repeatable():
            trainer.fit(module, loader, valid, ckpt_path=state.checkpoint, weights_only=True)

    if here.first:
        fit_densities(built, datasets["train"], training, progress)
        trained.save(out)
        write_skipped(out, corpus.skipped)
        note_finished(out, training.epochs, clock.seconds)
    wait()
    return trained if here.first else load(out, None if config else built)


def _data(corpus: Corpus, longest: dict[str, int]) -> dict[str, Any]:
    """What tells the data of two trainings apart."""
    data: dict[str, Any] = {"front_ends": {name: end.to_dict() for name, end in corpus.front_ends.items()}}
    data["longest"] = longest
    data |= {"windows": asdict(corpus.windows)} if corpus.windows.on else {}
    return data | ({"speeds": list(corpus.speeds)} if corpus.speeds else {})


def _digest(model: MultimodalVAE, values: bool = False) -> dict[str, str]:
    """What tells a model of the user's own from others: the names and shapes of its weights, or these and `values`."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(weight.shape)}\n".encode())
        found.update(weight.detach().cpu().contiguous().numpy().tobytes() if values else b"")
    return {"own": found.hexdigest()}


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
        ("unimodal_posteriors", training.unimodal_posteriors, ("none", *KINDS)),
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


def _several(model: MultimodalVAE) -> dict[str, Any]:
    """What a Trainer needs to know of the processes that there are.

    Parameters may go unused, where nobody in a process's batch has a modality. Buffers that change, such as running
    means, are those of the first process.
    """
    here = processes()
    if here.ranks == 1:
        return {"devices": 1}
    joined()
    buffers = any(name != "standard.zero" for name, _ in model.named_buffers())
    strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=buffers)
    return {"devices": here.a_node, "num_nodes": here.nodes, "strategy": strategy, "plugins": [cluster(here)]}


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
