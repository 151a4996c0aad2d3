"""Words, bytes and byte pairs: exact round trips in any script, ends that nothing forges, and the way through a run."""

import csv
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseqvae.cli.commands import main
from mmseqvae.config import UNITS, TextConfig
from mmseqvae.data import front_end_from_dict, prepare
from mmseqvae.pipeline.trained_model import load
from mmseqvae.tokenizers.characters import Tokenizer
from mmseqvae.tokenizers.words_bytes_bpe import TOKENIZERS, BytePairs, Bytes, Spaces, Words, train_tokenizer

TEXTS = [
    "so, why don't we? why don't we!",
    "你好，中文 abc",
    "مرحبا بالعربية، می\N{ZERO WIDTH NON-JOINER}روم",
    "שלום \N{RIGHT-TO-LEFT MARK}(עולם)",
    "नमस्ते दुनिया",
    "👩\N{ZERO WIDTH JOINER}👩\N{ZERO WIDTH JOINER}👧 🎉🎉🏳️\N{ZERO WIDTH JOINER}🌈",
    "e\N{COMBINING ACUTE ACCENT} e\N{COMBINING DOT BELOW}\N{COMBINING ACUTE ACCENT} \N{COMBINING ACUTE ACCENT}a",
    " two  spaces\n\tlines\r\n\N{IDEOGRAPHIC SPACE}end ",
    "",
    "a</s>b<unk> </s> <unk>",
]
FORGERIES = ["</s>", " </s>", "</s></s>", "a</s>", "<unk>", "\N{FULLWIDTH LESS-THAN SIGN}/s>", "</s\u0301>"]
anything = st.text(st.characters(exclude_categories=["Cs"]))


def normal(text: str, units: str) -> str:
    """What a round trip gives back."""
    nfc = unicodedata.normalize("NFC", text)
    if units not in ("words", "spaces"):
        return nfc
    return re.sub("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+", " ", nfc).strip(" ")


def test_the_names_of_units_are_those_of_the_configuration() -> None:
    assert sorted(TOKENIZERS) == sorted(UNITS)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_of_known_text_ends_once(units: str, text: str) -> None:
    tokenizer = TOKENIZERS[units].train(TEXTS)
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.long
    assert tokenizer.decode(ids) == normal(text, units)
    assert (ids == tokenizer.end_id).nonzero().flatten().tolist() == [len(ids) - 1]
    assert int(ids.min()) >= 0
    assert int(ids.max()) < tokenizer.vocabulary_size == len(tokenizer.symbols)
    assert not tokenizer.unknown(text)


@pytest.mark.parametrize("units", UNITS)
@settings(max_examples=50)
@given(anything)
def test_any_text_survives_its_own_vocabulary(units: str, text: str) -> None:
    tokenizer = TOKENIZERS[units].train([text])
    assert tokenizer.decode(tokenizer.encode(text)) == normal(text, units)


@pytest.mark.parametrize("units", ["bytes", "bpe"])
@settings(max_examples=50)
@given(anything)
def test_bytes_and_byte_pairs_know_every_text(units: str, text: str) -> None:
    tokenizer = TOKENIZERS[units].train(["so why"], **({"vocabulary": 260} if units == "bpe" else {}))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert (ids == tokenizer.end_id).sum() == 1


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("text", FORGERIES)
def test_no_text_forges_an_end_even_where_training_is_full_of_it(units: str, text: str) -> None:
    for tokenizer in (TOKENIZERS[units].train(20 * [text]), TOKENIZERS[units].train(["ab"])):
        assert (tokenizer.encode(text) == tokenizer.end_id).nonzero().flatten().tolist() == [
            len(tokenizer.encode(text)) - 1
        ]
    assert (TOKENIZERS[units].train(20 * [text]).encode(text) != tokenizer.unknown_id).all()


def test_text_that_is_tokenised_already_is_split_at_spaces_alone() -> None:
    tokenizer = Spaces.train(["the <unk> did n't , N </s>"])
    ids = tokenizer.encode("the <unk> did n't , N </s>")
    assert [tokenizer.symbols[number] for number in ids[:-1]] == [" the", " <unk>", " did", " n't", " ,", " N", " </s>"]
    assert tokenizer.unknown_id not in ids
    assert tokenizer.encode("the dog")[1] == tokenizer.unknown_id
    assert tokenizer.unknown("the  big\tdog") == {"big": 1, "dog": 1}


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("so, why don't", [" so", ",", " why", " don't"]),
        ("\t3.14 (x_1)\n", [" 3", ".", "14", " (", "x", "_", "1", ")"]),
        ("你好，abc 中", [" 你", "好", "，", "abc", " 中"]),
        ("مرحبا بالعربية", [" مرحبا", " بالعربية"]),
        ("می\N{ZERO WIDTH NON-JOINER}روم", [" می\N{ZERO WIDTH NON-JOINER}روم"]),
        ("नमस्ते दुनिया", [" नमस्ते", " दुनिया"]),
        ("x👩\N{ZERO WIDTH JOINER}👧🎉", [" x", "👩\N{ZERO WIDTH JOINER}👧", "🎉"]),
        ("q\N{COMBINING ACUTE ACCENT}q", [" q\N{COMBINING ACUTE ACCENT}q"]),
        ("", []),
    ],
)
def test_words_are_split_as_described(text: str, symbols: list[str]) -> None:
    tokenizer = Words.train([text])
    assert [tokenizer.symbols[number] for number in tokenizer.encode(text)[:-1]] == symbols


