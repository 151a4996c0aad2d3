"""Figures of a trained model on any data: likelihoods, the latent, texts and spectra it gives back. No judge needed.

    evaluate(mmseqvae.load("runs/mine"), corpus.datasets["test"])     # a dict that JSON can hold

What needs somebody who listens (which word is it, whose voice?) is in `cross_generation.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmseqvae.data import Batch, SequenceDataset
from mmseqvae.data.dataset import to_device
from mmseqvae.decoding import FrameSampling
from mmseqvae.features.arrays import FrontEnd as FrameFrontEnd
from mmseqvae.features.log_mel import LogMel
from mmseqvae.inference.importance_sampling import effective_draws, log_mean_exp, mutual_information, scored_draws
from mmseqvae.metrics import (
    Share,
    active_units,
    character_error_rate,
    exact_match,
    mel_cepstral_distortion,
)
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.dataset_posteriors import encoded
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.priors.base import Prior, divergence
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.categories import Labels
from mmseqvae.tokenizers.characters import Tokenizer

BATCH = 64
CEPSTRA = 13
DRAWS = 20  # for a KL that has no closed form
MOST = 4096  # items that mutual information is estimated on: their number limits it, and its cost is their square


@torch.no_grad()
def evaluate(
    trained: Trained, dataset: SequenceDataset, *, draws: int = 100, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Everything that can be said of a model on a data set without a judge, as plain data for JSON.

    likelihood: see `likelihood`; latent: see `latent`; tokens: {modality: {"from": other modality, ...}} see
    `written`; spectra: {modality: ...} see `distortion`. Raises ValueError for an empty data set.
    """
    if not len(dataset):
        raise ValueError("the data set to evaluate on has no items")
    trained.model.eval()
    model = trained.model
    tokens = [name for name in model.writable if isinstance(trained.front_ends[name], Tokenizer)]
    log_mels = [name for name in model.writable if isinstance(trained.front_ends[name], LogMel)]
    return {
        "items": len(dataset),
        "seed": seed,
        "likelihood": likelihood(trained, dataset, draws, seed, progress),
        "latent": latent(trained, dataset),
        "tokens": {
            name: {
                f"from {other}": written(trained, dataset, name, other, seed)
                for other in model.readable
                if other != name
            }
            for name in tokens
        },
        "spectra": {
            name: distortion(trained, dataset, name, seed, progress) for name in log_mels if name in model.readable
        },
    }


