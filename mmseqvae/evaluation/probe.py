"""Classes from posterior means: a linear probe, chosen and calibrated on data that it was not fitted to.

probe = fit_probe(train_means, train_labels, valid_means, valid_labels)
probe.predict(means), probe.probabilities(means)                  # labels, [N, classes]
report(probe, test_means, test_labels)                            # accuracy, macro-F1, calibration, confusion

Or, where the label is a modality of the model, from its decoder and without a probe:

label_probabilities(model, labels, batch, "intent", ["text"])     # [B, labels]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmseqvae.data import Corpus
from mmseqvae.data.manifest import PLAIN
from mmseqvae.data.sources import read_source
from mmseqvae.data.windows import source_of
from mmseqvae.evaluation.summary import share_to_dict
from mmseqvae.files import write_json
from mmseqvae.inference.importance_sampling import log_mean_exp
from mmseqvae.metrics import kept
from mmseqvae.modality import Batch
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.dataset_posteriors import posteriors
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.categories import Labels

STRENGTHS = tuple(10.0**power for power in range(-4, 5))  # C of the logistic regression
HELD = 5  # one item in so many is held out where there is no validation split
BINS = 15
VERSION = 1


@dataclass(frozen=True)
class Probe:
    """softmax((means weight^T + bias) / temperature): weight [K, D], bias [K]. strength: C that was chosen.

    given: the modalities whose posterior means it was fitted to, None where nobody said.
    """

    classes: list[str]
    weight: np.ndarray
    bias: np.ndarray
    temperature: float
    strength: float
    given: list[str] | None = None

    def probabilities(self, means: np.ndarray) -> np.ndarray:
        """Posterior means [N, D] -> [N, K]. Raises ValueError for other dimensions."""
        if means.ndim != 2 or means.shape[1] != self.weight.shape[1]:
            raise ValueError(f"this probe reads [N, {self.weight.shape[1]}], got {list(means.shape)}")
        return _softmax((means @ self.weight.T + self.bias) / self.temperature)

    def predict(self, means: np.ndarray) -> list[str]:
        """The likeliest class of each."""
        return [self.classes[k] for k in self.probabilities(means).argmax(1)]

    def save(self, path: str | Path) -> None:
        """As JSON."""
        state = {"weight": self.weight.tolist(), "bias": self.bias.tolist()}
        plain = {name: getattr(self, name) for name in ("classes", "temperature", "strength", "given")}
        write_json(path, {"format_version": VERSION, **plain, **state})

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError where it is damaged."""
        text = Path(path).read_text(encoding="utf-8")
        try:
            state = json.loads(text)
            if state.pop("format_version") != VERSION:
                raise ValueError("another format version")
            probe = cls(**{**state, "weight": np.array(state["weight"], float), "bias": np.array(state["bias"], float)})
            if probe.weight.ndim != 2 or not len(probe.classes) == len(probe.weight) == len(probe.bias):
                raise ValueError("sizes do not fit together")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no probe: {error!r}") from error
        return probe


