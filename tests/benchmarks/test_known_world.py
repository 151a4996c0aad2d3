"""The measures of the known world judge generators and models whose losses are known, and the benchmark runs."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.known_world import objectives as known_world
from benchmarks.known_world.cross_generation import cells, crossed, divergence, histograms, miscalibration, voice_ranks
from benchmarks.known_world.divergences import gap, likelihoods, weights
from benchmarks.known_world.world import Draws, Scores, World
from benchmarks.ledger import Ledger
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import OBJECTIVES
from mmseqvae.sequence import Sequence
from tests.exact import LOG_P, LOG_P_TWO_GIVEN_ONE, B, LinearDecoder, LinearEncoder, S, W, ppca_batch

WORLD = World()
NAMES = {"text": "one", "audio": "two"}


def exact_model() -> MultimodalVAE:
    """Multimodal pPCA under the names of the benchmark: its posteriors are the exact ones."""
    return (
        MultimodalVAE(
            {
                name: Modality(LinearEncoder(W[m], B[m], S[m]), LinearDecoder(W[m], B[m], S[m]))
                for name, m in NAMES.items()
            }
        )
        .double()
        .requires_grad_(False)
    )


class ExactScores(Scores):
    """log p of the pPCA observation in closed form."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def log_prob(self, *names: str) -> Tensor:
        return torch.full((self.rows,), LOG_P[tuple(sorted(NAMES[name] for name in names))], dtype=torch.float64)


def test_a_model_that_is_the_truth_loses_nothing() -> None:
    batch = {name: ppca_batch(3)[m] for name, m in NAMES.items()}
    model = exact_model()
    found = likelihoods(model, batch, ExactScores(3), 4000, model.generator(0))
    assert found["pair, standard"]["nats"] == pytest.approx(0, abs=1e-9)
    assert found["pair, standard"]["effective draws"] == pytest.approx(4000)
    for name in ("text given audio", "audio given text"):
        for kind in ("own", "written"):
            assert found[f"{name}, {kind}"]["nats"] == pytest.approx(0, abs=0.03)


def test_two_proposals_are_weighted_as_their_mixture() -> None:
    batch = {name: ppca_batch(2)[m] for name, m in NAMES.items()}
    model = exact_model()
    q, wide = model.posterior(batch), model.posterior(batch, [])
    found = weights(
        model, batch, ["audio"], model.posterior(batch, ["text"]).log_prob, [q, wide], 20_000, model.generator(0)
    )
    assert len(found) == 20_000
    lost = gap(torch.full((2,), LOG_P_TWO_GIVEN_ONE), found)
    assert lost["nats"] == pytest.approx(0, abs=0.02)
    assert lost["effective draws"] > 1000


class Oracle:
    """A generator that draws from the true conditional: a word of p(k | given), then an item of that word."""

    def __init__(self, world: World, pool: Draws) -> None:
        self.world, self.pool = world, pool

    def generate(
        self,
        batch: dict[str, Sequence],
        want: list[str],
        given: list[str],
        samples: int,
        decode: Any,
        random: torch.Generator,
    ) -> dict[str, Sequence]:
        (name,), (source,) = want, given
        posterior = self.world.word_posterior(Scores(WORLD, batch).of[source]).repeat_interleave(samples, 0)
        word = torch.multinomial(posterior, 1, generator=random).squeeze(1)
        rows = torch.stack(
            [torch.multinomial((self.pool.word == k).double(), len(word), generator=random) for k in range(5)]
        )
        return {name: self.pool.batch[name][rows[word, torch.arange(len(word))]]}


def judged(world: World) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """text to audio, audio to text and ranks of a generator that knows `world`, where WORLD is the truth."""
    test, random = WORLD.draw(400, seed=8), torch.Generator().manual_seed(0)
    oracle: Any = Oracle(world, world.draw(60_000, seed=9))
    true = Scores(WORLD, test.batch)
    return (
        crossed(oracle, WORLD, test, true, "text", 8, random),
        crossed(oracle, WORLD, test, true, "audio", 8, random),
        voice_ranks(oracle, WORLD, test, random),
    )


def test_the_true_conditional_is_found_faultless() -> None:
    to_audio, to_text, ranks = judged(WORLD)
    for found in (to_audio, to_text):
        assert found["coherent"] == pytest.approx(found["real coherent"], abs=0.02)
        assert abs(found["heard"]["nats"]) < 4 * found["heard"]["error"]
    assert to_audio["diversity"] == pytest.approx(1, abs=0.1)
    assert to_audio["voice entropy"] == pytest.approx(0, abs=0.1)
    for part in ("word lost", "voices lost", "voices invented"):
        assert to_audio[part] == pytest.approx(0, abs=0.03)
    for counts in ranks.values():
        assert abs(miscalibration(counts)) < 0.03


def test_one_voice_a_word_is_found_coherent_and_poor() -> None:
    single = World()
    single.speaker_std = 1e-3
    to_audio, _, ranks = judged(single)
    assert to_audio["coherent"] > 0.96
    assert to_audio["diversity"] < 0.1
    assert to_audio["voice entropy"] < -1
    assert to_audio["word lost"] < 0.03
    assert to_audio["voices lost"] > 1
    assert to_audio["heard"]["nats"] < -0.5  # likelier than real recordings are
    ((first, second),) = [ranks["voice"]]
    assert first[0] + first[-1] > 0.5 * sum(first)
    assert second[0] + second[-1] > 0.5 * sum(second)
    assert sum(ranks["likelihood"][0][:10]) > 0.55 * sum(ranks["likelihood"][0])


