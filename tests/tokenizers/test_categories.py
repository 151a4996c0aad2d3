"""Labels as a modality and covariates that only condition: from a manifest, through training, to the command line."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmseqvae.cli.commands import main
from mmseqvae.config import ModelConfig, TrainingConfig
from mmseqvae.data import Corpus, ManifestError, encode_items, front_end_from_dict, prepare
from mmseqvae.decoders import TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.evaluation.probe import label_probabilities
from mmseqvae.evaluation.summary import evaluate
from mmseqvae.pipeline.build import build
from mmseqvae.pipeline.trained_model import Trained, load
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.categories import Category, Labels
from mmseqvae.training.trainer import fit

SMALL = ModelConfig(
    latent=4, token_embedding=8, token_encoder=8, token_decoder=16, frame_encoder=8, frame_inputs=8, frame_decoder=16
)
STILL = {"move": FrameSampling(noise=0)}
NAMES = ["theo", "Zoë", "a b\nc", "</s>", "<unk>"]

# Front ends


def test_a_label_is_one_token_and_an_end_whatever_it_spells() -> None:
    labels = Labels.train([*NAMES, *NAMES])
    assert labels.vocabulary_size == len(NAMES) + 2
    for name in NAMES:
        first, end = labels.encode(name).tolist()
        assert end == labels.end_id
        assert first not in (labels.end_id, labels.unknown_id)
        assert labels.decode([first, end]) == name
        assert not labels.unknown(name)
    assert labels.encode(" Zoe\N{COMBINING DIAERESIS}\n").tolist() == labels.encode("Zoë").tolist()
    assert labels.encode("the").tolist() == [labels.unknown_id, labels.end_id]
    assert labels.unknown("the") == {"the": 1}
    restored = front_end_from_dict(json.loads(json.dumps(labels.to_dict())))
    assert isinstance(restored, Labels)
    assert restored.symbols == labels.symbols == Labels.train(NAMES[::-1]).symbols
    assert restored.encode("a b\nc").tolist() == labels.encode("a b\nc").tolist()


def test_a_covariate_is_one_token_and_what_is_unknown_is_none() -> None:
    category = Category.train(NAMES)
    assert (
        sorted(category.encode(name).item() for name in NAMES) == list(range(5)) == [*range(category.vocabulary_size)]
    )
    assert [category.decode(category.encode(name)) for name in NAMES] == NAMES
    assert len(category.encode("the")) == 0
    assert (category.unknown("the"), category.unknown("theo")) == ({"the": 1}, {})
    restored = front_end_from_dict(category.to_dict())
    assert isinstance(restored, Category)
    assert [restored.encode(name).tolist() for name in NAMES] == [category.encode(name).tolist() for name in NAMES]


@pytest.mark.parametrize("kind", [Labels, Category])
def test_what_is_no_label_is_refused(kind: type[Labels] | type[Category]) -> None:
    with pytest.raises(TypeError, match="must be a string, got int"):
        kind.train(["a", 7])
    with pytest.raises(ValueError, match="no labels"):
        kind.train([])
    with pytest.raises(ValueError, match="a label is empty: leave it out"):
        kind.train(["a"]).encode(" ")


def test_the_law_of_labels_sums_to_one_and_their_end_is_free() -> None:
    """[label, </s>] for every label, and </s> alone, are all there is: the first token is a plain softmax."""
    labels = Labels.train(NAMES)
    model = build({"who": labels}, {}, SMALL).double().eval()
    decoder = model.modalities.decoder("who")
    assert isinstance(decoder, TokenDecoder)
    every = [torch.tensor([n, labels.end_id]) for n in range(1, labels.vocabulary_size)] + [
        torch.tensor([labels.end_id])
    ]
    x = Sequence.from_list(every, torch.zeros(0, dtype=torch.long))
    z = torch.randn(4, dtype=torch.double).expand(len(x), -1)
    nats = decoder.log_prob(z, x)
    assert not nats[:, 1].any()
    torch.testing.assert_close(nats.sum(1).exp().sum(), torch.ones((), dtype=torch.double))
    logits, _ = decoder.step(z[:1], torch.tensor([decoder.start_token]), decoder.net.begin(z[:1]))
    torch.testing.assert_close(nats[:-1, 0], logits.log_softmax(-1)[0, 1:])
    made = model.sample(200, generator=model.generator(0))["who"]
    assert made.lengths.max() <= 2


# From a manifest


def moves(folder: Path) -> Path:
    """48 arrays [T, 2]: `mood` is the level of the first channel, `place` that of the second; some cells are empty."""
    random = np.random.default_rng(0)
    rows = [("id", "move", "mood", "place", "split", "void")]
    for item in range(48):
        mood, place = item % 2, item // 2 % 2
        np.save(folder / f"{item}.npy", random.normal([4 * mood, 4 * place], 1, (4 + item % 3, 2)).astype(np.float32))
        split = "valid" if item >= 40 else "train"
        who = "nowhere" if item == 47 else "" if item % 12 == 5 else ("near", "far")[place]
        rows.append((str(item), f"{item}.npy", "" if item == 3 else ("low", "high")[mood], who, split, ""))
    with (folder / "moves.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "moves.csv"


def get(manifest: Path, **columns: Any) -> Corpus:
    chosen = {"frames": ["move"], "labels": ["mood"], "covariates": ["place"], **columns}
    return prepare(manifest, cache_dir=manifest.parent / "cache", workers=0, **chosen)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moves(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def corpus(manifest: Path) -> Corpus:
    return get(manifest)


def test_columns_become_tokens_and_what_is_unknown_or_empty_is_missing(corpus: Corpus, manifest: Path) -> None:
    assert list(corpus.front_ends) == ["move", "mood", "place"]
    train, valid = corpus.datasets["train"], corpus.datasets["valid"]
    mood, place = corpus.front_ends["mood"], corpus.front_ends["place"]
    assert isinstance(mood, Labels)
    assert isinstance(place, Category)
    batch = train.__getitems__([0, 3, 2, 5])
    low, far = mood.encode("low").tolist(), place.encode("far").item()
    assert batch["mood"].values[0].tolist() == low
    assert batch["mood"].lengths.tolist() == [2, 0, 2, 2]
    assert batch["place"].values[2].tolist() == [far]
    assert batch["place"].lengths.tolist() == [1, 1, 1, 0]
    assert valid.lengths("place").tolist() == [1, 0, 1, 1, 1, 1, 1, 0]  # one empty, one that training never saw
    assert corpus.unknown == {"place": {"nowhere": 1}}
    again = prepare(manifest, front_ends=corpus.front_ends, cache_dir=manifest.parent / "cache")
    for name, column in again.datasets["valid"].columns.items():
        assert np.array_equal(column.lengths, valid.columns[name].lengths)
    items = encode_items(corpus.front_ends, [{"mood": "low", "place": "far"}, {"place": "nowhere"}, {}])
    assert items["mood"].lengths.tolist() == [2, 0, 0]
    assert items["place"].lengths.tolist() == [1, 0, 0]


def test_numbers_of_json_are_labels_too_and_a_text_may_be_a_label(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a", "who": who, "split": "train"}) for who in (7, "7 ", 8)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    corpus = prepare(tmp_path / "m.jsonl", labels=["text"], covariates=["who"], cache_dir=tmp_path)
    batch = corpus.datasets["train"].__getitems__([0, 1, 2])
    assert batch["who"].values.tolist() == [[0], [0], [1]]
    assert batch["text"].values.tolist() == 3 * [[2, 0]]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"covariates": ["speaker"]}, r"moves\.csv: has no column 'speaker'; its columns are"),
        ({"labels": ["speaker"]}, r"moves\.csv: has no column 'speaker'; its columns are"),
        ({"covariates": ["mood"]}, "column 'mood' cannot be both labels and covariate"),
        ({"covariates": ["move"]}, "column 'move' cannot be both frames and covariate"),
        ({"covariates": ["text"]}, "column 'text' cannot be both tokens and covariate"),
        ({"covariates": ["void"]}, "column 'void' is empty in every row of the split train"),
        ({"labels": ["void"]}, "column 'void' is empty in every row of the split train"),
        ({"covariates": ["split"]}, "column 'split' cannot be a modality or covariate"),
        ({"covariates": "place"}, r"covariate \('place'\): lists of column names are needed"),
        ({"frames": [], "labels": []}, "none of the modalities"),
        ({"frames": []}, r"line 5 \(id 3\): has no modality at all \(mood are empty\)"),
    ],
)
def test_columns_that_cannot_be_used_are_one_error(columns: dict[str, Any], complaint: str, manifest: Path) -> None:
    with pytest.raises(ValueError, match=complaint) as error:
        get(manifest, **columns)
    assert isinstance(error.value, ManifestError) or "cannot" in complaint or "lists" in complaint


# Models


@pytest.fixture(scope="module")
def untrained(corpus: Corpus) -> Trained:
    """Random weights."""
    torch.manual_seed(0)
    longest = {"move": 9}
    model = build(corpus.front_ends, longest, SMALL)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return Trained(model.eval(), corpus.front_ends, longest, SMALL)


def test_a_covariate_changes_what_is_written_and_nothing_else(untrained: Trained) -> None:
    model = untrained.model
    near, far, nobody = (
        untrained.generate("move", 2, STILL, 0, mood="low", **place)["move"]
        for place in ({"place": "near"}, {"place": "far"}, {})
    )
    for a, b in ((near, far), (near, nobody), (far, nobody)):
        assert a[0].shape != b[0].shape or not np.allclose(a[0], b[0], atol=1e-3)
    assert model.readable == model.writable == ["move", "mood"]
    for place in ("near", "far"):
        np.testing.assert_array_equal(untrained.embed(mood="low", place=place), untrained.embed(mood="low"))
    item = {"move": np.ones((5, 2)), "mood": "low", "place": "far"}
    batch = encode_items(untrained.front_ends, [item])
    z = torch.randn(3, 1, 4)
    expected = model.modalities.decoder("move").log_prob(
        torch.cat([z, model.covariates["place"].embedding.weight[batch["place"].values[0, 0]].expand(3, 1, -1)], -1),
        batch["move"],
    )
    torch.testing.assert_close(model.log_likelihood(z, batch)["move"], expected.sum(-1))


def test_a_missing_or_unseen_covariate_is_the_unknown_row(untrained: Trained) -> None:
    model = untrained.model
    batch = encode_items(untrained.front_ends, [{}, {"place": None}, {"place": "nowhere"}, {"place": "near"}])
    unknown, near = model.covariates["place"].embedding.weight[-1], model.covariates["place"].embedding.weight[1]
    context = model.context(batch, 4)
    assert context is not None
    assert torch.equal(context, torch.stack([unknown, unknown, unknown, near]))
    made = [untrained.generate("move", 1, STILL, 0, mood="high", **place)["move"][0]
            for place in ({}, {"place": None}, {"place": "nowhere"})]  # fmt: skip
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])


def test_the_prior_and_the_line_between_items_are_conditioned(untrained: Trained) -> None:
    z = untrained.model.prior.sample(2, untrained.model.generator(5))
    for place, row in (("far", 0), ("near", 1)):
        context = untrained.model.covariates["place"].embedding.weight[row].expand(2, -1)
        expected = untrained.model.decode(z, ["mood"], context=context)["mood"]
        assert untrained.sample(2, "mood", seed=5, place=place)["mood"] == [
            untrained.front_ends["mood"].decode(item) for item in expected.items()
        ]
    ends = untrained.interpolate({"mood": "low", "place": "near"}, {"mood": "low", "place": "far"}, 3, "move", STILL)
    for end, place in ((0, "near"), (-1, "far")):
        context = untrained.model.context(encode_items(untrained.front_ends, [{"place": place}]), 1)
        mean = torch.from_numpy(untrained.embed(mood="low"))
        made = untrained.model.decode(mean, ["move"], STILL, context=context)["move"].values[0]
        front_end = untrained.front_ends["move"]
        np.testing.assert_allclose(ends["move"][end], front_end.decode(made), atol=1e-5)
    with pytest.raises(ValueError, match=r"\['mood'\] are no covariates of this model; it has \['place'\]"):
        untrained.sample(2, mood="low")
    with pytest.raises(ValueError, match=r"\['size'\] are no modalities"):
        untrained.generate("move", size="big")


def test_the_law_of_labels_is_what_generated_ones_follow(untrained: Trained) -> None:
    model, labels = untrained.model, untrained.front_ends["mood"]
    assert isinstance(labels, Labels)
    items = [{"move": np.ones((5, 2)), "place": "far"}, {"move": np.full((3, 2), 4.0), "mood": "high"}, {}]
    batch = encode_items(untrained.front_ends, items)
    n = 4000
    distribution = label_probabilities(model, labels, batch, "mood", ["move"], n, model.generator(0))
    torch.testing.assert_close(distribution.sum(1), torch.ones(3))
    assert distribution.shape == (3, labels.vocabulary_size)
    assert not distribution[:, [labels.end_id, labels.unknown_id]].any()
    made = model.generate(batch, ["mood"], ["move"], n, {"mood": TokenSampling(temperature=1)}, model.generator(1))
    first = made["mood"].values[:, 0].reshape(3, n)
    for k in range(labels.vocabulary_size):  # one label is always written, and one that training saw
        torch.testing.assert_close(distribution[:, k], (first == k).float().mean(1), atol=0.03, rtol=0)
    assert (made["mood"].lengths == Labels.STEPS).all()
    assert (
        distribution[0].argmax() != distribution[1].argmax() or (distribution[0] - distribution[1]).abs().max() > 0.01
    )  # what is given matters
    unseen = encode_items(untrained.front_ends, [{**item, "mood": "low"} for item in items])
    again = label_probabilities(model, labels, unseen, "mood", ["move"], n, model.generator(0))
    torch.testing.assert_close(again, distribution)  # the label itself is not looked at
    with pytest.raises(ValueError, match="place"):
        label_probabilities(model, labels, batch, "place", ["move"])


def test_labels_and_covariates_are_saved_and_loaded(untrained: Trained, tmp_path: Path) -> None:
    untrained.save(tmp_path)
    after = load(tmp_path)
    assert [type(end) for end in after.front_ends.values()] == [type(end) for end in untrained.front_ends.values()]
    for given in ({"mood": "low", "place": "far"}, {"move": np.ones((4, 2)), "place": "near"}, {"place": "far"}):
        one, other = (each.generate(["move", "mood"], 3, seed=1, **given) for each in (untrained, after))
        assert one["mood"] == other["mood"]
        for a, b in zip(one["move"], other["move"], strict=True):
            np.testing.assert_array_equal(a, b)


def test_training_classifies_and_generates_by_label_and_covariate(corpus: Corpus, tmp_path: Path) -> None:
    """Classification is cross-modal generation; what a covariate says need not be in the latent."""
    training = TrainingConfig(epochs=20, batch_size=8, warm_up=2, fitted_components=2, learning_rate=2e-2, threads=1)
    trained = fit(corpus, tmp_path / "run", model=SMALL, training=training, progress=False)
    assert trained.longest.keys() == {"move"}
    for mood, level in (("low", 0), ("high", 4)):
        assert trained.generate("mood", move=np.tile([level, 4.0], (6, 1)), seed=0)["mood"] == [mood]
        for place, shift in (("near", 0), ("far", 4)):
            made = np.concatenate(trained.generate("move", 20, STILL, 0, mood=mood, place=place)["move"]).mean(0)
            np.testing.assert_allclose(made, [level, shift], atol=1.2)
    figures = evaluate(trained, corpus.datasets["valid"], draws=5, progress=False)
    written = figures["tokens"]["mood"]["from move"]
    assert written["exact"]["value"] == 1
    assert written["character_error_rate"] is None


def test_covariates_of_one_model_are_labels_of_another(manifest: Path, tmp_path: Path) -> None:
    corpus = get(manifest, labels=["mood", "place"], covariates=[])
    training = TrainingConfig(epochs=1, batch_size=20, fitted_components=2, threads=1)
    trained = fit(corpus, tmp_path / "run", model=SMALL, training=training, progress=False)
    assert trained.model.readable == ["move", "mood", "place"]
    assert not trained.model.covariates
    assert set(trained.sample(9, "place", seed=0)["place"]) <= {"near", "far", "", "\ufffd"}


# The command line

TINY = ["--model.latent=3", "--model.frame-encoder=4", "--model.frame-decoder=4", "--training.epochs=1",
        "--training.batch-size=20", "--training.fitted_components=2", "--training.threads=1"]  # fmt: skip


def test_commands_take_labels_and_covariates(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cache = str(tmp_path / "run"), ["--cache-dir", str(manifest.parent / "cache")]
    columns = ["--frames", "move", "--labels", "mood", "--covariates", "place"]
    main(["train", str(manifest), "--out", run, *columns, *cache, *TINY])
    made = {}
    for name, how in {
        "label": ["--given", "mood=low", "--covariates", "place=far"],
        "near": ["--sample=2", "--covariates", "place=near", "--want", "move", "--noise=0"],
        "far": ["--sample=2", "--covariates", "place=far", "--want", "move", "--noise=0"],
    }.items():
        main(["generate", run, *how, "--out", str(tmp_path / name)])
        with (tmp_path / name / "index.csv").open(encoding="utf-8") as file:
            made[name] = list(csv.DictReader(file))
    assert [(row["mood"], row["place"], row["move"]) for row in made["label"]] == [
        ("low", "far", f"move-00{i}.npy") for i in range(1, 6)
    ]
    assert {row["place"] for row in made["near"]} == {"near"}
    assert not np.array_equal(*(np.load(tmp_path / name / "move-001.npy")[:1] for name in ("near", "far")))
    main(["embed", run, str(tmp_path / "label" / "index.csv"), "--out", str(tmp_path / "z.npz"), *cache])
    assert np.load(tmp_path / "z.npz")["means"].shape == (5, 3)
    main(["evaluate", run, str(manifest), "--split=valid", "--draws=2", *cache])
    capsys.readouterr()
    for how, complaint in {
        "size=big": "size is given by --covariates, but is no covariate of this run for that; it has place",
        "place": "--covariates place: NAME=VALUE is needed",
    }.items():
        with pytest.raises(SystemExit):
            main(["generate", run, "--sample=1", "--covariates", how])
        assert complaint in capsys.readouterr().err
