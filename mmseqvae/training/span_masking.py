"""Sequences with parts hidden in training, so that a model learns what to believe when it sees a part of one."""

from __future__ import annotations

import torch
from torch import Tensor

from mmseqvae.modality import Batch, as_read
from mmseqvae.sequence import Sequence, step_mask

KINDS = 4  # the end, the beginning, the middle, single steps


def mask_spans(batch: Batch, share: float) -> dict[str, Sequence]:
    """The batch with a part hidden of about `share` of the sequences of at least 3 steps, of every view by itself.

    The objective is then the bound of what is left, since holes are neither read nor scored. Each kind of part is as
    likely as the others; where it is one stretch, its length is uniform over 1..T-1 (the end alone: a prefix of any
    length), and of single steps a share that is uniform over 0..1. What encoders read in place of a view (`as_read`)
    lacks the same part. The noise is torch's own.
    """
    if not share:
        return dict(batch)
    read = {as_read(view): view for view in batch}
    holed = {view: _holed(x, share) if x.steps > 2 else x for view, x in batch.items() if view not in read}
    return holed | {
        view: Sequence(x.values, x.lengths, holed[read[view]].observed) for view, x in batch.items() if view in read
    }


def _holed(x: Sequence, share: float) -> Sequence:
    size, device = len(x), x.device
    chosen = (torch.rand(size, device=device) < share) & (x.lengths > 2)
    hide = random_spans(x.lengths, x.steps) & chosen[:, None]
    hide &= (x.mask & ~hide).any(1, keepdim=True)  # something is left to see
    return x.hiding(hide) if bool(hide.any()) else x


def random_spans(lengths: Tensor, steps: int) -> Tensor:
    """A random part of every sequence, lengths [B] -> [B, steps] bool; see `mask_spans`."""
    size, device = len(lengths), lengths.device
    kind = torch.randint(KINDS, (size,), device=device)
    long = (1 + torch.rand(size, device=device) * (lengths - 1)).long()  # 1..T-1
    free = lengths - long
    middle = (torch.rand(size, device=device) * (free + 1)).long()
    first = torch.where(kind == 0, free, torch.where(kind == 1, 0, middle))
    stretch = step_mask(first + long, steps) & ~step_mask(first, steps)
    single = torch.rand(size, steps, device=device) < torch.rand(size, 1, device=device)
    return torch.where((kind == 3)[:, None], single, stretch)
