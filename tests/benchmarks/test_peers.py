"""The benchmark of peers: runs are resumed, its table says what its records say, and MultiVae is asked rightly."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ledger import Ledger
from benchmarks.peers import accuracy as peers


def record(model: str, seed: int = 0, seconds: float = 120, hits: float = 0.5) -> dict[str, Any]:
    share = {"value": hits, "low": 0.4, "high": 0.6, "hits": 5, "of": 10}
    joint = {name: {"coherence": share, "effective_words": 9.5} for name in ("prior", "fitted")}
    shares = dict.fromkeys(("text_to_audio", "audio_to_text", "audio_to_audio", "speaker_kept"), share)
    return {
        "run": {"model": model, "seed": seed, "seconds": seconds, "split": "test", "draws": 50, "pairs": 1000},
        "training": {"epochs": 7, "seconds": seconds, "samples_a_second": 321.4, "parameters": 280761},
        "figures": {**shares, "diversity": 0.25, "joint": joint},
        "nll": {"prior": 2500.25, "fitted": 2400.75},
    }


def test_the_table_holds_every_record_in_order():
    surroundings = {"date": "2026-01-02", "torch": "2", "multivae": "1.0.3", "machine": "m"}
    records = [
        {**record(*run), **surroundings} for run in [("MoPoE", 1), ("mmseqvae", 0), ("MoPoE", 0), ("MVAE", 0, 60)]
    ]
    text = peers.page(records)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == peers.COLUMNS
    assert all(len(row) == len(peers.COLUMNS) for row in rows[2:])
    assert [row[:2] for row in rows[2:]] == [["MoPoE", "0"], ["MoPoE", "1"], ["mmseqvae", "0"], ["MVAE", "0"]]
    named = dict(zip(peers.COLUMNS, rows[2], strict=True))
    assert named["text -> audio"] == "0.500 [0.400, 0.600]"
    assert named["joint NLL"] == "2500.2 / 2400.8"
    assert (named["minutes"], named["parameters"], named["diversity"]) == ("2.0", "280,761", "0.25")
    assert text.endswith("2026-01-02: torch 2, MultiVae 1.0.3, m")


class FakeBench:
    """Counts its runs and fails at the third."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, model: str, **settings: Any) -> dict[str, Any]:
        if len(self.ran) == 2:
            raise RuntimeError("interrupted")
        self.ran.append(model)
        found = record(model)
        return {name: found[name] for name in ("training", "figures", "nll")}


def test_a_run_that_was_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    benches: list[FakeBench] = []

    def prepare(*arguments: Any) -> FakeBench:
        benches.append(FakeBench())
        return benches[-1]

    monkeypatch.setattr(peers.Bench, "prepare", prepare)
    monkeypatch.setattr(peers.recipe, "prepare_fsdd", lambda *arguments: tmp_path)
    surroundings = {"date": "2026-01-02", "torch": "2", "multivae": "1.0.3", "machine": "m"}
    monkeypatch.setattr(peers, "surroundings", lambda: surroundings)
    with pytest.raises(RuntimeError, match="interrupted"):
        peers.main(models=["MVAE", "MoPoE", "MVTCAE"], results=tmp_path)
    peers.main(models=["MVAE", "MoPoE", "MVTCAE"], results=tmp_path)
    peers.main(models=["MVAE", "MoPoE", "MVTCAE"], results=tmp_path)
    assert [bench.ran for bench in benches] == [["MVAE", "MoPoE"], ["MVTCAE"]]
    assert [r["run"]["model"] for r in Ledger(tmp_path / "peers.jsonl").records()] == ["MVAE", "MoPoE", "MVTCAE"]
    assert (tmp_path / "peers.md").read_text().count("| test |") == 3
    # Another budget is another run.
    peers.main(models=["MVAE"], seconds=60, results=tmp_path)
    assert benches[-1].ran == ["MVAE"]


def test_a_model_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--models names \['JMVAE'\]"):
        peers.main(models=["MVAE", "JMVAE"], results=tmp_path)


