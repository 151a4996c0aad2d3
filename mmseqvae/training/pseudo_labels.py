"""Items that lack words, with the words that the model is sure of.

A recording without a transcript is half a pair. What the model would write for it, where it hardly doubts, makes it a
whole one for what is fitted to the joint posterior after training, as pseudo-labels do (Lee 2013, "Pseudo-label"). No
network is trained on it, so what the model believes wrongly does not feed on itself.
"""

from __future__ import annotations

import numpy as np
import torch

from mmseqvae.data import SequenceDataset
from mmseqvae.data.data_warning import warn
from mmseqvae.data.dataset import to_device
from mmseqvae.fusion import Encoded
from mmseqvae.model import MultimodalVAE

BATCH = 256
DRAWS = 8  # of the posterior, over which the probability of what is written is averaged


@torch.no_grad()
def with_pseudo_labels(
    model: MultimodalVAE, dataset: SequenceDataset, said: Encoded, threshold: float, items: np.ndarray | None = None,
    seed: int = 0,
) -> Encoded:  # fmt: skip
    """`said`, what the encoders say about `items` of a data set (by default all), and about what they lack of words.

    Each token modality that is read and written is written, greedily from the middle of the posterior, for the items
    that have others and not it. Those whose text has at least the probability `threshold`, averaged over draws of that
    posterior, are added with it as further rows.
    """
    found = [said]
    generator = model.generator(seed)
    for name in said.names:
        if not _both_ways(model, name):
            continue
        lacking = (~said.here(name) & said.present.any(0)).nonzero().squeeze(-1).cpu().numpy()
        added = 0
        for first in range(0, len(lacking), BATCH):
            rows = lacking[first : first + BATCH]
            chosen = rows if items is None else np.asarray(items)[rows]
            batch = to_device(dataset.__getitems__(chosen.tolist()), model.device)
            batch.pop(name, None)
            whole = batch | model.generate(batch, [name], latent_noise=0.0)
            z = model.latents(batch, samples=DRAWS, generator=generator)
            shares = model.log_likelihood(z, whole, [name])[name].exp().mean(0)
            kept = (shares >= threshold) & whole[name].present
            found.append(model.encode(whole)[kept])
            added += int(kept.sum())
        if added:
            warn(f"{added} of {len(lacking)} items without {name} are taken to have what is written")
    return Encoded.join(found)


def _both_ways(model: MultimodalVAE, name: str) -> bool:
    """A token modality that is written as it is read."""
    if name not in model.writable or not model.modalities.writes_tokens(name):
        return False
    return model.modalities.reads(name) == model.modalities.writes(name)
