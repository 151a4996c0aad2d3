"""One trial: a model trained within a budget on spoken words, its priors fitted, and all that is heard in it.

Every trial of a benchmark has the same networks, likelihood and scale rule unless its settings say otherwise, the same
budget of processor time on one thread, and the same judges, who never heard what they judge by. The budget is met in
whole epochs, whose number follows from the time of some steps; every seed of the same settings has the same number.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ledger import Record
from benchmarks.quality.corpus_and_judges import unwatched
from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import Corpus, SequenceDataset, encode_items, make_loader
from mmseqvae.evaluation.cross_generation import cross_generation
from mmseqvae.evaluation.judges.speech_judges import SpeechJudges
from mmseqvae.evaluation.summary import latent, likelihood
from mmseqvae.files import write_json
from mmseqvae.fusion import Encoded
from mmseqvae.pipeline.build import build, start_prior
from mmseqvae.pipeline.dataset_posteriors import encoded
from mmseqvae.pipeline.trained_model import Trained, load
from mmseqvae.priors.base import Prior
from mmseqvae.priors.resampling_baselines import Resampled, WordThenPosterior
from mmseqvae.tokenizers.characters import Tokenizer
from mmseqvae.training.density_fitting import DRAWS, fit_conditionals
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.trainer import fit, reconstruction_weights

COMPONENTS = 50  # the most that a fitted mixture may have, diagonal; validation chooses
NLL_DRAWS = 100
PROBED = 40  # steps whose time tells how many epochs fit into the budget
WARM_UPS = {"beta": 3, "learning rate": 10}  # warm-ups take at most this fraction of the steps: one in ...
CONFIGS: dict[str, type] = {"model": ModelConfig, "objective": ObjectiveConfig, "training": TrainingConfig}
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """What is trained, how, and what is fitted after."""

    model: ModelConfig
    objective: ObjectiveConfig
    training: TrainingConfig

    @classmethod
    def of(cls, settings: Settings) -> Setup:
        """From what differs from the library's defaults, by name: {"objective.name": "jmvae", "model.fusion": "joint"}.

        "objective.options.NAME" and "objective.weights.NAME" set one entry of these. Raises ValueError for a name that
        is not known.
        """
        parts: dict[str, dict[str, Any]] = {name: {} for name in CONFIGS}
        for name, value in settings.items():
            part, _, field = name.partition(".")
            field, _, entry = field.partition(".")
            known = {f.name for f in fields(CONFIGS[part])} if part in CONFIGS else set()
            if field not in known or bool(entry) != (field in ("options", "weights")):
                raise ValueError(f"there is no setting {name!r}: it must be PART.FIELD, PART one of {[*CONFIGS]}")
            if entry:
                parts[part].setdefault(field, {})[entry] = value
            else:
                parts[part][field] = value
        return cls(**{name: CONFIGS[name](**found) for name, found in parts.items()})

    @property
    def plain(self) -> Setup:
        """Without what is fitted after training."""
        return replace(self, training=replace(self.training, unimodal_posteriors="none", pseudo_label_threshold=None))


# ------------------------------------------------------------------------------------------------------- training


def tried(
    run: Mapping[str, Any], corpus: Corpus, dataset: SequenceDataset, judges: SpeechJudges, out: Path,
    recordings: SequenceDataset | None = None,
) -> tuple[Trained, Record]:  # fmt: skip
    """Train a run in `out` on the corpus and judge it on `dataset`: the model, and what goes into the ledger.

    run: "settings", "seed", "seconds", "draws" and "pairs"; what else it names tells its training from others.
    recordings: where copies are looked for, by default the training items.
    """
    torch.set_num_threads(1)
    setup, seed = Setup.of(run["settings"]), run["seed"]
    watched = setup.training.patience is not None
    trained, training = trained_within(
        corpus if watched else unwatched(corpus), setup.plain, seed, run["seconds"], folder_of(out, run),
        pace_of(out, run),
    )  # fmt: skip
    started, train = time.process_time(), corpus.datasets["train"]
    figures = judged(trained, setup, train, recordings or train, dataset, judges, run["draws"], run["pairs"], seed)
    return trained, {
        "training": training, **figures, "judging_seconds": time.process_time() - started,
        "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "torch": torch.__version__,
    }  # fmt: skip


def trained_within(
    corpus: Corpus, setup: Setup, seed: int, seconds: float, folder: Path, pace: Path
) -> tuple[Trained, Record]:
    """Train for as many whole epochs as take `seconds` of processor time, at least one; the model and how it went.

    What is finished in `folder` is kept, what was interrupted starts anew. pace: a file that keeps the measured time,
    for all seeds of a setup.
    """
    done = folder / "trial.json"  # written last
    if done.exists():
        return load(folder), json.loads(done.read_text(encoding="utf-8"))
    if folder.exists():
        shutil.rmtree(folder)
    train = corpus.datasets["train"]
    if not pace.exists():
        measured = seconds_an_item(probe(corpus, setup), train)
        if not pace.exists():  # another process may have been faster, and all seeds go by one number
            write_json(pace, {"seconds_an_item": measured})
    an_item = json.loads(pace.read_text(encoding="utf-8"))["seconds_an_item"]
    setup = shortened(setup, len(train), max(1, round(seconds / (an_item * len(train)))), seed)
    started, began = time.process_time(), time.monotonic()
    trained = fit(corpus, folder, model=setup.model, objective=setup.objective, training=setup.training, progress=False)
    taken = time.process_time() - started
    reached = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 1
    how = {
        "epochs": reached,
        "seconds": taken,
        "wall_seconds": time.monotonic() - began,
        "samples_a_second": reached * len(train) / taken,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "beta_warm_up": setup.objective.beta_warm_up,
    }
    write_json(done, how)
    return trained, how


def shortened(setup: Setup, rows: int, epochs: int, seed: int) -> Setup:
    """The setup for that many epochs: pretraining is among them, and warm-ups are a part of the steps at most."""
    training = setup.training
    left = max(1, epochs - training.pretraining)
    steps = left * -(-rows // training.batch_size)
    return replace(
        setup,
        objective=replace(
            setup.objective, beta_warm_up=min(setup.objective.beta_warm_up, steps // WARM_UPS["beta"])
        ),
        training=replace(
            training, epochs=left, warm_up=min(training.warm_up, steps // WARM_UPS["learning rate"]),
            fitted_components=1,  # priors are fitted with the judging
            seed=seed, threads=1,
        ),
    )  # fmt: skip


def probe(corpus: Corpus, setup: Setup) -> TrainingModule:
    """An untrained model of the setup, ready for steps."""
    torch.manual_seed(setup.training.seed)
    longest = {name: 2 * max(int(d.lengths(name).max(initial=0)) for d in corpus.datasets.values()) + 1
               for name in corpus.front_ends}  # fmt: skip
    model = build(corpus.front_ends, longest, setup.model)
    start_prior(model, corpus.datasets["train"])
    weights = reconstruction_weights(corpus, setup.objective)
    return TrainingModule(model, setup.objective, setup.training, weights, total_steps=PROBED)


def seconds_an_item(module: TrainingModule, dataset: SequenceDataset) -> float:
    """Processor time of a training step over its items, mean over PROBED steps or an epoch, after three others.

    Processor time, since a machine that others use too prolongs it less.
    """
    config = module.training_config
    optimizer = torch.optim.Adam(module.train().parameters())
    batches = list(itertools.islice(make_loader(dataset, config.batch_size), PROBED))
    started = 0.0
    for number, batch in enumerate([*batches[:3], *batches]):
        if number == len(batches[:3]):
            started = time.process_time()
        optimizer.zero_grad()
        (module.penalty() - module.terms(batch).objective.mean()).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clip)
        optimizer.step()
    return (time.process_time() - started) / sum(len(next(iter(batch.values()))) for batch in batches)


# --------------------------------------------------------------------------------------------------------- judging


def judged(
    trained: Trained, setup: Setup, train: SequenceDataset, recordings: SequenceDataset, dataset: SequenceDataset,
    judges: SpeechJudges, draws: int, pairs: int, seed: int,
) -> Record:  # fmt: skip
    """All figures of a model trained on `train`, on `dataset`: what judges hear, likelihoods, the latent."""
    model = trained.model.eval()
    said = encoded(model, train)
    if setup.training.unimodal_posteriors != "none":
        fit_conditionals(model, train, said, replace(setup.training, seed=seed))
    tokenizer = trained.front_ends["text"]
    assert isinstance(tokenizer, Tokenizer)
    texts = dataset.__getitems__(range(len(dataset)))["text"].items()
    words = sorted({tokenizer.decode(item) for item in texts})
    heard = cross_generation(
        trained, dataset, recordings, judges.word.labels, judges.speaker.labels, judges.word.penultimate,
        draws=draws, joint=pairs, waves=False, priors=fitted_priors(trained, said, words, seed), seed=seed,
        progress=False,
    )  # fmt: skip
    voice = heard["audio_to_audio"]["speaker_kept"]["log_mel"]["value"]
    own = judges.accuracy["speaker"]["log_mel"]["value"]
    return {
        "coherence": heard,
        "speaker_kept_over_judge": voice / own if own else None,
        "likelihood": likelihood(trained, dataset, NLL_DRAWS, seed, progress=False),
        "latent": latent(trained, dataset),
        "judges": judges.accuracy,
    }


@torch.no_grad()
def fitted_priors(trained: Trained, said: Encoded, words: list[str], seed: int) -> dict[str, Prior]:
    """Every prior that pairs are drawn from: the model's own, two fitted after, two baselines, by name.

    The mixture becomes `model.fitted`. It and the flow are fitted to draws from the joint posterior of nine training
    recordings in ten; the tenth chooses how many components and when to stop.
    """
    model = trained.model
    q = said.posterior()[said.here("audio").nonzero().squeeze(-1)]
    z = q.rsample(DRAWS, generator=model.generator(seed))  # [DRAWS, N, D]
    held = torch.arange(z.shape[1]) % 10 == 9
    flow, mixture = (
        model.fit_prior(z[:, ~held], COMPONENTS, seed, valid=z[:, held], kind=kind) for kind in ("flow", "mixture")
    )
    asked = model.encode(encode_items(trained.front_ends, [{"text": word} for word in words]), ["text"])
    own: dict[str, Prior] = {"standard": model.standard} | ({} if model.learnt is None else {"learnt": model.learnt})
    return own | {
        "fitted": mixture,
        "flow": flow,
        "resampled": Resampled(q),
        "word": Completed(WordThenPosterior(model.answer(asked)), model.known(asked)[0], model.prior),
    }


class Completed(Prior):
    """`first`, whose draws are completed by `then` in the dimensions that it does not know, as in generation."""

    def __init__(self, first: Prior, known: Tensor, then: Prior) -> None:
        super().__init__()
        self.first, self.known, self.then, self.latent = first, known, then, first.latent

    def __str__(self) -> str:
        return str(self.first) if self.known.all() else f"{self.first}, completed by the {self.then}"

    def log_prob(self, z: Tensor) -> Tensor:
        if not self.known.all():
            raise ValueError(f"{self} has no log-density: what is completed depends on what is known")
        return self.first.log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        z = self.first.sample(n, generator)
        return z if self.known.all() else self.then.complete(z, self.known.expand(n, -1), generator)


# ---------------------------------------------------------------------------------------------------------- files


def folder_of(out: Path, run: Mapping[str, Any]) -> Path:
    """Where a run is trained: the same for runs that differ in what happens after training only."""
    setup, judging = Setup.of(run["settings"]).plain, ("row", "settings", "draws", "pairs")
    return out / f"{setup.objective.name}-{digest(asdict(setup), without(run, *judging))}"


def pace_of(out: Path, run: Mapping[str, Any]) -> Path:
    """The file of a run's measured speed: the same for all seeds, budgets and speakers left out."""
    setup, others = Setup.of(run["settings"]).plain, (
        "row", "settings", "draws", "pairs", "seed", "seconds", "left_out",
    )  # fmt: skip
    return out / "pace" / f"{setup.objective.name}-{digest(asdict(setup), without(run, *others))}.json"


def without(run: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name not in names}


def digest(*parts: Any) -> str:
    """A short name for plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
