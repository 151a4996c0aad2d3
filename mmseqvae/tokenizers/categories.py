"""Whole strings as categories: a label that is modelled, as one token, and a covariate that only conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers
from torch import Tensor

from mmseqvae.tokenizers.characters import UNKNOWN, Tokenizer, checked, numbered


class Labels(Tokenizer):
    """A label is one token, closed by `</s>` as all tokens are; one that training never saw is `<unk>`.

    Decoders of tokens have a distribution over every length up to their `max_steps`, where the end is certain. With
    STEPS = 2 of them the `</s>` behind a label costs exactly 0 nats and the first token is a softmax over the labels,
    so that classification needs no distribution of its own. (A label without end would: with one step only `</s>` is
    possible.) Labels are NFC-normalised and without white space at their ends.
    """

    kind: ClassVar[str] = "labels"
    STEPS: ClassVar[int] = 2

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._symbols = {number: symbol.removeprefix(" ") for number, symbol in self._symbols.items()}

    @classmethod
    def train(cls, texts: Iterable[str]) -> Self:  # type: ignore[override]  # all labels are kept, however rare
        """Number the distinct labels in code-point order after `</s>` (0) and `<unk>` (1).

        Raises ValueError where there are no labels or one is empty, TypeError where one is not a string.
        """
        # a label stands behind a space in the vocabulary, so that none can spell </s> or <unk>
        normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip(), normalizers.Prepend(" ")])
        labels = sorted({normalizer.normalize_str(_filled(text)) for text in texts})
        if not labels:
            raise ValueError("no labels to learn a vocabulary from")
        backend = Backend(models.WordLevel(numbered(labels), unk_token=UNKNOWN))
        backend.normalizer = normalizer
        return cls(backend)

    def encode(self, text: str) -> Tensor:
        """A label -> [2] int64: its number and `</s>`. Raises as `train` does."""
        return super().encode(_filled(text))

    @property
    def vocabulary(self) -> dict[str, int]:
        """The number of every label, `</s>` and `<unk>` included."""
        return {name.removeprefix(" "): number for name, number in super().vocabulary.items()}

    def unknown(self, text: str) -> Counter[str]:
        """The label, once, if the vocabulary lacks it."""
        return Counter([text] if self.encode(text)[0] == self.unknown_id else [])


class Category:
    """What a covariate holds: every distinct string of the training split is one token 0, 1, ...; there is no end.

    A string that training never saw is no token at all, so it is what a missing one is: unknown.
    """

    kind: ClassVar[str] = "covariate"
    log_jacobian: ClassVar[float] = 0.0

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self._first = 1 + max(labels.end_id, labels.unknown_id)

    @classmethod
    def train(cls, texts: Iterable[str]) -> Category:
        """Number the distinct strings in code-point order. Raises as `Labels.train` does."""
        return cls(Labels.train(texts))

    def extended(self, other: Category) -> Category:
        """The strings of both."""
        return Category(self.labels.extended(other.labels))

    @property
    def vocabulary(self) -> dict[str, int]:
        """The number of every string."""
        return {name: number - self._first for name, number in self.labels.vocabulary.items() if number >= self._first}

    @property
    def vocabulary_size(self) -> int:
        return self.labels.vocabulary_size - self._first

    def encode(self, text: str) -> Tensor:
        """[1] int64, or [0] for a string that training never saw. Raises as `Labels.train` does."""
        number = self.labels.encode(text)[:1]
        return number[number != self.labels.unknown_id] - self._first

    def decode(self, ids: Tensor) -> str:
        """[1] -> the string."""
        return self.labels.decode(ids + self._first)

    def unknown(self, text: str) -> Counter[str]:
        """The string, once, if training never saw it."""
        return self.labels.unknown(text)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads."""
        return {**self.labels.to_dict(), "kind": self.kind}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Category:
        return cls(Labels.from_dict(state))


def _filled(text: str) -> str:
    if not checked(text).strip():
        raise ValueError("a label is empty: leave it out where it is missing")
    return text
