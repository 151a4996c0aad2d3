"""What a model says about every item of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from mmseqvae.data import SequenceDataset, make_loader
from mmseqvae.data.dataset import to_device
from mmseqvae.distributions.gaussian import Distribution
from mmseqvae.fusion import Encoded
from mmseqvae.model import MultimodalVAE
from mmseqvae.sequence import Sequence


@torch.no_grad()
def encoded(
    model: MultimodalVAE, dataset: SequenceDataset, given: list[str] | None = None, items: np.ndarray | None = None
) -> Encoded:
    """What the encoders say about every item of a data set, in its order; or about `items` alone."""
    model.eval()
    batches: Iterable[Mapping[str, Sequence]] = make_loader(dataset, 256, shuffle=False)
    if items is not None:
        batches = (dataset.__getitems__(items[first : first + 256].tolist()) for first in range(0, len(items), 256))
    return Encoded.join([model.encode(to_device(batch, model.device), given) for batch in batches])


@torch.no_grad()
def posteriors(model: MultimodalVAE, dataset: SequenceDataset, given: list[str] | None = None) -> Distribution:
    """The posterior of every item of a data set, in its order: [N, D]."""
    return model.answer(encoded(model, dataset, given))