def test_miscalibration_is_the_divergence_from_flat_ranks() -> None:
    assert miscalibration([[500] * 20]) == pytest.approx(-19 / 20_000)
    assert miscalibration([[0] * 19 + [1000]]) == pytest.approx(math.log(20) - 19 / 2000)
    assert histograms(torch.tensor([[0, 19], [0, 3]]))[0] == [2] + [0] * 19
    flat = histograms(torch.randint(20, (5000, 40)))
    assert miscalibration(flat) == pytest.approx(0, abs=2e-4)


def test_counts_diverge_as_their_laws_do() -> None:
    assert divergence(torch.tensor([7, 3]), torch.tensor([70, 30])) == pytest.approx(0, abs=1e-3)
    assert divergence(torch.tensor([10**6, 0]), torch.tensor([10**6, 10**6])) == pytest.approx(math.log(2), abs=1e-4)
    counted = cells(torch.tensor([[-9.0, -9.0], [-2.4, -2.3], [2.4, 9.0], [0.1, -0.1]]))
    assert counted.reshape(8, 8).nonzero().tolist() == [[0, 0], [4, 3], [7, 7]]
    assert counted[0] == 2


def test_every_documented_objective_is_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert documented == {run.objective for run in known_world.RUNS.values()} <= set(OBJECTIVES)


@pytest.mark.parametrize("name", known_world.RUNS)
def test_every_run_learns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_world, "PAIRS", 5000)
    monkeypatch.setattr(known_world, "FITTED", 60)
    pairs = WORLD.draw(5000, seed=1)
    run = known_world.RUNS[name]
    if run.conditional:
        run = replace(run, conditional="mixture")  # a flow takes seconds, and has tests of its own
    model = known_world.fitted(known_world.optimised(run, pairs, 3, seed=0), run, pairs, seed=0)
    before = dict(known_world.optimised(run, pairs, 0, seed=0).named_parameters())
    changed = [n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])]
    assert set(model.conditionals) == ({"text", "audio"} if run.conditional else set())
    assert any("encoder" in n for n in changed)
    assert any("decoder" in n for n in changed)
    assert model.fitted is not None


def test_a_finished_run_is_kept_and_the_tables_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(known_world, "PAIRS", 5000)
    monkeypatch.setattr(known_world, "TEST", 60)
    monkeypatch.setattr(known_world, "CLOSE", {"coordinated 1"})
    arguments: dict[str, Any] = {"only": ["ELBO", "coordinated 1"], "speakers": [1], "seeds": [0, 1], "draws": 4}
    monkeypatch.setattr(known_world, "seconds_a_step", lambda run: 20.0)  # two steps
    known_world.main(**arguments, results=tmp_path, side_by_side=1)
    first = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "known_world.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "pace" not in line["run"]]
    assert [line["run"].get("name") for line in lines] == [None, "ELBO", "coordinated 1", "coordinated 1"]
    assert [line["run"].get("seed") for line in lines] == [None, 0, 0, 1]
    losses = [line["figures"]["likelihood"]["pair, standard"]["nats"] for line in lines[2:]]
    row = next(line for line in first.splitlines() if line.startswith("| coordinated 1 |"))
    assert f"| {sum(losses) / 2:.2f} (" in row
    assert (tmp_path / "known_world-smooth.md").read_text() == first
    assert (tmp_path / "known_world-smooth.png").stat().st_size > 10_000
    known_world.main(**{**arguments, "only": ["ELBO"]}, test_seed=3, results=tmp_path, side_by_side=1)  # other pairs
    assert (tmp_path / "known_world-smooth-3.md").read_text() == (again := capsys.readouterr().out)
    assert " --test-seed 3 " in again
    made = [json.loads(line) for line in (tmp_path / "known_world.jsonl").read_text().splitlines()]
    assert made[-1]["run"]["test_seed"] == 3
    assert made[-1]["figures"]["likelihood"] != lines[1]["figures"]["likelihood"]
    monkeypatch.setattr(known_world, "finished", lambda *run: pytest.fail("a finished run was made again"))
    known_world.main(**arguments, results=tmp_path, side_by_side=1)
    assert capsys.readouterr().out == first
    with pytest.raises(ValueError, match=r"there is no run \['nonsense'\]"):
        known_world.main(only=["nonsense"], results=tmp_path)


def test_for_equal_time_every_seed_makes_as_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(known_world, "PAIRS", 5000)
    monkeypatch.setattr(known_world, "TEST", 60)
    monkeypatch.setattr(known_world, "seconds_a_step", lambda run: 0.5 if run.objective == "elbo" else 0.25)
    only = ["ELBO", known_world.DEFAULT]
    known_world.main(only, speakers=[1], seeds=[0, 1], seconds=1.0, draws=4, results=tmp_path, side_by_side=1)
    lines = [json.loads(line) for line in (tmp_path / "known_world.jsonl").read_text().splitlines()]
    made = [(line["run"]["name"], line["steps"]) for line in lines if "steps" in line]
    assert made == [("ELBO", 2), (known_world.DEFAULT, 4), (known_world.DEFAULT, 4)]
    assert [line["seconds a step"] for line in lines if "pace" in line["run"]] == [0.5, 0.25]
    alike = replace(known_world.RUNS["ELBO"], conditional="mixture")  # trains alike, so it makes as many steps
    assert known_world.pace(alike, Ledger(tmp_path / "known_world.jsonl")) == 0.5
    page = (tmp_path / "known_world-smooth.md").read_text()
    assert page == capsys.readouterr().out
    assert "as many steps as take 1 CPU seconds, of 256 fresh pairs" in page


def test_the_pace_of_a_run_is_that_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_world, "PAIRS", 5000)
    monkeypatch.setattr(known_world, "PROBED", 3)
    assert 0 < known_world.seconds_a_step(known_world.RUNS["ELBO"]) < 5
