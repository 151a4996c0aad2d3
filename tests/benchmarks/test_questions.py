"""Few pairs, speakers left out and penalties: what is trained on, what is measured, and tables of what was found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ledger import Ledger
from benchmarks.quality import few_pairs as pairs
from benchmarks.quality import regularisation, speakers
from benchmarks.quality.corpus_and_judges import Place
from mmseqvae.data import SequenceDataset
from recipes import spoken_digits as recipe
from tests.benchmarks.test_objectives import TINY, brief, record, share


@pytest.fixture
def settings(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of any of the three, on recordings made here and in this process."""
    monkeypatch.setattr(recipe, "FSDD_SUMS", recordings.parent / "sums")
    brief(monkeypatch)
    return {
        "data_dir": recordings, "seconds": 0.0, "draws": 2, "pairs": 3, "side_by_side": 1, "options": TINY,
        "cache_dir": recordings.parent / "cache", "out": tmp_path / "out", "results": tmp_path,
    }  # fmt: skip


@pytest.fixture
def place(settings: dict[str, Any]) -> Place:
    return Place.prepare(settings["data_dir"], True, "valid", settings["cache_dir"], settings["out"])


def values(dataset: SequenceDataset, row: int) -> dict[str, Any]:
    return {name: sequence.items()[0].tolist() for name, sequence in dataset[row].items()}


def test_broken_pairs_are_halves_of_their_own(place: Place) -> None:
    whole = place.corpus.datasets["train"]  # 42 items, 14 of each word
    broken = pairs.broken_pairs(whole, 0.2, seed=1)
    together = pairs.both(broken)
    assert int(together.sum()) == 9
    assert [broken.labels[row] for row in np.flatnonzero(together)].count("0") == 3  # of every word as many
    assert len(broken) == 9 + 2 * 33
    assert {broken.lengths(name)[~together].astype(bool).sum() for name in ("text", "audio")} == {33}
    seen = {name: [] for name in ("text", "audio")}
    for row in range(len(broken)):
        origin = values(whole, whole.ids.index(broken.ids[row].split(" ")[0]))
        for name, found in values(broken, row).items():
            assert found in ([], origin[name])
            seen[name] += [broken.ids[row].split(" ")[0]] if found else []
    assert all(sorted(ids) == sorted(whole.ids) for ids in seen.values())  # nothing is lost and nothing comes twice
    assert pairs.broken_pairs(whole, 0.2, seed=1).ids == broken.ids != pairs.broken_pairs(whole, 0.2, seed=2).ids
    assert pairs.broken_pairs(whole, 1.0, seed=1).ids == whole.ids
    assert int(pairs.both(pairs.broken_pairs(whole, 1e-6, seed=0)).sum()) == 3
    with pytest.raises(ValueError, match="every item has all"):
        pairs.broken_pairs(broken, 0.5, seed=0)


def test_few_pairs_train_and_are_judged(settings: dict[str, Any], tmp_path: Path) -> None:
    pairs.main(**settings, rows=["coordinated-after-mixture"], shares=[0.1])
    (found,) = Ledger(tmp_path / "pairs.jsonl").records()
    assert found["items"] == {"pairs": 3, "all": 3 + 2 * 39}
    assert found["coherence"]["audio_to_text"]["exact"]["of"] == 30
    assert "| 10% | 1 | 3 |" in (tmp_path / "pairs.md").read_text()
    with pytest.raises(ValueError, match=r"\(0, 1\], got \[10.0\]"):
        pairs.main(**settings, shares=[10.0])


def test_a_fold_has_the_left_out_speaker_in_nothing_but_what_is_measured(place: Place) -> None:
    corpus = speakers.fold(place, "ann")
    train, test = corpus.datasets["train"].ids, corpus.datasets["test"].ids
    assert sorted({id.split("_")[1] for id in train}) == ["bob"]
    assert sorted({id.split("_")[1] for id in test}) == ["ann"]
    assert {int(id.split("_")[2]) for id in test} == set(range(5, 10))  # the split's takes, here those of valid
    assert {int(id.split("_")[2]) for id in train} == set(range(10, 17))