# ------------------------------------------------------------------------------- what follows needs the extra `peers`

SHAPES = {"audio": (3, 4), "text": (2, 5)}


@pytest.fixture
def data() -> dict[str, torch.Tensor]:
    text = torch.nn.functional.one_hot(torch.randint(5, (8, 2)), 5).float()
    return {"audio": torch.randn(8, 3, 4), "text": text}


@pytest.fixture
def peer_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives an untrained peer of a kind, small and with so few latents that draws cover them."""
    pytest.importorskip("multivae")
    from benchmarks.peers import multivae_models

    monkeypatch.setattr(multivae_models, "UNITS", {"audio": 6, "text": 5})
    monkeypatch.setattr(multivae_models, "LATENT", 2)

    def build(name: str) -> Any:
        kind = multivae_models.KINDS[name]
        kind = replace(kind, private=min(kind.private, 1))
        return multivae_models.Peer(kind, multivae_models.build(kind, SHAPES), SHAPES)

    return build


@pytest.mark.parametrize("name", ["MVAE", "MMVAE", "MoPoE", "MVTCAE", "MMVAE+"])
def test_every_peer_answers_and_its_likelihood_is_a_bound(peer_of, data, name):
    peer = peer_of(name)
    made = peer.write(data, "text", "audio")
    assert made.shape == data["audio"].shape
    assert peer.write({"audio": data["audio"]}, "audio", "text").shape == data["text"].shape
    draws = peer.posterior_draws(data)
    assert {n: out.shape for n, out in peer.decode(draws).items()} == {n: x.shape for n, x in data.items()}
    assert peer.sample_prior(3).shape == (3, draws.shape[1])
    few, many = peer.joint_nll(data, 3)["prior"], peer.joint_nll(data, 300)["prior"]
    assert math.isfinite(few)
    assert many < few + 0.5  # the bound tightens with the draws


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("MVAE", "compute_joint_nll"), ("MoPoE", "compute_joint_nll_paper"), ("MVTCAE", "compute_joint_nll")],
)
def test_the_likelihood_is_that_of_multivae_where_its_own_is_right(peer_of, data, name, theirs):
    from multivae.data.datasets import MultimodalBaseDataset

    peer = peer_of(name)
    for encoder in peer.model.encoders.values():
        encoder.to_latent.bias.data[2:] = 2.0  # log-variance: with a proposal much narrower than N(0, I) nothing agrees
    expected = float(getattr(peer.model, theirs)(MultimodalBaseDataset(data), K=2000)) / 8
    assert peer.joint_nll(data, 2000)["prior"] == pytest.approx(expected, abs=0.05)


def test_the_likelihood_is_exact_where_nothing_depends_on_the_latent(peer_of, data):
    """With decoders that ignore z, log p(x) is their constant density, whatever the draws."""
    for name in ("MMVAE", "MMVAE+"):
        peer = peer_of(name)
        for decoder in peer.model.decoders.values():
            for parameter in decoder.parameters():
                parameter.data.zero_()
        exact = 0.5 * data["audio"].square().flatten(1).sum(1) + 6 * math.log(2 * math.pi) + 2 * math.log(5)
        assert peer.joint_nll(data, 1000)["prior"] == pytest.approx(float(exact.mean()), abs=0.1)


def test_multivae_trains_for_its_budget(peer_of, data):
    from benchmarks.peers import multivae_models

    kind = multivae_models.KINDS["MVAE"]
    before = torch.get_num_threads()
    model, how = multivae_models.train(kind, data, seconds=0.0, seed=0)
    assert how["epochs"] == 1
    assert how["parameters"] == sum(p.numel() for p in model.parameters())
    assert how["samples_a_second"] == pytest.approx(8 / how["seconds"])
    assert model.warmup == 0
    assert torch.get_num_threads() == before
    assert multivae_models.rescaling({"audio": (64, 40), "text": (6, 17)}) == {"audio": 1.0, "text": 2560 / 102}
    assert model.rescale_factors == multivae_models.rescaling(SHAPES)
