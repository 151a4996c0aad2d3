"""Units of text other than characters: words, bytes, and byte pairs that are learnt, all of any script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar, Self

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from torch import Tensor

from mmseqvae.config import BPE_SIZE, TextConfig
from mmseqvae.tokenizers.characters import END, UNKNOWN_CHARACTER, Tokenizer, checked

JOINERS = r"\x{200c}\x{200d}"  # they stand inside words of Persian and of Indic scripts
WORD = rf"[\p{{L}}\p{{N}}][\p{{L}}\p{{M}}\p{{N}}{JOINERS}]*(?:['\x{{2019}}][\p{{L}}\p{{M}}]+)*"
SYMBOL = rf" ?(?:[\p{{Han}}\p{{Hiragana}}]\p{{M}}*|{WORD}|\X)"


class Words(Tokenizer):
    """Words of NFC-normalised text, closed by `</s>`; a word that training never saw is `<unk>`.

    A word is a run of letters, their marks and digits, with apostrophes inside; Chinese characters and hiragana, which
    are written without spaces, are words of their own; everything else is a word a grapheme cluster (Unicode annex 29),
    so that an emoji of several code points is one. (Thai, Lao, Khmer and Burmese separate no words: take "bpe".)
    A symbol includes the space before it, so punctuation is glued where it was: "so, why" is " so", ",", " why". Hence
    decode(encode(text)) is the normalised text wherever its words are known; any white space, line breaks included,
    becomes one space, and none at the ends. An unknown word becomes " \ufffd".

    Since nothing that is both letter and punctuation is one word, no text can spell `</s>` or `<unk>`.
    """

    kind: ClassVar[str] = "words"

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._symbols[self.unknown_id] = f" {UNKNOWN_CHARACTER}"

    @classmethod
    def rules(cls) -> tuple[Normalizer, PreTokenizer]:
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Strip(), normalizers.Prepend(" ")])
        return normalizer, pre_tokenizers.Split(Regex(SYMBOL), "isolated")

    @staticmethod
    def split(normal: str, splitter: PreTokenizer) -> Iterable[str]:
        return [symbol for symbol, _ in splitter.pre_tokenize_str(normal)]

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        return super().decode(ids).removeprefix(" ")

    def unknown(self, text: str) -> Counter[str]:
        """How often each word occurs in `text` that the vocabulary lacks, without the space before it."""
        found: Counter[str] = Counter()
        for symbol, count in super().unknown(text).items():
            found[symbol.removeprefix(" ")] += count
        return found


class Spaces(Words):
    """What stands between white space, as corpora that are tokenised already have it, closed by `</s>`.

    Round trips are those of `Words`. A "<unk>" or "</s>" that stands in the text is a token like any other, since a
    space belongs to it; what training never saw is this tokenizer's own `<unk>`.
    """

    kind: ClassVar[str] = "spaces"

    @classmethod
    def rules(cls) -> tuple[Normalizer, PreTokenizer]:
        normalizer, _ = super().rules()
        return normalizer, pre_tokenizers.Split(Regex(" [^ ]+"), "isolated")


class Bytes(Tokenizer):
    """The UTF-8 bytes of NFC-normalised text, 0..255, closed by `</s>` (256): nothing is unknown.

    decode(encode(text)) is the normalised text, whatever it is; bytes that are not UTF-8, which a model may write,
    become U+FFFD. The end is no entry of the backend's vocabulary, so no text can spell it.
    """

    kind: ClassVar[str] = "bytes"

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._vocabulary = backend.get_vocab()
        missing = set(pre_tokenizers.ByteLevel.alphabet()) - self._vocabulary.keys()
        if missing or backend.normalizer is None or backend.decoder is None or backend.get_added_tokens_decoder():
            raise ValueError(f"the tokenizer must know all bytes, add no tokens, normalize and decode; lacks {missing}")
        self.end_id = len(self._vocabulary)
        self.unknown_id = -1  # no text has it
        self._symbols = {number: symbol for symbol, number in self._vocabulary.items()} | {self.end_id: END}

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int | None = None, least: int = 1) -> Self:
        """Nothing is learnt: the vocabulary is that of all texts. Raises TypeError where one is not a string."""
        for text in texts:
            checked(text)
        return cls(cls.untrained())

    @classmethod
    def untrained(cls) -> Backend:
        """All bytes and no merges."""
        spelt = [symbol for _, symbol in sorted(_alphabet().items())]
        backend = Backend(models.BPE({symbol: number for number, symbol in enumerate(spelt)}, []))
        backend.normalizer, backend.pre_tokenizer = cls.rules()
        backend.decoder = decoders.ByteLevel()
        return backend

    @classmethod
    def rules(cls) -> tuple[Normalizer, PreTokenizer]:
        return normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def extended(self, other: Tokenizer) -> Self:
        """Itself: its symbols spell every text. Raises ValueError where `other` is of another kind."""
        if other.kind != self.kind:
            raise ValueError(f"a tokenizer of {self.kind} cannot be extended by one of {other.kind}")
        return self

    @property
    def vocabulary_size(self) -> int:
        return len(self._symbols)

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.end_id in numbers:
            numbers = numbers[: numbers.index(self.end_id)]
        foreign = [number for number in numbers if number not in self._symbols]
        if foreign:
            raise ValueError(f"token {foreign[0]} is outside the vocabulary of {self.vocabulary_size}")
        return self.backend.decode(numbers, skip_special_tokens=False)

    def unknown(self, text: str) -> Counter[str]:
        """Nothing. Raises as `encode` does."""
        checked(text)
        return Counter()


class BytePairs(Bytes):
    """Frequent strings of bytes, learnt by byte-pair encoding (Sennrich, Haddow & Birch 2016): nothing is unknown.

    Round trips are exact as those of `Bytes`. Merges stay within words, numbers and runs of punctuation, each with the
    space before it, as in GPT-2. The same texts give the same vocabulary, in whatever order they come.
    """

    kind: ClassVar[str] = "bpe"

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int | None = None, least: int = 1) -> Self:
        """Learn merges until there are `vocabulary` symbols (1,000 by default), 256 bytes and `</s>` included.

        There are fewer where the texts hold no more pairs that occur `least` times. Raises ValueError where there are
        no texts, TypeError where one is not a string.
        """
        known = [checked(text) for text in texts]
        if not known:
            raise ValueError("no texts to learn a vocabulary from")
        backend = cls.untrained()
        trainer = trainers.BpeTrainer(
            vocab_size=(BPE_SIZE if vocabulary is None else vocabulary) - 1,
            min_frequency=least,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(known, trainer)
        return cls(backend)

    @classmethod
    def rules(cls) -> tuple[Normalizer, PreTokenizer]:
        return normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


TOKENIZERS: dict[str, type[Tokenizer]] = {
    "characters": Tokenizer,
    "words": Words,
    "spaces": Spaces,
    "bytes": Bytes,
    "bpe": BytePairs,
}


def train_tokenizer(texts: Iterable[str], config: TextConfig, column: str) -> Tokenizer:
    """A tokenizer of the units that `config` names for a column. Raises as their `train` does."""
    return TOKENIZERS[config.units_of(column)].train(texts, config.vocabulary, config.least)


def _alphabet() -> dict[int, str]:
    """The character by which `tokenizers` writes each byte (Radford et al. 2019): its own where it is visible."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