def test_an_unknown_word_is_one_token_and_counted() -> None:
    tokenizer = Words.train(["so why"])
    ids = tokenizer.encode("so 中, so")
    assert (ids == tokenizer.unknown_id).tolist() == [False, True, True, False, False]
    assert tokenizer.decode(ids) == "so \ufffd \ufffd so"
    assert tokenizer.unknown("so 中, so, 中") == {"中": 2, ",": 2}


def test_bytes_are_numbered_by_their_value() -> None:
    tokenizer = Bytes.train([])
    assert tokenizer.encode("a\0é中").tolist() == [*"a\0é中".encode(), 256]
    assert tokenizer.decode(list(b"\xe4\xb8ab")) == "\ufffdab"  # cut within a character
    assert tokenizer.decode([97, 256, 98]) == "a"
    with pytest.raises(ValueError, match="257 is outside the vocabulary of 257"):
        tokenizer.decode([97, 257])


def test_byte_pairs_are_merged_to_the_size_asked_for_and_no_further_than_texts_go() -> None:
    texts = ["lower newer wider lower"] * 3
    tokenizer = BytePairs.train(texts, vocabulary=262)
    assert tokenizer.vocabulary_size == 262
    assert len(tokenizer.encode(texts[0])) < len(texts[0])
    everything = BytePairs.train(texts)
    assert 262 < everything.vocabulary_size < 300
    assert len(everything.encode(texts[0])) == 4 + 1  # a word each, and the end
    assert BytePairs.train(texts, least=7).vocabulary_size < everything.vocabulary_size


def test_byte_pairs_are_the_same_in_any_order_and_in_any_process() -> None:
    code = f"""if True:
        from mmseqvae.tokenizers.words_bytes_bpe import BytePairs
        import hashlib, json
        state = BytePairs.train({TEXTS[::-1]!r} * 5, 300).to_dict()
        print(hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest())
    """
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(said) == 1
    assert BytePairs.train(TEXTS * 5, 300).to_dict() == BytePairs.train(TEXTS[::-1] * 5, 300).to_dict()


@pytest.mark.parametrize("units", ["characters", "words"])
def test_rare_symbols_can_be_left_out(units: str) -> None:
    texts = ["a a a b b c d"]
    tokenizer = TOKENIZERS[units]
    own, third = ([" a", " b"], " c") if units == "words" else ([" ", "a", "b"], "c")
    assert tokenizer.train(texts, least=2).symbols[2:] == own
    size = 2 + len(own)
    assert tokenizer.train(texts, vocabulary=size).symbols[2:] == own
    assert tokenizer.train(texts, vocabulary=size + 1).symbols[2:] == [*own, third]  # of equals the first
    assert tokenizer.train(texts, least=2).unknown("a c c") == {"c": 2}


@pytest.mark.parametrize("units", UNITS)
def test_state_is_json_and_gives_the_same_tokens(units: str) -> None:
    tokenizer = TOKENIZERS[units].train(TEXTS)
    restored = front_end_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert type(restored) is type(tokenizer)
    assert restored.symbols == tokenizer.symbols
    for text in [*TEXTS, "新 new"]:
        assert restored.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert restored.decode(restored.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_a_tokenizer_saved_by_an_older_release_still_loads() -> None:
    """As 0.1.0 wrote it before there were other units."""
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "<unk>": 1, "a": 2, "b": 3}, "unk_token": "<unk>"}
    parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": {"type": "NFC"},
             "pre_tokenizer": split, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    tokenizer = front_end_from_dict({"kind": "tokens", "tokenizer": parts})
    assert type(tokenizer) is Tokenizer
    assert tokenizer.encode("abc").tolist() == [2, 3, 1, 0]
    assert tokenizer.to_dict() == {"kind": "tokens", "tokenizer": parts} == Tokenizer.train(["ab"]).to_dict()


def test_a_state_that_could_forge_ends_is_refused() -> None:
    state = Bytes.train([]).to_dict()
    end = {"id": 256, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
           "special": True}  # fmt: skip
    state["tokenizer"]["added_tokens"] = [end]
    with pytest.raises(ValueError, match="add no tokens"):
        Bytes.from_dict(state)


