"""What is fitted to the posteriors of the training items after training: a prior to draw from, q(z | one modality)."""

from __future__ import annotations

import logging

import numpy as np
import torch

from mmseqvae.config import TrainingConfig
from mmseqvae.data import SequenceDataset
from mmseqvae.data.data_warning import warn
from mmseqvae.fusion import Encoded
from mmseqvae.inference.unimodal_posteriors import LEAST
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.dataset_posteriors import encoded
from mmseqvae.priors.mixtures import Mixture
from mmseqvae.training.pseudo_labels import with_pseudo_labels

DRAWS = 4  # of every posterior, that the prior is fitted to

logger = logging.getLogger(__name__)


def fit_densities(
    model: MultimodalVAE, dataset: SequenceDataset, training: TrainingConfig, progress: bool = False
) -> None:
    """Fit the prior that is drawn from, and the posteriors of single modalities, to the items of the training split."""
    most, items = training.fitted_items, None
    if most is not None and len(dataset) > most:
        items = np.sort(np.random.default_rng(training.seed).choice(len(dataset), most, replace=False))
    said = encoded(model, dataset, items=items)
    with torch.no_grad():  # a fusion may have weights
        draws = said.posterior().rsample(DRAWS, generator=model.generator(training.seed))
    fit_prior(model, draws, training, progress)
    if training.unimodal_posteriors != "none":
        fit_conditionals(model, dataset, said, training, progress, items)
    model.eval()


def fit_prior(model: MultimodalVAE, draws: torch.Tensor, training: TrainingConfig, progress: bool = False) -> None:
    """Fit what `training.fitted_prior` names, of at most `fitted_components` parts, to draws [S, N, D] of all items.

    How many parts, and when a flow is good enough, is chosen by the log-density of a tenth of them, drawn at random; a
    mixture is then fitted to all. With fewer than 2 LEAST items no tenth is large enough to choose by: it is then a
    mixture, of as many parts as `fit_mixture` allows.
    """
    size, items = training.fitted_components, np.random.default_rng(training.seed).permutation(draws.shape[1])
    held, others = np.split(items, [len(items) // 10])
    if draws.shape[1] >= 2 * LEAST:
        fitted = model.fit_prior(draws[:, others], size, training.seed, progress, draws[:, held], training.fitted_prior)
        if not isinstance(fitted, Mixture):
            return
        if len(fitted.means) < min(size, len(others) // 10):  # else all are wanted that may be had
            size = len(fitted.means)
    elif training.fitted_prior != "mixture":
        warn(f"a mixture instead of a {training.fitted_prior} is the prior: only {draws.shape[1]} items")
    model.fit_prior(draws, size, training.seed, progress)


def fit_conditionals(
    model: MultimodalVAE, dataset: SequenceDataset, said: Encoded, training: TrainingConfig, progress: bool = False,
    items: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Fit q(z | x_m) of every modality that stands beside another often enough, by what is said of `items`.

    Where items lack words, it is done again with those of which the model is then sure, see
    `mmseqvae.training.pseudo_labels`.
    """
    _fit_each(model, said, training, progress)
    if training.pseudo_label_threshold is not None:
        whole = with_pseudo_labels(model, dataset, said, training.pseudo_label_threshold, items, training.seed)
        if len(whole.like) > len(said.like):
            _fit_each(model, whole, training, progress)


def _fit_each(model: MultimodalVAE, said: Encoded, training: TrainingConfig, progress: bool) -> None:
    """Fit q(z | x_m) of every modality that stands beside another in at least 2 LEAST items; tell of the others."""
    for name in said.names:
        together = int((said.here(name) & said.several).sum())
        if together < 2 * LEAST:
            if len(said.names) > 1:  # a modality that is alone needs none
                warn(
                    f"no unimodal posterior of {name} is fitted: {together} items have it and something else, "
                    f"{2 * LEAST} are needed"
                )
            continue
        nats = model.fit_conditional(
            name, said, kind=training.unimodal_posteriors, seed=training.seed, progress=progress
        )
        logger.info("unimodal posterior of %s: %.2f nats a held-out draw of the joint posterior", name, nats)