def fit_probe(
    means: np.ndarray,
    labels: Many[str],
    valid_means: np.ndarray | None = None,
    valid_labels: Many[str] | None = None,
    seed: int = 0,
) -> Probe:
    """Logistic regression on posterior means [N, D], in units of their spread.

    Of the validation items, drawn at random, one half chooses how strongly it is regularised, by likelihood, and the
    other the temperature (Guo et al. 2017, section 4.2). Without them every fifth item is held out for that.
    scikit-learn's calibration of a fitted classifier finds the same temperature, but none where a class is missing
    among the items to calibrate on.
    Raises ValueError where there are fewer than two classes or fewer than two items to validate with.
    """
    from scipy.optimize import minimize_scalar
    from sklearn.linear_model import LogisticRegression

    x, y = np.asarray(means, float), np.asarray(labels, str)
    random = np.random.default_rng(seed)
    if valid_means is None or valid_labels is None:
        held = np.zeros(len(x), bool)
        held[random.permutation(len(x))[: len(x) // HELD]] = True
        x, y, valid_x, valid_y = x[~held], y[~held], x[held], y[held]
    else:
        valid_x, valid_y = np.asarray(valid_means, float), np.asarray(valid_labels, str)
    classes = sorted(set(y.tolist()))
    if len(classes) < 2:
        raise ValueError(f"a classifier needs at least two classes in training, got {classes}")
    known = random.permutation(np.flatnonzero(np.isin(valid_y, classes)))
    if len(known) < 2:
        raise ValueError(f"{len(known)} labelled items are left to validate with, at least 2 are needed")
    choose, calibrate = known[::2], known[1::2]
    number = {label: k for k, label in enumerate(classes)}
    targets = np.array([number.get(label, -1) for label in valid_y])
    center, spread = x.mean(0), x.std(0) + 1e-12

    fitted: list[tuple[float, Probe]] = []
    for strength in STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=2000).fit((x - center) / spread, y)
        weight, bias = regression.coef_ / spread, regression.intercept_ - (regression.coef_ / spread) @ center
        if len(classes) == 2:  # of two classes it has the difference alone
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        probe = Probe(classes, weight, bias, 1.0, strength)
        fitted.append((_nats(probe, valid_x[choose], targets[choose], 1.0), probe))
    best = min(fitted, key=lambda pair: pair[0])[1]
    found = minimize_scalar(
        lambda log_t: _nats(best, valid_x[calibrate], targets[calibrate], float(np.exp(log_t))),
        bounds=(-3, 3), method="bounded",
    )  # fmt: skip
    return Probe(classes, best.weight, best.bias, float(np.exp(found.x)), best.strength)


def report(probe: Probe, means: np.ndarray, labels: Many[str]) -> dict[str, Any]:
    """Figures as plain data; a label that training never saw is wrong.

    accuracy with its 95 % interval; macro_f1: the mean over the classes that occur; calibration_error: expected, over
    BINS bins of confidence (Guo et al. 2017, eq. 3); nats: an item whose class is known; confusion: rows are the true
    `classes`, columns the predicted ones.
    """
    from sklearn.metrics import confusion_matrix
    from torchmetrics.functional.classification import binary_calibration_error

    probabilities, predicted = probe.probabilities(means), probe.predict(means)
    classes = sorted({*probe.classes, *labels})
    right = [a == b for a, b in zip(predicted, labels, strict=True)]
    confidence = torch.from_numpy(probabilities.max(1)).float()
    number = {label: k for k, label in enumerate(probe.classes)}
    known = [i for i, label in enumerate(labels) if label in number]
    targets = np.array([number[labels[i]] for i in known], int)
    return {
        "items": len(labels),
        "accuracy": share_to_dict(kept(labels, predicted)),
        "macro_f1": macro_f1(labels, predicted),
        "calibration_error": float(binary_calibration_error(confidence, torch.tensor(right).int(), n_bins=BINS)),
        "nats": float(-np.log(probabilities[known, targets]).mean()) if known else None,
        "temperature": probe.temperature,
        "strength": probe.strength,
        "classes": classes,
        "confusion": confusion_matrix(list(labels), predicted, labels=classes).tolist(),
    }


def macro_f1(labels: Many[str], predicted: Many[str]) -> float:
    """The mean F1 over the classes that occur among `labels`."""
    from sklearn.metrics import f1_score

    return float(f1_score(list(labels), list(predicted), labels=sorted(set(labels)), average="macro", zero_division=0))


def classify(
    trained: Trained, corpus: Corpus, labels: dict[str, str], given: list[str] | None = None, split: str = "test",
    probe: Probe | None = None, seed: int = 0,
) -> tuple[Probe, dict[str, Any], list[tuple[str, str, str, str]]]:  # fmt: skip
    """A probe fitted on the split train (unless one is passed), its figures on `split`, and what it says of each item.

    labels: {id: label}; rows are (id, label or "", predicted, probability). Raises ValueError where a split is empty.
    """
    parts: dict[str, tuple[np.ndarray, list[str]]] = {}
    for name in ("train", "valid", split) if probe is None else (split,):
        dataset = corpus.datasets[name]
        if len(dataset):
            parts[name] = (posteriors(trained.model, dataset, given).mean.cpu().double().numpy(), list(dataset.ids))
    if split not in parts:
        there = {name: len(dataset) for name, dataset in corpus.datasets.items()}
        raise ValueError(f"no row is in the split {split}; the splits hold {there}")

    def labelled(name: str) -> tuple[np.ndarray, list[str]]:
        means, ids = parts[name]
        rows = [i for i, id in enumerate(ids) if id in labels]
        return means[rows], [labels[ids[i]] for i in rows]

    if probe is None:
        if "train" not in parts:
            raise ValueError("no row is in the split train, so there is nothing to fit a classifier to")
        means, known = labelled("train")
        valid_means, valid_labels = labelled("valid") if "valid" in parts else (None, None)
        probe = replace(fit_probe(means, known, valid_means, valid_labels or None, seed), given=given)
    test, truth = labelled(split)
    figures: dict[str, Any] = report(probe, test, truth) if truth else {"items": 0}
    means, ids = parts[split]
    sure = probe.probabilities(means).max(1)
    rows = [
        (i, labels.get(i, ""), said, f"{p:.4f}") for i, said, p in zip(ids, probe.predict(means), sure, strict=True)
    ]
    return probe, figures, rows


@torch.no_grad()
def label_probabilities(
    model: MultimodalVAE, labels: Labels, batch: Batch, name: str, given: Iterable[str],
    draws: int = 50, generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """p(label | x_given) of every label that `labels` knows, [B, labels.vocabulary_size]; rows sum to 1.

    The mean over draws z ~ q(z | x_given) of what the decoder says, p(label | z). Where z leaves the label open, the
    likeliest one of this distribution is right more often than the one of a single draw, as `generate` writes it.

    name: the modality of the labels; what the batch says of it is not looked at, unless `given` names it. Number k is
    `labels.decode([k])`; the end (0) and the unknown label (1) have no probability. Raises ValueError where the model
    has no such modality.
    """
    view = model.modalities.writes(model.modalities.check([name], model.writable, "name")[0])
    z = model.latents(batch, given, draws, generator)
    scores = torch.full((z.shape[1], labels.vocabulary_size), -math.inf, device=z.device)
    for k in range(labels.vocabulary_size):
        if k not in (labels.end_id, labels.unknown_id):
            label = Sequence.from_list([torch.tensor([k, labels.end_id])] * z.shape[1]).to(z.device)
            scores[:, k] = log_mean_exp(model.log_likelihood(z, {**batch, view: label}, [name])[name])
    return scores.softmax(1)


def column_of(corpus: Corpus, name: str) -> dict[str, str]:
    """{id: value} of a column of the manifest, whether it is a modality or not; empty cells are left out.

    A window has the value of its row. Raises ManifestError where there is no such column.
    """
    if name in PLAIN:
        found = {row.id: getattr(row, name) for row in corpus.manifest.rows}
    else:
        wanted = {**corpus.manifest.columns, name: "labels"}
        found = {row.id: row.cells.get(name) for row in read_source(corpus.manifest.path, wanted, [name]).rows}
    if corpus.windows.on:
        items = [id for dataset in corpus.datasets.values() for id in dataset.ids]
        found = {id: found.get(source_of(id, found)) for id in items}
    return {id: str(value) for id, value in found.items() if value}


def _nats(probe: Probe, means: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """Mean -log p(target), by log-softmax so that nothing is 0."""
    logits = (means @ probe.weight.T + probe.bias) / temperature
    logits = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(targets)), targets]).mean())


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
