"""The benchmark of objectives on recordings made here: every row trains, runs resume, the table says what they say."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ledger import Ledger
from benchmarks.quality import objectives, regularisation, trial
from benchmarks.quality.objectives_page import COLUMNS, beats, page, picture
from benchmarks.quality.parallel_runs import take_turns
from benchmarks.quality.trial import Setup
from mmseqvae.data import Corpus, prepare
from mmseqvae.priors import flows
from mmseqvae.priors.base import Prior, StandardNormal
from recipes import spoken_digits as recipe

TINY = [
    "model.latent=4", "model.token_embedding=4", "model.token_encoder=4", "model.token_decoder=4",
    "model.frame_encoder=4", "model.frame_inputs=4", "model.frame_decoder=4", "training.batch_size=16",
]  # fmt: skip
SMALL: dict[str, Any] = dict(map(objectives.parsed, TINY))


def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging takes seconds."""
    monkeypatch.setattr(trial, "NLL_DRAWS", 5)
    monkeypatch.setattr(regularisation, "NLL_DRAWS", 5)
    monkeypatch.setattr(flows, "EPOCHS", 2)


@pytest.fixture
def benchmark(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`objectives.main` on these recordings, in this process."""
    brief(monkeypatch)
    monkeypatch.setattr(recipe, "FSDD_SUMS", recordings.parent / "sums")
    return functools.partial(
        objectives.main, recordings, seconds=0.0, draws=2, pairs=3, side_by_side=1, options=TINY,
        cache_dir=recordings.parent / "cache", out=tmp_path / "out", results=tmp_path,
    )  # fmt: skip


@pytest.fixture
def corpus(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(recipe, "FSDD_SUMS", recordings.parent / "sums")
    cache = recordings.parent / "cache"
    return prepare(recipe.prepare_fsdd(cache, recordings, holdout=True), audio=recipe.AUDIO, cache_dir=cache)


def test_the_whole_benchmark_runs_and_what_is_finished_is_not_run_again(
    benchmark: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[Path] = []
    fit = trial.fit

    def counted(corpus: Corpus, folder: Path, **settings: Any) -> Any:
        fits.append(folder)
        assert "valid" not in corpus.datasets  # no training time goes there
        return fit(corpus, folder, **settings)

    monkeypatch.setattr(trial, "fit", counted)
    rows = ["mixture-100", "default"]
    benchmark(rows=rows)
    assert len(fits) == 1  # what is fitted after rests on the same training
    records = Ledger(tmp_path / "objectives.jsonl").records()
    assert [record["run"]["row"] for record in records] == rows
    plain, after = records
    assert plain["training"] == after["training"]
    assert plain["coherence"]["joint"].keys() == {"standard", "learnt", "fitted", "flow", "resampled", "word"}
    assert plain["likelihood"]["priors"] == after["likelihood"]["priors"]  # these read both modalities
    assert plain["coherence"]["text_to_audio"] is not None
    assert plain["judges"]["word"]["log_mel"]["of"] == 30
    assert plain["training"]["epochs"] == 1
    assert (tmp_path / "objectives.md").read_text().count("\n| mixture-100") == 1
    assert (tmp_path / "objectives-valid.png").stat().st_size > 10_000

    def again(*arguments: Any) -> None:
        raise ArithmeticError("it was finished")

    monkeypatch.setattr(objectives, "tried", again)
    benchmark(rows=rows)
    with pytest.raises(RuntimeError, match="it was finished"):
        benchmark(rows=["mixture-100"], seeds=[1])


def test_mixtures_and_private_latents_are_judged_too(benchmark: Callable[..., None], tmp_path: Path) -> None:
    benchmark(rows=["mmvae-plus"], options=[*TINY, "model.private=2"])
    (found,) = Ledger(tmp_path / "objectives.jsonl").records()
    assert "completed by the mixture" in found["coherence"]["joint"]["word"]["prior"]
    assert found["likelihood"]["priors"]["fitted"]["effective_draws"] >= 1


@pytest.mark.parametrize("name", objectives.ROWS)
def test_every_row_trains(name: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "PROBED", 2)
    settings = objectives.ROWS[name] | SMALL
    if "model.private" in settings:
        settings["model.private"] = 2
    if "model.prior_components" in settings:
        settings["model.prior_components"] = 5
    module = trial.probe(corpus, Setup.of(settings))
    before = [parameter.clone() for parameter in module.parameters()]
    assert 0 < trial.seconds_an_item(module, corpus.datasets["train"]) < 1
    assert any(not old.equal(new) for old, new in zip(before, module.parameters(), strict=True))


def test_settings_are_those_asked_for_and_mistakes_are_named() -> None:
    setup = Setup.of(objectives.row("coordinated", "joint", "vamp-7", detach=True) | {"training.l2": 0.5})
    assert (setup.model.fusion, setup.model.prior, setup.model.prior_components) == ("joint", "vamp", 7)
    assert setup.objective.options == {"detach": True}
    assert setup.training.l2 == 0.5
    for wrong in ("objective.betta", "beta", "objective.options", "model.latent.x", "optimiser.beta"):
        with pytest.raises(ValueError, match=f"there is no setting '{wrong}'"):
            Setup.of({wrong: 1})
    assert objectives.parsed("a.b=0.5") == ("a.b", 0.5)
    assert objectives.parsed("a.b=true") == ("a.b", True)
    assert objectives.parsed("a.b=poe") == ("a.b", "poe")
    with pytest.raises(ValueError, match="NAME=VALUE"):
        objectives.parsed("beta")
    with pytest.raises(ValueError, match=r"--rows names \['jmva'\]"):
        objectives.main(rows=["jmva"])


def test_the_budget_counts_pretraining_and_bounds_warm_ups() -> None:
    setup = Setup.of({"training.pretraining": 4, "training.warm_up": 100, "objective.beta_warm_up": 600})
    short = trial.shortened(setup, rows=640, epochs=10, seed=3)
    assert (short.training.epochs, short.training.pretraining, short.training.seed) == (6, 4, 3)
    assert (short.objective.beta_warm_up, short.training.warm_up) == (20, 6)  # of 60 steps
    assert trial.shortened(setup, rows=64_000, epochs=10, seed=3).objective.beta_warm_up == 600


def test_seeds_share_a_pace_and_what_comes_after_training_shares_the_training() -> None:
    run = {"row": "a", "settings": {"objective.name": "elbo"}, "seed": 0, "seconds": 9.0, "draws": 1, "pairs": 1}
    out = Path("out")
    after = run | {
        "row": "b",
        "settings": {"objective.name": "elbo", "training.unimodal_posteriors": "flow"},
        "draws": 2,
    }
    assert trial.folder_of(out, run) == trial.folder_of(out, after)
    assert trial.folder_of(out, run) != trial.folder_of(out, run | {"seed": 1})
    assert trial.folder_of(out, run) != trial.folder_of(out, run | {"share": 0.1})
    assert trial.pace_of(out, run) == trial.pace_of(out, after | {"seed": 1})
    assert trial.pace_of(out, run) != trial.pace_of(out, run | {"settings": {"objective.name": "mvae"}})


def test_a_prior_is_completed_in_what_it_does_not_know() -> None:
    class Ones(StandardNormal):
        def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
            return torch.ones(n, self.latent)

    known = torch.tensor([True, False, True])
    standard: Prior = StandardNormal(3)
    z = trial.Completed(Ones(3), known, standard).sample(500, torch.Generator().manual_seed(0))
    assert (z[:, known] == 1).all()
    assert abs(float(z[:, 1].mean())) < 0.2
    assert float(z[:, 1].std()) == pytest.approx(1, abs=0.2)
    assert (trial.Completed(Ones(3), known | True, standard).sample(5) == 1).all()


def failing(run: dict[str, Any]) -> dict[str, Any]:
    if run["seed"] == 1:
        raise ArithmeticError("seed 1 diverged")
    return {"found": math.sqrt(run["seed"])}


def test_one_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    runs = [{"seed": seed} for seed in range(4)]
    with pytest.raises(RuntimeError, match=r"(?s)1 run.*seed 1 diverged"):
        take_turns(failing, runs, ledger, side_by_side=1)
    assert [record["found"] for record in ledger.records()] == [0, math.sqrt(2), math.sqrt(3)]


def test_turns_in_processes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    take_turns(
        dict, [{"seed": seed} for seed in range(3)], ledger, side_by_side=2, together=lambda run: run["seed"] > 1
    )
    assert sorted(record["seed"] for record in ledger.records()) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------- the table


def share(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.01, "high": value + 0.03, "hits": 1, "of": 2}


def record(row: str, seed: int = 0, said: float = 0.9, diversity: float = 0.5, **settings: Any) -> dict[str, Any]:
    """What `tried` leaves, as far as the page reads it."""
    pairs = {"coherence": {"log_mel": share(0.8)}, "effective_words": 9.7, "prior": "mixture of 50"}
    nll = {"nll": 300.5, "standard_error": 4.2, "effective_draws": 12.0}
    judge = {"log_mel": share(0.99), "on": "300 recordings"}
    return {
        "run": {"row": row, "settings": objectives.ROWS[row] | settings, "seed": seed, "split": "test", "seconds": 120},
        "training": {"epochs": 30, "seconds": 118, "samples_a_second": 700, "parameters": 387052},
        "coherence": {
            "text_to_audio": {"noise 0.5": {"log_mel": share(said)}, "noise 1": {"log_mel": share(0.7)}},
            "variety": {"diversity": diversity, "copying": None},
            "audio_to_text": {"exact": share(0.995)},
            "audio_to_audio": {"digit_kept": {"log_mel": share(0.9)}, "speaker_kept": {"log_mel": share(0.9)}},
            "joint": {"standard": pairs, "fitted": pairs, "learnt": {**pairs, "coherence": {"log_mel": share(0.96)}}},
        },
        "speaker_kept_over_judge": 0.91,
        "likelihood": {"priors": {"standard": nll, "fitted": nll}},
        "latent": {"kl": {"joint": 40.0}},
        "judges": {"word": judge, "speaker": judge},
        "date": "2026-01-02", "torch": "2", "machine": "m",
    }  # fmt: skip


def peer(model: str) -> dict[str, Any]:
    joint = {name: {"coherence": share(0.3), "effective_words": 7.0} for name in ("prior", "fitted")}
    shares = dict.fromkeys(("text_to_audio", "audio_to_text", "audio_to_audio", "speaker_kept"), share(0.4))
    return {
        "run": {"model": model, "seed": 0, "seconds": 120, "split": "test"},
        "training": {"epochs": 7, "seconds": 120, "samples_a_second": 321.4, "parameters": 280761},
        "figures": {**shares, "diversity": 0.25, "joint": joint},
        "nll": {"prior": 2500.25, "fitted": 2400.75},
    }


def read(text: str) -> dict[str, dict[str, str]]:
    rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def test_the_table_gives_medians_bars_and_peers() -> None:
    records = [record("mopoe"), record("coordinated", 0, 0.97), record("coordinated", 1, 0.99, 0.7)]
    records += [record("coordinated", 2, 0.98, 0.66), record("coordinated", **{"objective.beta": 3.0})]
    found = read(page(records, [peer("MVAE")], objectives.ROWS))
    assert [*found] == ["**to reach**", "mopoe", "coordinated", "coordinated, beta 3.0", "MultiVae MVAE"]
    row = found["coordinated"]
    assert (row["seeds"], row["t->a .5"], row["diversity"]) == ("3", "**0.980** ±0.020", "**0.660**")
    assert (row["joint, N(0, I)"], row["joint, own"]) == ("0.800 ±0.020", "**0.960** ±0.020")
    assert (row["NLL, own"], row["+-"], row["draws"], row["copies: closer"]) == ("300.5", "4.2", "12.0", "")
    assert found["mopoe"]["t->a .5"] == "0.900 ±0.020"
    peers = found["MultiVae MVAE"]
    assert (peers["t->a .5"], peers["joint, own"], peers["NLL, own"]) == ("0.400 ±0.020", "0.300 ±0.020", "")
    assert found["**to reach**"]["copies: distance"] == ">= 0.8 <= 1.25"


def test_a_bar_has_two_sides() -> None:
    ratio = next(column for column in COLUMNS if column.name == "copies: distance")
    assert [ratio.met(value) for value in (0.79, 0.8, 1.25, 1.26)] == [False, True, True, False]
    assert not next(column for column in COLUMNS if column.name == "KL").met(1.0)


def test_the_picture_shows_every_row_and_the_best_of_them(tmp_path: Path) -> None:
    records = [record("mopoe", said=0.99, diversity=0.1), record("coordinated"), record("mvae", said=0.5)]
    picture(records, [peer("MVAE")], objectives.ROWS, "test", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert beats((0.9, 0.5), (0.9, 0.4))
    assert not beats((0.9, 0.5), (0.9, 0.5))
    assert not beats((0.9, 0.5), (0.8, 0.6))
