"""A trained model comes back from its folder as it was, and a damaged folder says what is wrong with it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmseqvae.config import LogMelConfig, ModelConfig
from mmseqvae.data import FrontEnd, SequenceDataset
from mmseqvae.data.dataset import Column
from mmseqvae.decoding import FrameSampling, Sampling, TokenSampling
from mmseqvae.features.arrays import FrameArrays
from mmseqvae.features.log_mel import LogMel
from mmseqvae.fusion import FUSIONS
from mmseqvae.inference.unimodal_posteriors import Conditional
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.build import build, start_prior
from mmseqvae.pipeline.dataset_posteriors import posteriors
from mmseqvae.pipeline.trained_model import Trained, load
from mmseqvae.tokenizers.characters import Tokenizer

SMALL = ModelConfig(
    latent=3, cell="lstm", token_embedding=4, token_encoder=6, token_decoder=6, frame_encoder=6, frame_inputs=5,
    frame_decoder=6, scale="predicted",
)  # fmt: skip
WORDS = ["one", "two", "näh"]


def untrained(config: ModelConfig = SMALL, components: int = 4) -> Trained:
    """A model of random weights over text, audio and arrays, with a prior fitted to noise."""
    random = np.random.default_rng(0)
    audio = LogMel(LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=10))
    waves = [random.normal(0, 0.1, 2000).astype(np.float32) for _ in range(3)]
    audio.fit(audio.features(wave) for wave in waves)
    motion = FrameArrays(2)
    motion.fit([random.normal(3, 2, (20, 2))])
    front_ends: dict[str, FrontEnd] = {"text": Tokenizer.train(WORDS), "audio": audio, "motion": motion}
    longest = {"text": 6, "audio": 12, "motion": 7}
    model = build(front_ends, longest, config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    if components:
        model.fit_prior(torch.randn(40, model.latent), components)
    return Trained(model.eval(), front_ends, longest, config)


@pytest.fixture
def trained() -> Trained:
    return untrained()


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    trained.save(tmp_path / "run")
    return tmp_path / "run"


def everything(trained: Trained) -> dict[str, list[Any]]:
    """What a user can get out of a model, each modality given, wanted, drawn and taken at its mode."""
    wave = np.sin(np.arange(1500) / 5).astype(np.float32)
    array = np.arange(8.0).reshape(4, 2)
    decode: dict[str, Sampling] = {
        "text": TokenSampling(temperature=1.0, top_k=3),
        "audio": FrameSampling(1.0, "draw"),
        "motion": FrameSampling(0.0),
    }
    return {
        "embedding": list(trained.embed([{"text": "one", "audio": wave}, {"motion": array}, {}])),
        **{f"given {n}": v for n, v in trained.generate(samples=2, decode=decode, seed=1, audio=wave).items()},
        **{f"sampled {n}": v for n, v in trained.sample(3, decode=decode, seed=2).items()},
        **{f"between {n}": v for n, v in trained.interpolate({"text": "one"}, {"motion": array}, 3, seed=3).items()},
    }


def assert_same(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> None:
    assert one.keys() == other.keys()
    for name, items in one.items():
        for a, b in zip(items, other[name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("components", [0, 4])
@pytest.mark.parametrize(
    "config", [SMALL, ModelConfig(latent=2, private=1, cell="tanh", bidirectional=False, reduction=1, scale="fixed")]
)
def test_what_was_saved_is_loaded_to_the_bit(config: ModelConfig, components: int, tmp_path: Path) -> None:
    before = untrained(config, components)
    before.save(tmp_path)
    after = load(tmp_path)
    assert_same(everything(before), everything(after))
    assert (after.config, after.longest) == (before.config, before.longest)
    assert not after.model.training
    after.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_is_saved_and_loaded(fusion: str, tmp_path: Path) -> None:
    before = untrained(replace(SMALL, fusion=fusion), 0)
    before.save(tmp_path)
    items = [{"text": "one", "motion": np.arange(8.0).reshape(4, 2)}, {"text": "two"}, {}]
    np.testing.assert_array_equal(load(tmp_path).embed(items), before.embed(items))


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_learnt_priors_are_saved_and_loaded(prior: str, tmp_path: Path) -> None:
    before = untrained(replace(SMALL, prior=prior, prior_components=3), 0)
    columns = {"text": Column.of([torch.tensor([n % 5, 0]) for n in range(8)], torch.zeros(0, dtype=torch.long))}
    dataset = SequenceDataset([str(i) for i in range(8)], 8 * [None], columns)
    start_prior(before.model, dataset)
    before.save(tmp_path)
    after, z = load(tmp_path), torch.randn(5, 3)
    assert str(after.model.prior) == str(before.model.prior)
    assert torch.equal(after.model.prior.log_prob(z), before.model.prior.log_prob(z))
    assert_same(before.sample(3, seed=1), after.sample(3, seed=1))
    assert list(after.model.state_dict()) == list(before.model.state_dict())
    if prior == "vamp":
        with pytest.raises(ValueError, match="needs as many training items, got 2"):
            start_prior(before.model, SequenceDataset(["a", "b"], 2 * [None], {"text": Column.of(
                2 * [torch.tensor([1, 0])], torch.zeros(0, dtype=torch.long))}))  # fmt: skip


def test_fitted_flows_and_conditionals_are_saved_and_loaded(tmp_path: Path) -> None:
    before = untrained(components=0)
    before.model.fit_prior(torch.randn(60, 3), 2, kind="flow")
    before.model.conditionals["text"] = Conditional(3, "flow", 2)
    before.model.conditionals["audio"] = Conditional(3, "mixture", 4)
    before.save(tmp_path)
    after, z = load(tmp_path), torch.randn(5, 3)
    assert str(after.model.prior) == str(before.model.prior)
    assert torch.equal(after.model.prior.log_prob(z), before.model.prior.log_prob(z))
    assert_same(before.sample(3, "text", seed=1), after.sample(3, "text", seed=1))
    np.testing.assert_array_equal(before.embed(text="one"), after.embed(text="one"))
    how: dict[str, Sampling] = {"motion": FrameSampling(0.0)}
    assert_same(*[t.generate("motion", 2, how, 1, audio=np.ones(900, np.float32)) for t in (before, after)])
    with pytest.raises(ValueError, match="kind must be one of mixture, flow, got 'histogram'"):
        before.model.fit_prior(torch.randn(60, 3), 2, kind="histogram")


def test_a_folder_of_the_first_format_is_read(folder: Path) -> None:
    before = everything(load(folder))

    def older(state: dict[str, Any]) -> None:
        state["format_version"], state["components"] = 1, state.pop("fitted")["components"]
        del state["conditionals"], state["model"]["fusion"], state["model"]["prior"]

    edited(older)(folder)
    assert_same(before, everything(load(folder)))


def test_seeds_repeat_and_differ(trained: Trained) -> None:
    made = [trained.generate("motion", 2, {"motion": FrameSampling(1.0)}, seed, text="one") for seed in (5, 5, 6)]
    assert_same(made[0], made[1])
    assert not np.array_equal(made[0]["motion"][0], made[2]["motion"][0])
    assert not np.array_equal(made[0]["motion"][0], made[0]["motion"][1])


def test_user_units(trained: Trained) -> None:
    """Sounds stay below the limit of their frames; arrays come back in the units in which they were given."""
    made = trained.sample(20, seed=0, decode={"motion": FrameSampling(0.0)})
    assert {type(item) for item in made["text"]} == {str}
    assert set("".join(made["text"])) <= set("".join(WORDS)) | {"\ufffd"}
    assert all(wave.dtype == np.float32 and len(wave) <= 12 * 100 for wave in made["audio"])
    batch = trained.model.sample(20, ["motion"], decode={"motion": FrameSampling(0.0)},
                                 generator=torch.Generator().manual_seed(0))  # fmt: skip
    front_end = trained.front_ends["motion"]
    assert isinstance(front_end, FrameArrays)
    alone = trained.sample(20, "motion", {"motion": FrameSampling(0.0)}, seed=0)["motion"]
    for item, frames in zip(alone, batch["motion"].items(), strict=True):
        np.testing.assert_allclose(item, frames * front_end.fitted.std + front_end.fitted.mean, rtol=1e-5)


def test_what_is_given_decides_and_none_is_missing(trained: Trained) -> None:
    one, two = trained.embed(text="one"), trained.embed(text="two")
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, trained.embed(text="one", audio=None))
    np.testing.assert_array_equal(trained.embed([{}]), np.zeros((1, 3)))
    np.testing.assert_allclose(trained.embed([{"text": "one"}, {"text": "two"}]), np.concatenate([one, two]), atol=1e-6)


@pytest.mark.parametrize(
    ("ask", "error", "complaint"),
    [
        (lambda t: t.generate(smell="x"), ValueError, "smell"),
        (lambda t: t.generate("smell", text="one"), ValueError, "want names .*smell"),
        (lambda t: t.generate(text=7), TypeError, "must be a string"),
        (lambda t: t.generate(audio="nowhere.wav"), ValueError, "nowhere.wav: file is missing"),
        (lambda t: t.generate(motion=np.zeros((3, 5))), ValueError, "has 5 channels"),
        (lambda t: t.sample(2, "text", {"audio": FrameSampling()}), ValueError, "decode names"),
        (lambda t: t.sample(2, "text", {"text": FrameSampling()}), ValueError, "drawn with TokenSampling"),
        (lambda t: t.interpolate({"text": "one"}, {"text": "two"}, 1), ValueError, "at least 2"),
    ],
)
def test_what_cannot_be_is_refused(
    ask: Callable[[Trained], object], error: type[Exception], complaint: str, trained: Trained
) -> None:
    with pytest.raises(error, match=complaint):
        ask(trained)


def test_posteriors_of_a_data_set_are_embeddings(trained: Trained) -> None:
    items = [{"text": word} for word in (*WORDS, "eno")]
    tokens = [trained.front_ends["text"].encode(item["text"]) for item in items]
    column = Column.of(tokens, torch.zeros(0, dtype=torch.long))
    dataset = SequenceDataset([str(i) for i in range(4)], 4 * [None], {"text": column})
    q = posteriors(trained.model, dataset)
    mean, logvar = q.mean, q.logvar
    np.testing.assert_allclose(mean, trained.embed(items), atol=1e-6)
    assert (logvar < 0).all()  # an expert times N(0, I) is narrower than N(0, I)
    with pytest.raises(ValueError, match=r"given names \['audio'\]"):  # a view that the data set does not hold
        posteriors(trained.model, dataset, ["audio"])


# ---------------------------------------------------------------------------------------------- damaged folders


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        change(state)
        (folder / "config.json").write_text(json.dumps(state), encoding="utf-8")

    return damage


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])

    return damage


def weights_without_one(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[min(weights)]
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (cut("config.json"), "config.json is damaged"),
        (cut("model.safetensors"), "model.safetensors is damaged"),
        (weights_without_one, "model.safetensors is damaged or does not fit config.json"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json is damaged"),
        (edited(lambda state: state.update(format_version=99)), "format_version 99; this release reads"),
        (edited(lambda state: state.pop("format_version")), "config.json is damaged"),
        (edited(lambda state: state.pop("front_ends")), "config.json is damaged.*front_ends"),
        (edited(lambda state: state["front_ends"]["text"].update(kind="smell")), "config.json is damaged.*smell"),
        (edited(lambda state: state["front_ends"]["text"].update(tokenizer={})), "config.json is damaged"),
        (edited(lambda state: state["front_ends"]["audio"]["config"].update(n_fft=3)), "config.json is damaged.*n_fft"),
        (edited(lambda state: state["model"].update(latent=4)), "does not fit config.json"),
        (edited(lambda state: state["model"].update(unheard=4)), "config.json is damaged.*unheard"),
        (edited(lambda state: state["longest"].pop("audio")), "config.json is damaged.*audio"),
        (edited(lambda state: state["fitted"].update(components=3)), "does not fit config.json"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(damage: Callable[[Path], None], complaint: str, folder: Path) -> None:
    load(folder)
    damage(folder)
    with pytest.raises(ValueError, match=f"(?s){folder}.*{complaint}"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"not the folder of a trained model: {name} is missing"):
        load(folder)


def test_an_interrupted_save_leaves_what_was_there(
    trained: Trained, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(load(folder))

    def full(weights: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("mmseqvae.pipeline.run_folder.save_file", full)
    with pytest.raises(OSError, match="no space"):
        untrained(ModelConfig(latent=2)).save(folder)
    assert_same(before, everything(load(folder)))


def test_a_model_without_a_modality_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="likelihood must be one of"):
        build({"motion": FrameArrays(2)}, {"motion": 3}, ModelConfig(likelihood="cauchy"))
    with pytest.raises(ValueError, match=r"fusion must be one of poe, .*, got 'sum'"):
        build({"motion": FrameArrays(2)}, {"motion": 3}, ModelConfig(fusion="sum"))
    with pytest.raises(ValueError, match=r"prior must be one of standard, .*, got 'flat'"):
        build({"motion": FrameArrays(2)}, {"motion": 3}, ModelConfig(prior="flat"))
    assert isinstance(build({"motion": FrameArrays(2)}, {"motion": 3}, SMALL), MultimodalVAE)
