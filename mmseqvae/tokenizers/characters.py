"""Text to tokens and back: symbols of any script, an unknown token and an end token that no text can forge."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from torch import Tensor

END, UNKNOWN = "</s>", "<unk>"
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what an unknown token decodes to: one character stays one character


class Tokenizer:
    """Code points of NFC-normalised text (Unicode annex 15), closed by `</s>`; what training never saw is `<unk>`.

    Since every other entry of the vocabulary is a single code point, text that spells "</s>" is four ordinary
    characters. White space and line breaks are symbols like any other. Built on the `tokenizers` library: `backend` is
    one of its tokenizers, whose JSON is the state that is saved. Other units are in
    `mmseqvae.tokenizers.words_bytes_bpe`.
    """

    kind: ClassVar[str] = "tokens"
    log_jacobian: ClassVar[float] = 0.0  # nats a step: tokens are not rescaled

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._vocabulary: dict[str, int] = backend.get_vocab()
        missing = {END, UNKNOWN} - self._vocabulary.keys()
        if missing or backend.normalizer is None:
            raise ValueError(f"the tokenizer needs a normalizer and the tokens {END} and {UNKNOWN}; lacks {missing}")
        self._symbols = {number: symbol for symbol, number in self._vocabulary.items()}
        self.end_id = self._vocabulary[END]
        self.unknown_id = self._vocabulary[UNKNOWN]
        self._symbols[self.unknown_id] = UNKNOWN_CHARACTER

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int | None = None, least: int = 1) -> Self:
        """Learn the symbols of `texts`, numbered in code-point order after `</s>` (0) and `<unk>` (1).

        vocabulary: most symbols, these two included; the commonest are kept, of equals those first in code-point order.
        least: occurrences that a symbol needs. What is left out is `<unk>`, which training then sees.
        Raises ValueError where there are no texts, TypeError where one is not a string.
        """
        normalizer, splitter = cls.rules()
        counts: Counter[str] = Counter()
        number = 0
        for number, text in enumerate(texts, start=1):  # noqa: B007
            counts.update(cls.split(normalizer.normalize_str(checked(text)), splitter))
        if not number:
            raise ValueError("no texts to learn a vocabulary from")
        common = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        kept = [symbol for symbol in common if counts[symbol] >= least]
        if vocabulary is not None:
            kept = kept[: max(0, vocabulary - 2)]
        backend = Backend(models.WordLevel(numbered(kept), unk_token=UNKNOWN))
        backend.normalizer, backend.pre_tokenizer = normalizer, splitter
        return cls(backend)

    @classmethod
    def rules(cls) -> tuple[Normalizer, PreTokenizer]:
        """What normalises a text, and what splits it into symbols."""
        return normalizers.NFC(), pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # one symbol a code point

    @staticmethod
    def split(normal: str, splitter: PreTokenizer) -> Iterable[str]:
        """The symbols of a normalised text."""
        return normal  # as `splitter` would, ten times as fast

    def extended(self, other: Tokenizer) -> Self:
        """A tokenizer of the same kind with the symbols of both, so that a trained model can learn new ones.

        Args:
            other: a tokenizer of the same kind, trained on other texts.

        Raises:
            ValueError: where `other` is of another kind.
        """
        if other.kind != self.kind:
            raise ValueError(f"a tokenizer of {self.kind} cannot be extended by one of {other.kind}")
        both = (self._vocabulary.keys() | other._vocabulary.keys()) - {END, UNKNOWN}
        backend = Backend(models.WordLevel(numbered(both), unk_token=UNKNOWN))
        backend.normalizer, backend.pre_tokenizer = self.backend.normalizer, self.backend.pre_tokenizer
        return type(self)(backend)

    @property
    def vocabulary(self) -> dict[str, int]:
        """The number of every symbol, as the backend spells it, in the order of their numbers."""
        return dict(sorted(self._vocabulary.items(), key=lambda pair: pair[1]))

    @property
    def vocabulary_size(self) -> int:
        return len(self._vocabulary)

    @property
    def symbols(self) -> list[str]:
        """The symbol of every number, `</s>` and U+FFFD for unknown included."""
        return [self._symbols[number] for number in range(self.vocabulary_size)]

    def encode(self, text: str) -> Tensor:
        """`text` -> [T] int64 ending in `</s>`, so an empty text has T = 1.

        Raises TypeError where `text` is not a string, ValueError where it is not valid Unicode (a lone surrogate).
        """
        return torch.tensor([*self.backend.encode(checked(text)).ids, self.end_id])

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """[T] numbers -> text up to the first `</s>`; an unknown token becomes U+FFFD.

        Raises ValueError where a number is outside the vocabulary.
        """
        text = []
        for number in ids.tolist() if isinstance(ids, Tensor) else ids:
            if number == self.end_id:
                break
            if number not in self._symbols:
                raise ValueError(f"token {number} is outside the vocabulary of {self.vocabulary_size}")
            text.append(self._symbols[number])
        return "".join(text)

    def unknown(self, text: str) -> Counter[str]:
        """How often each symbol occurs in `text` that the vocabulary lacks."""
        normal = self.backend.normalizer.normalize_str(checked(text))
        symbols = self.split(normal, self.backend.pre_tokenizer)
        return Counter(symbol for symbol in symbols if symbol not in self._vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads: the JSON of the `tokenizers` library."""
        return {"kind": self.kind, "tokenizer": json.loads(self.backend.to_str())}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        return cls(Backend.from_str(json.dumps(state["tokenizer"])))


def numbered(symbols: Iterable[str]) -> dict[str, int]:
    """A vocabulary in code-point order after `</s>` (0) and `<unk>` (1)."""
    return {symbol: number for number, symbol in enumerate([END, UNKNOWN, *sorted(symbols)])}


def checked(text: str) -> str:
    """The text. Raises TypeError where it is not a string, ValueError where it is not valid Unicode."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}: {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text is not valid Unicode: {error.reason} at character {error.start}") from error
    return text
