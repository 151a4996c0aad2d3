"""An interpolated Kneser-Ney model of token sequences: a judge of sampled sentences that shares nothing with an RNN.

Kneser & Ney 1995 as in Chen & Goodman 1999, section 2.7: one discount an order, n1 / (n1 + 2 n2) of its counts; below
the highest order a token counts as often as there are different tokens before it; at the bottom every token is equally
likely. (nltk has one that walks through all n-grams for each probability: 0.6 s a sentence here.)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

Tokens = Sequence[int]
START = -1


class KneserNey:
    """p(token | the order - 1 tokens before it), of sequences that all end with one and the same token.

    sequences: of numbers 0..vocabulary-1, the end included. Raises ValueError where there are none or order is below 1.
    """

    def __init__(self, sequences: Iterable[Tokens], vocabulary: int, order: int = 4) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        self.vocabulary, self.order = vocabulary, order
        whole: Counter[tuple[int, ...]] = Counter()
        for sequence in sequences:
            padded = [START] * (order - 1) + list(sequence)
            whole.update(tuple(padded[i : i + order]) for i in range(len(sequence)))
        if not whole:
            raise ValueError("no sequences to count n-grams in")
        self.levels = [_Level(whole)]
        while len(self.levels) < order:
            shorter = Counter(ngram[1:] for ngram in self.levels[-1].counts)  # how many different tokens stand before
            self.levels.append(_Level(shorter))

    def probability(self, token: int, before: Tokens) -> float:
        """p(token | before), of which the last order - 1 tokens count; `START` stands before the first."""
        context = tuple(before)[len(before) - self.order + 1 :] if self.order > 1 else ()
        p = 1 / self.vocabulary
        for level in reversed(self.levels):
            p = level.interpolated(token, context[len(context) - level.length + 1 :] if level.length > 1 else (), p)
        return p

    def nats(self, sequence: Tokens) -> float:
        """-log p of a sequence, its end included."""
        padded = [START] * (self.order - 1) + list(sequence)
        first = self.order - 1
        return -sum(math.log(self.probability(padded[i], padded[i - first : i])) for i in range(first, len(padded)))

    def perplexity(self, sequences: Iterable[Tokens]) -> float:
        """exp of the nats a token, over all sequences together. Raises ValueError where there is no token."""
        sequences = list(sequences)
        tokens = sum(map(len, sequences))
        if not tokens:
            raise ValueError("the perplexity of no token is undefined")
        return math.exp(sum(map(self.nats, sequences)) / tokens)


class _Level:
    """The counts of one length of n-grams, and what is taken off each for shorter contexts."""

    def __init__(self, counts: Counter[tuple[int, ...]]) -> None:
        self.counts = counts
        self.length = len(next(iter(counts)))
        how_often = Counter(counts.values())
        once, twice = how_often[1], how_often[2]
        self.discount = once / (once + 2 * twice) if once else 0.5
        self.totals: defaultdict[tuple[int, ...], int] = defaultdict(int)
        self.kinds: defaultdict[tuple[int, ...], int] = defaultdict(int)
        for ngram, count in counts.items():
            self.totals[ngram[:-1]] += count
            self.kinds[ngram[:-1]] += 1

    def interpolated(self, token: int, context: tuple[int, ...], lower: float) -> float:
        total = self.totals.get(context, 0)
        if not total:
            return lower
        own = max(0.0, self.counts.get((*context, token), 0) - self.discount)
        return (own + self.discount * self.kinds[context] * lower) / total
