"""Strings to tokens and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.tokenizers.categories import Category as Category
    from mmseqvae.tokenizers.categories import Labels as Labels
    from mmseqvae.tokenizers.characters import Tokenizer as Tokenizer
    from mmseqvae.tokenizers.words_bytes_bpe import BytePairs as BytePairs
    from mmseqvae.tokenizers.words_bytes_bpe import Bytes as Bytes
    from mmseqvae.tokenizers.words_bytes_bpe import Words as Words

_HOME = {
    "Tokenizer": "characters",
    "Words": "words_bytes_bpe",
    "Bytes": "words_bytes_bpe",
    "BytePairs": "words_bytes_bpe",
    "Labels": "categories",
    "Category": "categories",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