@torch.no_grad()
def likelihood(
    trained: Trained, dataset: SequenceDataset, draws: int = 100, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Joint negative log-likelihood of observed steps in nats, importance-weighted with K = `draws`: an upper bound.

    The proposal is the joint posterior; all priors of the model are scored on the same draws (Burda et al. 2016,
    eq. 8): N(0, I), the one learnt with the model, the one fitted after. A prior has `nll` in model units (standardised
    frames) with its standard error over the items, `nll_own_units` with the Jacobian of the standardisation added, both
    also per step of any modality, and the mean effective number of draws. `elbo` is the plain bound under the prior
    that the model was trained with.
    """
    model, generator = trained.model, trained.model.generator(seed)
    priors: dict[str, Prior] = {"standard": model.standard}
    if model.learnt is not None:
        priors["learnt"] = model.learnt
    if model.fitted is not None:
        priors["fitted"] = model.fitted
    found: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value.double().cpu())

    for batch in batches(model, dataset, "likelihood" if progress else None):
        q = model.posterior(batch)
        weights: dict[str, list[Tensor]] = {name: [] for name in priors}
        scores: dict[str, list[Tensor]] = {}
        kls: list[Tensor] = []
        for z, terms in scored_draws(model, q, batch, None, draws, generator):
            total = sum(terms.values(), torch.zeros_like(q.log_prob(z)))
            for name, prior in priors.items():
                weights[name].append(total + prior.log_prob(z) - q.log_prob(z))
            kls.append(divergence(q, model.training_prior, z).expand(len(z), -1))
            for name, term in terms.items():
                scores.setdefault(name, []).append(term)
        for name, pieces in weights.items():
            log_weights = torch.cat(pieces)
            note(f"nll {name}", -log_mean_exp(log_weights))
            note(f"effective {name}", effective_draws(log_weights))
        reconstruction = {name: torch.cat(pieces).mean(0) for name, pieces in scores.items()}
        note("elbo", sum(reconstruction.values(), -torch.cat(kls).mean(0)))
        for name, value in reconstruction.items():
            note(f"reconstruction {name}", value[batch[name].present])
            note(f"steps {name}", batch[name].mask.sum(1))
            decoder: Any = model.modalities.decoder(name)
            if hasattr(decoder, "floor_hits"):
                here = batch[name].present
                context = model.context(batch, len(here))
                z = model.modalities.decoded(name, q.rsample(generator=generator), context)
                note(f"floor {name}", decoder.floor_hits(z, batch[name])[here])

    merged = {name: torch.cat(pieces) for name, pieces in found.items()}
    names = [name for name in model.writable if f"steps {name}" in merged]
    steps = {name: float(merged[f"steps {name}"].sum()) for name in names}
    every = max(1.0, sum(steps.values()))
    jacobian = sum(steps[name] * trained.front_ends[name].log_jacobian for name in names) / len(dataset)

    def bound(name: str, prior: Prior) -> dict[str, Any]:
        each = merged[f"nll {name}"]
        nll = float(each.mean())
        own = nll - jacobian
        return {
            "prior": str(prior),
            "nll": nll,
            "standard_error": float(each.std() / math.sqrt(len(each))) if len(each) > 1 else None,
            "nll_per_step": nll * len(dataset) / every,
            "nll_own_units": own,
            "nll_own_units_per_step": own * len(dataset) / every,
            "effective_draws": float(merged[f"effective {name}"].mean()),
        }

    return {
        "unit": "nats",
        "draws": draws,
        "proposal": "joint posterior",
        "priors": {name: bound(name, prior) for name, prior in priors.items()},
        "elbo": float(merged["elbo"].mean()),
        "log_jacobian_an_item": jacobian,
        "steps_an_item": {name: steps[name] / len(dataset) for name in names},
        "reconstruction": {name: _mean(merged[f"reconstruction {name}"]) for name in names},
        "scale_floor_hits": {name: _mean(merged[f"floor {name}"]) for name in names if f"floor {name}" in merged},
    }


@torch.no_grad()
def latent(trained: Trained, dataset: SequenceDataset) -> dict[str, Any]:
    """KL(q || prior) in nats an item, mutual information and active units, of the joint and every single posterior.

    The prior is the one that the model was trained with; where the KL has no closed form, the mean over DRAWS draws.
    mutual_information: I(x; z) in nats of `of` items that have the modality, at most MOST, drawn at random; it is at
    most ln of their number.
    """
    model, generator = trained.model, trained.model.generator(0)
    means: dict[str, list[Tensor]] = {}
    kls: dict[str, list[Tensor]] = {}
    for batch in batches(model, dataset):
        read = model.encode(batch)
        for name in ["joint", *read.names]:
            q = read.posterior(None if name == "joint" else [name])
            here = slice(None) if name == "joint" else read.here(name)
            means.setdefault(name, []).append(q.mean[here])
            apart = divergence(q, model.training_prior, q.rsample(DRAWS, generator))
            kls.setdefault(name, []).append(apart[here])
    there = {name: torch.cat(pieces) for name, pieces in means.items()}
    said = encoded(model, dataset)

    def told(name: str) -> dict[str, Any]:
        here = torch.ones(len(dataset), dtype=torch.bool) if name == "joint" else said.here(name).cpu()
        rows = some_rows(here).to(model.device)
        q = said.posterior(None if name == "joint" else [name])[rows]
        return {"value": mutual_information(q, generator) if len(rows) else None, "of": len(rows)}

    return {
        "dimensions": model.latent,
        "mutual_information": {name: told(name) for name in there},
        "kl": {name: _mean(torch.cat(pieces)) for name, pieces in kls.items()},
        "active_units": {name: active_units(mean) if len(mean) > 1 else None for name, mean in there.items()},
    }


@torch.no_grad()
def written(trained: Trained, dataset: SequenceDataset, name: str, given: str, seed: int = 0) -> dict[str, Any]:
    """Tokens `name` written from the modality `given` alone, greedily and from one latent draw.

    exact: share of items that are the wanted one to the last symbol; character_error_rate: over all items together,
    None for labels, which are right or wrong. Only items that have both count; covariates are as the items have them.
    """
    model, generator, tokenizer = trained.model, trained.model.generator(seed), trained.front_ends[name]
    wanted: list[str] = []
    got: list[str] = []
    for batch in batches(model, dataset):
        both = batch[name].present & batch[given].present
        if not both.any():
            continue
        batch = {view: sequence[both] for view, sequence in batch.items()}
        known = {view: batch[view] for view in (given, *model.covariates) if view in batch}
        made = model.generate(known, [name], [given], generator=generator)[name]
        wanted += [str(tokenizer.decode(item)) for item in batch[name].items()]
        got += [str(tokenizer.decode(item)) for item in made.items()]
    return {
        "exact": share_to_dict(exact_match(wanted, got)),
        "character_error_rate": (
            character_error_rate(wanted, got) if any(wanted) and not isinstance(tokenizer, Labels) else None
        ),
    }


@torch.no_grad()
def distortion(
    trained: Trained, dataset: SequenceDataset, name: str, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Mel-cepstral distortion in dB of log-mels given back by the model (its own modality read, frame noise 0).

    griffin_lim: of the recordings themselves once they went to a waveform and back: the ceiling of what is heard.
    """
    model, generator, front_end = trained.model, trained.model.generator(seed), trained.front_ends[name]
    assert isinstance(front_end, LogMel)
    order = min(CEPSTRA, front_end.channels - 1)
    found: list[Tensor] = []
    ceiling: list[Tensor] = []
    for batch in batches(model, dataset, f"distortion of {name}" if progress else None):
        here = batch[name].present
        if not here.any():
            continue
        known = {view: batch[view][here] for view in (name, *model.covariates) if view in batch}
        made = model.generate(known, [name], [name], 1, {name: FrameSampling(noise=0)}, generator)[name]
        real = known[name]
        mels = destandardised(front_end, real)
        found.append(mel_cepstral_distortion(destandardised(front_end, made), mels, order))
        ceiling.append(mel_cepstral_distortion(heard_again(front_end, mels), mels, order))
    return {
        "unit": f"dB, cepstra 1 to {order}, aligned in time",
        "reconstruction": _mean(torch.cat(found)) if found else None,
        "griffin_lim": _mean(torch.cat(ceiling)) if ceiling else None,
    }


# --- shared with cross_generation.py, run_report.py and text_metrics.py --------------------------------------------


def batches(model: MultimodalVAE, dataset: SequenceDataset, label: str | None = None) -> Iterator[Batch]:
    """The items in batches of like length, on the model's device."""
    order = dataset.steps.argsort(kind="stable").tolist()
    starts = range(0, len(order), BATCH)
    for start in tqdm(starts, label, unit="batch", delay=1, disable=label is None, leave=False):
        yield to_device(dataset.__getitems__(order[start : start + BATCH]), model.device)


def some_rows(here: Tensor, seed: int = 0) -> Tensor:
    """The numbers of at most MOST rows that are `here` [N], drawn at random: [R]."""
    rows = here.nonzero().squeeze(-1)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MOST]]