@pytest.mark.parametrize("units", UNITS)
def test_what_is_no_text_is_refused(units: str) -> None:
    with pytest.raises(TypeError, match="must be a string, got int"):
        TOKENIZERS[units].train(["a", 7])
    tokenizer = TOKENIZERS[units].train(["a"])
    for refuse in (tokenizer.encode, tokenizer.unknown):
        with pytest.raises(TypeError, match="must be a string, got NoneType"):
            refuse(None)
        with pytest.raises(ValueError, match="not valid Unicode"):
            refuse("\ud800")
    if units != "bytes":
        with pytest.raises(ValueError, match="no texts"):
            TOKENIZERS[units].train([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "letters"}, "must be among characters, words, spaces, bytes, bpe, got letters"),
        ({"columns": {"a": "chars"}}, "got chars"),
        ({"units": "bpe", "vocabulary": 256}, "bpe must be at least 257, got 256"),
        ({"columns": {"a": "bpe"}, "vocabulary": 30}, "bpe, characters must be at least 257, got 30"),
        ({"vocabulary": 2}, "at least 3, got 2"),
        ({"least": 0}, "least must be at least 1"),
        ({"units": "bytes", "least": 2}, "bytes are a vocabulary of 257"),
        ({"units": "bytes", "vocabulary": 300}, "bytes are a vocabulary of 257"),
    ],
)
def test_units_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextConfig(**options)


# From a manifest to a run


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [("text", "mood", "split")]
    rows += [(text, "up, up" if i % 2 else "down", "train") for i, text in enumerate(TEXTS) if text]
    rows += [("why, 新 new", "up", "test"), ("why", "", "valid")]
    with (tmp_path / "m.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "m.csv"


def test_columns_have_units_of_their_own(manifest: Path) -> None:
    config = TextConfig(units="bpe", columns={"mood": "words"}, vocabulary=300)
    corpus = prepare(manifest, text=config, tokens=["mood"], cache_dir=manifest.parent)
    text, mood = corpus.front_ends["text"], corpus.front_ends["mood"]
    assert isinstance(text, BytePairs)
    assert isinstance(mood, Words)
    assert text.vocabulary_size == 300
    train = [row.cells["text"] for row in corpus.manifest.rows if row.split == "train"]
    assert text.to_dict() == train_tokenizer(train, config, "text").to_dict() == BytePairs.train(train, 300).to_dict()
    assert corpus.datasets["test"][0]["text"].values[0].tolist() == text.encode("why, 新 new").tolist()
    again = prepare(manifest, front_ends=corpus.front_ends, cache_dir=manifest.parent)
    assert again.datasets["test"][0]["mood"].values.tolist() == corpus.datasets["test"][0]["mood"].values.tolist()
    with pytest.raises(ValueError, match=r"units of text are given for \['id'\], which are no columns of text"):
        prepare(manifest, text=TextConfig(columns={"id": "words"}), cache_dir=manifest.parent)
    with pytest.raises(ValueError, match="settle audio, text and all columns"):
        prepare(manifest, text=TextConfig(), front_ends=corpus.front_ends)


TINY = ["--model.latent=2", "--model.token-encoder=4", "--model.token-decoder=4", "--model.token-embedding=3",
        "--training.epochs=1", "--training.batch-size=5",
        "--training.fitted_components=1", "--training.threads=1"]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ([], ["tokens", "tokens"]),
        (["--text.units=words", "--text.least=2"], ["words", "words"]),
        (["--text.units=bytes"], ["bytes", "bytes"]),
        (["--text.units=bpe", "--text.vocabulary=280", '--text.columns={"mood": "characters"}'], ["bpe", "tokens"]),
    ],
)
def test_units_travel_with_the_run(
    options: list[str], kinds: list[str], manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cache = str(tmp_path / "run"), ["--cache-dir", str(tmp_path / "cache")]
    main(["train", str(manifest), "--out", run, "--tokens", "mood", *options, *cache, *TINY])
    main(["generate", run, "--text", "why, 新", "--want", "mood", "--samples=2", "--out", str(tmp_path / "made")])
    main(["generate", run, "--sample=3", "--temperature=1", "--out", str(tmp_path / "made")])
    capsys.readouterr()
    main(["evaluate", run, str(manifest), "--draws=2", *cache])
    assert json.loads(capsys.readouterr().out)["items"] == 1
    trained = load(run)
    assert [front_end.kind for front_end in trained.front_ends.values()] == kinds
    made = trained.sample(3, seed=0)
    assert made == load(run).sample(3, seed=0)
    assert all(isinstance(text, str) for text in made["text"])
