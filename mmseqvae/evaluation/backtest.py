"""Forecasts as rows of a table, and what those of hidden steps were worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmseqvae.data import Batch, SequenceDataset
from mmseqvae.evaluation import forecast_metrics as backtest
from mmseqvae.evaluation.summary import destandardised
from mmseqvae.features.arrays import FrontEnd
from mmseqvae.inference.forecasting import Draws
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer


class Backtest:
    """The last `steps` steps of all frames, or of those in `want`, hidden, and what a forecast of them was worth."""

    def __init__(self, steps: int, want: list[str] | None) -> None:
        self.steps, self.want = steps, want
        self.found: dict[str, list[dict[str, Any]]] = {}

    def check(self, dataset: SequenceDataset, manifest: str, split: str) -> None:
        """Raise ValueError where no item has frames to spare. manifest, split: what messages call the data set."""
        frames = [name for name, column in dataset.columns.items() if column.flat.ndim > 1 and self._hidden(name)]
        longest = max((int(dataset.lengths(name).max(initial=0)) for name in frames), default=0)
        if longest <= self.steps:
            raise ValueError(
                f"{manifest}: --backtest hides the last {self.steps} steps, and no series of the split {split} is "
                f"longer than {longest}: forecast fewer"
            )

    def _hidden(self, name: str) -> bool:
        return self.want is None or name in self.want

    def hide(self, batch: Batch) -> Batch:
        """The batch without the last steps of its frames; an item that is no longer than these loses nothing."""
        cut = {}
        for name, x in batch.items():
            if x.values.is_floating_point() and self._hidden(name):
                left = x.lengths - self.steps
                cut[name] = Sequence(x.values, left.where(left > 0, x.lengths), x.observed)
        return {**batch, **cut}

    def note(self, trained: Trained, name: str, draws: Draws, batch: Batch, shown: Batch) -> None:
        """Keep the figures of one modality's forecast, `shown` being what `hide` left of the batch."""
        front_end = trained.front_ends[name]
        assert isinstance(front_end, FrontEnd)
        x = destandardised(front_end, batch[name])
        start = shown[name].lengths.cpu()
        where = x.hiding(Sequence(x.values, start).valid).mask
        made = x.values.expand(len(draws.samples), *x.values.shape).clone()
        for row, first in enumerate(start.tolist()):
            end = min(first + self.steps, x.steps)
            made[:, row, first:end] = draws.samples[:, row, : end - first].cpu()
        found = backtest.scores(type(draws)(made), x.filled(), where)
        known = Sequence(x.values, x.lengths, x.mask & ~where)
        for other, guess in (("last value", backtest.last_value), ("straight line", backtest.straight_line)):
            found[other] = backtest.mean_squared_error(guess(known), x.filled(), where) if where.any() else None
        self.found.setdefault(name, []).append(found)

    def result(self) -> dict[str, Any]:
        """{modality: figures}, see `backtest.scores`, with the squared errors of what needs no model."""
        return {name: backtest.pooled(rows) for name, rows in self.found.items()}


def header(trained: Trained, name: str, levels: list[float]) -> list[str]:
    """The columns of a table of forecasts."""
    if isinstance(trained.front_ends[name], Tokenizer):
        return ["id", "sample", name]
    return ["id", "step", "channel", "mean", *(f"q{level:g}" for level in levels)]


def lines(trained: Trained, name: str, ids: list[str], draws: Draws, levels: list[float]) -> Iterator[list[Any]]:
    """Its rows: one a step and channel of frames, one a draw of tokens."""
    samples = draws.samples.cpu()
    if not samples.is_floating_point():
        for row, identity in enumerate(ids):
            for number, tokens in enumerate(samples[:, row], start=1):
                yield [identity, number, trained.front_ends[name].decode(tokens)]
        return
    table = [draws.mean.cpu(), *draws.quantiles(levels).cpu()]
    for row, identity in enumerate(ids):
        for step in range(samples.shape[2]):
            for channel in range(samples.shape[3]):
                yield [identity, step + 1, channel, *(f"{float(values[row, step, channel]):.6g}" for values in table)]