def destandardised(front_end: FrameFrontEnd, frames: Sequence) -> Sequence:
    """Frames as decoders write them -> the same in the units of the features, on the CPU."""
    frames = frames.to("cpu")
    return Sequence(front_end.destandardise(frames.values.float()), frames.lengths, frames.observed)


def heard_again(front_end: LogMel, mels: Sequence, bar: tqdm | None = None) -> Sequence:
    """Log-mels (natural logarithm, not standardised) of the waveforms that Griffin-Lim makes of log-mels."""
    again = []
    for item in mels.items():
        again.append(front_end.features(front_end.invert(item)))
        if bar is not None:
            bar.update()
    return Sequence.from_list(again, torch.zeros(0, front_end.channels))


def share_to_dict(share: Share) -> dict[str, Any]:
    """A share with its 95 % interval as plain data; None where nothing was counted."""
    low, high = share.interval
    value = share.value if share.total else None
    return {"value": value, "low": low, "high": high, "hits": share.hits, "of": share.total}


# --- helpers -------------------------------------------------------------------------------------------------------


def _mean(values: Tensor) -> float | None:
    """None where there is nothing to average, which JSON can hold and NaN is not."""
    mean = float(values.double().mean()) if len(values) else math.nan
    return None if math.isnan(mean) else mean
