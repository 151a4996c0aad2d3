"""A trained model in user units, and its folder: weights, configuration and front ends, loaded without running code."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmseqvae.conditionals import Conditional
from mmseqvae.config import ModelConfig, WindowConfig
from mmseqvae.data import FrontEnd, SequenceDataset, decode_items, encode_items, front_end_from_dict, make_loader
from mmseqvae.files import replacing, write_json
from mmseqvae.flows import Flow
from mmseqvae.forecast import Draws
from mmseqvae.frames import FrontEnd as FrameFrontEnd
from mmseqvae.fusion import FUSIONS, Encoded
from mmseqvae.gaussian import Law
from mmseqvae.labels import Category, Labels
from mmseqvae.likelihoods import FRAME_LIKELIHOODS
from mmseqvae.modalities import Covariate, frames, tokens
from mmseqvae.model import MultimodalVAE
from mmseqvae.priors import PRIORS, Mixture, Prior, VampPrior
from mmseqvae.sampling import Sampling
from mmseqvae.sequence import Sequence
from mmseqvae.text import Tokenizer

COVARIATE_WIDTH = 16
SHOWN = 5  # unknown symbols that a warning names
FORMAT_VERSION = 2
READABLE = (1, 2)
CONFIG, WEIGHTS = "config.json", "model.safetensors"

logger = logging.getLogger(__name__)


def build(front_ends: Mapping[str, FrontEnd], longest: Mapping[str, int], config: ModelConfig) -> MultimodalVAE:
    """A new model with one modality a front end, or one covariate; `longest` is the hard limit of a modality's steps.

    Labels need none. A VampPrior still needs its pseudo-inputs (`start_prior`). Raises ValueError for an unknown
    fusion, prior or likelihood, and where bernoulli frames are not of 0 and 1.
    """
    check_names(config)
    covariates = {
        name: Covariate(front_end.vocabulary_size, COVARIATE_WIDTH)
        for name, front_end in front_ends.items()
        if isinstance(front_end, Category)
    }
    width = COVARIATE_WIDTH * len(covariates)
    modalities = {}
    for name, front_end in front_ends.items():
        if isinstance(front_end, Tokenizer):
            size, end, label = front_end.vocabulary_size, front_end.end_id, isinstance(front_end, Labels)
            limit = Labels.STEPS if label else longest[name]
            never_first = (end, front_end.unknown_id) if label else ()
            modalities[name] = tokens(size, end, limit, config, width, never_first)
        elif not isinstance(front_end, Category):
            if config.likelihood == "bernoulli" and not getattr(front_end, "binary", False):
                raise ValueError(f"bernoulli is a likelihood of frames of 0 and 1, which those of {name} are not")
            modalities[name] = frames(front_end.channels, longest[name], config, width)
    latent = config.latent + config.private * len(modalities)
    fusion = FUSIONS[config.fusion](len(modalities), latent)
    return MultimodalVAE(modalities, fusion, PRIORS[config.prior](config.prior_components, latent), covariates)


def check_names(config: ModelConfig) -> None:
    """Raise ValueError for an unknown fusion, prior or likelihood."""
    for name, known in (("fusion", FUSIONS), ("prior", PRIORS), ("likelihood", FRAME_LIKELIHOODS)):
        if getattr(config, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}")


def start_prior(model: MultimodalVAE, dataset: SequenceDataset, seed: int = 0) -> None:
    """Give a VampPrior its pseudo-inputs, items of the training set drawn without replacement; other priors need none.

    Raises ValueError where the data set has fewer items than the prior has components.
    """
    if isinstance(model.learnt, VampPrior):
        if len(dataset) < model.learnt.components:
            raise ValueError(f"a VampPrior of {model.learnt.components} pseudo-inputs needs as many training items, "
                             f"got {len(dataset)}: lower prior_components")  # fmt: skip
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[: model.learnt.components]
        batch = to_device(dataset.__getitems__(rows.tolist()), model.device)
        read = {model.modality(name).reads or name for name in model.readable}
        model.learnt.start({view: x for view, x in batch.items() if view in read})


@dataclass
class Trained:
    """A model with what turns user units (strings, samples or files, arrays) into sequences and back.

    front_ends: of the modalities, and of the covariates. longest: {modality: most steps}, but for labels; with `config`
    and `front_ends` all that is needed to build the model again. windows: how its items were cut, and others should be.
    """

    model: MultimodalVAE
    front_ends: dict[str, FrontEnd]
    longest: dict[str, int]
    config: ModelConfig
    windows: WindowConfig = field(default_factory=WindowConfig)

    def generate(
        self,
        want: str | Iterable[str] | None = None,
        samples: int = 1,
        decode: Mapping[str, Sampling] | None = None,
        seed: int | None = None,
        latent_noise: float = 1.0,
        **given: Any,
    ) -> dict[str, list[Any]]:
        """Draws of the wanted modalities from what is given: `generate(text="seven", want="audio", samples=5)`.

        given: modalities, and covariates, which are unknown where they are not given or training never saw their value.
        latent_noise: 1 for draws of the posterior, 0 for the middle of it, which is clearest and varies least.
        Returns {name: [item, ...]}: strings, samples [N] float32 at the front end's rate, arrays [T, C]. Raises
        ValueError for names that are neither and TypeError for an item of the wrong type.
        """
        self.model.eval()
        batch, read = self.encode([given]), [name for name in given if name not in self.model.covariates]
        made = self.model.generate(batch, _names(want), read, samples, decode, self._generator(seed), latent_noise)
        return decode_items(self.front_ends, made)

    def sample(
        self,
        n: int,
        want: str | Iterable[str] | None = None,
        decode: Mapping[str, Sampling] | None = None,
        seed: int | None = None,
        **covariates: Any,
    ) -> dict[str, list[Any]]:
        """n matching items of the wanted modalities from the model's prior, in user units.

        Raises ValueError for names that are no covariates.
        """
        self.model.eval()
        foreign = sorted(covariates.keys() - self.model.covariates.keys())
        if foreign:
            raise ValueError(f"{foreign} are no covariates of this model; it has {list(self.model.covariates)}")
        known = self.encode(n * [covariates]) if covariates else None
        made = self.model.sample(n, _names(want), decode=decode, generator=self._generator(seed), covariates=known)
        return decode_items(self.front_ends, made)

    def interpolate(
        self,
        a: Mapping[str, Any],
        b: Mapping[str, Any],
        steps: int,
        want: str | Iterable[str] | None = None,
        decode: Mapping[str, Sampling] | None = None,
        seed: int | None = None,
    ) -> dict[str, list[Any]]:
        """`steps` items on the line between the posterior means of items a and b, such as {"text": "one"}.

        What covariates of a and b say lies on the same line.
        """
        self.model.eval()
        made = self.model.interpolate(
            self.encode([a]), self.encode([b]), steps, _names(want), decode, self._generator(seed)
        )
        return decode_items(self.front_ends, made)

    def forecast(
        self,
        items: Iterable[Mapping[str, Any]],
        steps: int,
        samples: int = 100,
        want: str | Iterable[str] | None = None,
        proposals: int = 1,
        seed: int | None = None,
    ) -> dict[str, Draws]:
        """What follows items such as [{"pulse": array}]: {modality: Draws of [S, B, steps, C] in units of features}.

        A wanted text is a prefix, so its end is taken off; draws of tokens are numbers, to be decoded by the front end.
        The rest as `MultimodalVAE.forecast`.
        """
        return self.forecast_batch(self.encode(items), steps, samples, want, proposals, self._generator(seed))

    def forecast_batch(
        self,
        batch: Mapping[str, Sequence],
        steps: int,
        samples: int = 100,
        want: str | Iterable[str] | None = None,
        proposals: int = 1,
        generator: torch.Generator | None = None,
    ) -> dict[str, Draws]:
        """`forecast` of a batch as a data set gives it."""
        self.model.eval()
        given = [name for name in self.model.readable if bool(batch[name].present.any())]
        names = _names(want) or [name for name in given if isinstance(self.front_ends[name], FrameFrontEnd)]
        labels = [name for name in names if isinstance(self.front_ends.get(name), Labels)]
        if labels:
            raise ValueError(
                f"{', '.join(labels)}: a label is one token, which nothing follows: generate or classify it"
            )
        texts = [name for name in names if isinstance(self.front_ends.get(name), Tokenizer)]
        cut = {n: Sequence(batch[n].values, (batch[n].lengths - 1).clamp(min=0), batch[n].observed) for n in texts}
        made = self.model.forecast({**batch, **cut}, steps, samples, names or None, given, None, proposals, generator)
        return {name: self._in_own_units(name, draws) for name, draws in made.items()}

    def fill(
        self,
        items: Iterable[Mapping[str, Any]],
        samples: int = 100,
        want: str | Iterable[str] | None = None,
        proposals: int = 1,
        seed: int | None = None,
    ) -> dict[str, Draws]:
        """Items whose frames of NaN are drawn: {modality: Draws of [S, B, T, C] in the units of the features}.

        The rest as `MultimodalVAE.fill`.
        """
        self.model.eval()
        batch = self.encode(items)
        given = [name for name in self.model.readable if bool(batch[name].present.any())]
        named = _names(want) or [name for name, x in batch.items() if x.values.is_floating_point() and x.steps]
        made = self.model.fill(batch, samples, named, given, None, proposals, self._generator(seed))
        return {name: self._in_own_units(name, draws) for name, draws in made.items()}

    def _in_own_units(self, name: str, draws: Draws) -> Draws:
        front_end = self.front_ends[name]
        if not isinstance(front_end, FrameFrontEnd):
            return draws
        return replace(draws, samples=front_end.destandardise(draws.samples))

    @torch.no_grad()
    def embed(self, items: Iterable[Mapping[str, Any]] | None = None, **given: Any) -> np.ndarray:
        """Posterior means [N, D] of items such as [{"text": "one"}], or of one item given by keywords [1, D].

        Covariates change none: they condition what is written, not what is read.
        """
        self.model.eval()
        return self.model.posterior(self.encode([given] if items is None else items)).mean.cpu().numpy()

    def encode(self, items: Iterable[Mapping[str, Any]]) -> dict[str, Sequence]:
        """Items in user units, such as [{"text": "one"}], as a batch where the model is; see `encode_items`.

        A warning is logged for what training never saw: symbols of a text, a label, the value of a covariate.
        """
        items = list(items)
        batch = encode_items(self.front_ends, items)
        for name, front_end in self.front_ends.items():
            if isinstance(front_end, Tokenizer | Category):
                for text in {item[name] for item in items if item.get(name) is not None}:
                    if unknown := front_end.unknown(text):
                        shown = ", ".join(repr(symbol) for symbol in list(unknown)[:SHOWN])
                        logger.warning("%s %r: this model never saw %s", name, text, shown)
        return to_device(batch, self.model.device)

    def _generator(self, seed: int | None) -> torch.Generator | None:
        return None if seed is None else self.model.generator(seed)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, each under a temporary name first."""
        folder = Path(folder)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        with replacing(folder / WEIGHTS) as part:
            save_file(weights, part)
        write_json(
            folder / CONFIG,
            {
                "format_version": FORMAT_VERSION,
                "model": asdict(self.config),
                "longest": self.longest,
                "windows": asdict(self.windows),
                "fitted": _fitted_to_dict(self.model.fitted),
                "conditionals": {
                    name: {"kind": conditional.kind, "components": conditional.components}
                    for name, conditional in self.model.conditionals.items()
                },
                "front_ends": {name: front_end.to_dict() for name, front_end in self.front_ends.items()},
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> Trained:
        """Read what `save` wrote. No code in the files is run.

        Raises FileNotFoundError where the folder or a file is missing, ValueError where one is damaged or of another
        format version.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is not the folder of a trained model: {name} is missing")
        try:
            state = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            version = state["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / CONFIG} is damaged: {error!r}") from error
        if version not in READABLE:
            raise ValueError(f"{folder / CONFIG} has format_version {version}; this release reads {READABLE}")
        try:
            front_ends = {name: front_end_from_dict(item) for name, item in state["front_ends"].items()}
            config, windows = ModelConfig(**state["model"]), WindowConfig(**state.get("windows", {}))
            model = build(front_ends, state["longest"], config)
            if version == 1:  # a mixture was all that could be fitted
                state["fitted"] = {"kind": "mixture", "components": state["components"]}
                state["conditionals"] = {}
            model.fitted = _fitted_from_dict(state["fitted"], model.latent)
            for name, how in state["conditionals"].items():
                model.conditionals[name] = Conditional(model.latent, **how)
        except Exception as error:  # tokenizers raises a plain Exception for what it cannot read
            raise ValueError(f"{folder / CONFIG} is damaged: {error!r}") from error
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{folder / WEIGHTS} is damaged or does not fit {CONFIG}: {error}") from error
        return cls(model.eval(), front_ends, state["longest"], config, windows)


def _fitted_to_dict(prior: Prior | None) -> dict[str, Any] | None:
    """What is needed to make room for the weights of a fitted prior."""
    if prior is None:
        return None
    if isinstance(prior, Flow):
        return {"kind": "flow", "components": prior.components}
    assert isinstance(prior, Mixture)
    return {"kind": "mixture", "components": len(prior.log_weights)}


def _fitted_from_dict(state: dict[str, Any] | None, latent: int) -> Prior | None:
    if state is None or not state["components"]:
        return None
    if state["kind"] == "flow":
        return Flow(latent, state["components"])
    empty = torch.zeros(state["components"], latent)
    return Mixture(empty[:, 0], empty, empty.clone())


def load(folder: str | Path) -> Trained:
    """The trained model in a run directory: `mmseqvae.load("runs/spoken_digits-synth").generate(text="seven")`."""
    return Trained.load(folder)


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
def posteriors(model: MultimodalVAE, dataset: SequenceDataset, given: list[str] | None = None) -> Law:
    """The posterior of every item of a data set, in its order: [N, D]."""
    return model.answer(encoded(model, dataset, given))


def to_device(batch: Mapping[str, Sequence], device: torch.device) -> dict[str, Sequence]:
    return {view: sequence.to(device, non_blocking=True) for view, sequence in batch.items()}


def _names(want: str | Iterable[str] | None) -> list[str] | None:
    return None if want is None else [want] if isinstance(want, str) else list(want)
