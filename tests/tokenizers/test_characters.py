import json
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseqvae.tokenizers.characters import Tokenizer

TEXTS = [
    "seven",
    "你好，中文",
    "مرحبا العربية",
    "👩‍👩‍👧 🎉",
    "e\N{COMBINING ACUTE ACCENT}",
    "ท́ี่",
    " two  spaces\n\tlines\r\n",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_is_nfc_and_ends_once(text: str) -> None:
    tokenizer = Tokenizer.train(TEXTS)
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.long
    assert ids[-1] == tokenizer.end_id
    assert (ids[:-1] != tokenizer.end_id).all()
    assert (ids != tokenizer.unknown_id).all()
    assert len(ids) == len(unicodedata.normalize("NFC", text)) + 1
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_its_own_vocabulary(text: str) -> None:
    tokenizer = Tokenizer.train([text])
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)
    assert not tokenizer.unknown(text)


def test_empty_text_is_just_the_end() -> None:
    tokenizer = Tokenizer.train(["a"])
    assert tokenizer.encode("").tolist() == [tokenizer.end_id]
    assert tokenizer.decode([]) == ""


def test_composed_and_decomposed_letters_are_one_symbol() -> None:
    tokenizer = Tokenizer.train(["é"])
    assert tokenizer.encode("é").tolist() == tokenizer.encode("e\N{COMBINING ACUTE ACCENT}").tolist()


def test_unknown_symbols_are_kept_counted_and_one_to_one() -> None:
    tokenizer = Tokenizer.train(["abc"])
    ids = tokenizer.encode("a中b中x")
    assert [number == tokenizer.unknown_id for number in ids.tolist()] == [False, True, False, True, True, False]
    assert tokenizer.unknown("a中b中x") == {"中": 2, "x": 1}
    assert tokenizer.decode(ids) == "a\ufffdb\ufffd\ufffd"


def test_text_that_spells_a_special_token_is_ordinary_text() -> None:
    text = "a</s>b<unk>"
    tokenizer = Tokenizer.train([text])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) + 1
    assert tokenizer.decode(ids) == text
    stranger = Tokenizer.train(["ab"])
    assert (stranger.encode(text) == stranger.end_id).sum() == 1
    assert stranger.unknown("<unk>") == dict.fromkeys("<unk>", 1)


def test_decode_stops_at_the_first_end_and_refuses_foreign_numbers() -> None:
    tokenizer = Tokenizer.train(["ab"])
    a, b, end = tokenizer.encode("ab").tolist()
    assert tokenizer.decode([a, b, end, a, end]) == "ab"
    assert tokenizer.decode(torch.tensor([a, end, 99])) == "a"
    with pytest.raises(ValueError, match="99 is outside the vocabulary of 4"):
        tokenizer.decode([a, 99])


def test_state_is_json_and_order_of_texts_does_not_matter() -> None:
    tokenizer = Tokenizer.train(TEXTS)
    state = json.loads(json.dumps(tokenizer.to_dict()))
    restored = Tokenizer.from_dict(state)
    assert restored.symbols == tokenizer.symbols == Tokenizer.train(TEXTS[::-1]).symbols
    for text in [*TEXTS, "新"]:
        assert restored.encode(text).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("wrong", [None, 7, b"seven", ["seven"]])
def test_what_is_not_a_string_is_refused(wrong: object) -> None:
    tokenizer = Tokenizer.train(["a"])
    with pytest.raises(TypeError, match="must be a string, got"):
        tokenizer.encode(wrong)
    with pytest.raises(TypeError, match="must be a string, got"):
        Tokenizer.train(["a", wrong])


def test_broken_unicode_and_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        Tokenizer.train(["a"]).encode("\ud800")
    with pytest.raises(ValueError, match="no texts"):
        Tokenizer.train([])