def test_speakers_are_left_out_one_by_one(settings: dict[str, Any], tmp_path: Path) -> None:
    speakers.main(**settings)
    found = Ledger(tmp_path / "speakers.jsonl").records()
    assert [(r["run"]["left_out"], r["run"]["row"]) for r in found] == [
        ("ann", "default"), ("ann", "classifier"), ("bob", "default"), ("bob", "classifier"),
    ]  # fmt: skip
    assert all(r["coherence"]["audio_to_text"]["exact"]["of"] == 15 for r in found)


def test_the_classifier_learns_what_it_hears(place: Place) -> None:
    """Three pure tones are told apart by whoever listens, also in another voice."""
    settings = {
        "objective.name": "elbo",
        "objective.beta": 0.0,
        "model.latent": 8,
        "training.batch_size": 8,
        "training.learning_rate": 0.01,
    }
    run = {"settings": settings, "seed": 0, "seconds": 1.5}
    found = speakers.classified(run, speakers.fold(place, "ann"))
    assert found["coherence"]["audio_to_text"]["exact"]["value"] > 0.6


def test_shares_of_folds_are_counted_together() -> None:
    def counted(hits: int, of: int) -> dict[str, Any]:
        return {"coherence": {"audio_to_text": {"exact": {"hits": hits, "of": of}}}}

    path = speakers.SHARES["a->t"]
    together = speakers.pooled([counted(9, 10), counted(5, 10)], path)
    assert (together.hits, together.total) == (14, 20)
    assert speakers.middle([speakers.pooled([{}], path)]) == ""
    three = [speakers.pooled([counted(hits, 100)], path) for hits in (90, 95, 99)]
    assert speakers.middle(three).startswith("0.950 ±0.04")


def test_folds_stand_in_one_table_with_the_classifier() -> None:
    records = []
    for voice, hits in (("ann", 0.8), ("bob", 0.9)):
        one = record("coordinated")
        one["coherence"]["audio_to_text"] = {"exact": share(hits) | {"hits": int(10 * hits), "of": 10}}
        only = {"coherence": {"audio_to_text": {"exact": share(1.0) | {"hits": 10, "of": 10}}}}
        settings = {"objective.name": "elbo"}
        run = one["run"] | {"left_out": voice}
        records += [one | {"run": run}, only | {"run": run | {"row": "classifier", "settings": settings}}]
    text = speakers.page(records)
    assert "| test | coordinated | 1 | 2 | 0.850 ±" in text
    assert "| test | classifier | 1 | 2 | 1.000 ±" in text
    assert "| test | coordinated | 0.800 ±" in text


def test_penalties_are_measured_on_what_was_seen_and_what_was_not(settings: dict[str, Any], tmp_path: Path) -> None:
    regularisation.main(**settings, penalties=["l2 0.1"], split="test")
    (penalised,) = Ledger(tmp_path / "regularisation.jsonl").records()
    assert penalised["run"]["settings"]["training.l2"] == 0.1
    assert penalised["training"]["epochs"] == 1
    assert penalised["learnt"]["coherence"]["audio_to_text"]["exact"]["of"] == 30
    with pytest.raises(ValueError, match=r"--penalties names \['l3'\]"):
        regularisation.main(**settings, penalties=["l3"])


def test_the_gap_is_what_unseen_items_cost_more() -> None:
    found = record("coordinated")
    found["run"] |= {"penalty": "l2 0.1", "settings": found["run"]["settings"] | {"training.l2": 0.1}}
    learnt = {"standard": {"nll": 250.0, "standard_error": 1.0, "effective_draws": 9.0}}
    found["learnt"] = {"likelihood": {"priors": learnt}, "coherence": {"audio_to_text": {"exact": share(0.999)}}}
    text = regularisation.page([found])
    row = dict(
        zip(*[line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")], strict=True)
    )
    assert (row["row"], row["gap"], row["seen: NLL"], row["NLL, own"]) == (
        "coordinated: l2 0.1",
        "50.5",
        "250.0",
        "300.5",
    )


def test_some_items_are_themselves(place: Place) -> None:
    whole = place.corpus.datasets["train"]
    few = regularisation.some(whole, 5, seed=0)
    assert len(few) == len(set(few.ids)) == 5
    assert all(values(few, row) == values(whole, whole.ids.index(few.ids[row])) for row in range(5))
