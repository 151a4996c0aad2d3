import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmseqvae.data.string_array import StringArray

TEXTS = ["", "seven", None, "五 العربية", "ÿ", "\0", None]


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8))
def test_strings_are_what_they_were_made_of(texts: list[str | None]) -> None:
    strings = StringArray.of(texts)
    assert list(strings) == texts
    assert strings == texts == strings
    assert [strings[i] for i in range(-len(texts), 0)] == texts
    assert strings[1:-1] == texts[1:-1]
    assert strings[::-2] == texts[::-2]
    assert StringArray.of(strings) is strings


def test_they_behave_as_a_sequence() -> None:
    strings = StringArray.of(TEXTS)
    assert strings.index("ÿ") == 4
    assert strings.count(None) == 2
    assert "seven" in strings
    assert strings[np.int64(1)] == "seven"
    assert strings != TEXTS[:-1]
    assert strings != [*TEXTS[:-1], ""]
    assert strings != "seven"
    assert repr(strings) == "StringArray(['', 'seven', None, ...], 7 in all)"
    for item in (7, -8):
        with pytest.raises(IndexError, match="of 7"):
            strings[item]


def test_they_are_two_arrays_and_nothing_an_item() -> None:
    strings = StringArray.of(f"item-{i}" for i in range(1000))
    assert len(pickle.dumps(strings)) < strings.letters.nbytes + strings.bounds.nbytes + 1000
    assert strings.letters.nbytes == sum(len(f"item-{i}") for i in range(1000))


@pytest.mark.parametrize("bounds", [[], [-1, 2], [0, 3, 2], [0, 6]])
def test_bounds_outside_the_letters_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise from 0 to at most 5"):
        StringArray(np.zeros(5, np.uint8), np.array(bounds, np.int64))


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        StringArray.of(["\ud800"])
