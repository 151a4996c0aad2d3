"""A trained model in user units, and its folder: weights, configuration and front ends, loaded without running code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mmseqvae.config import ModelConfig, WindowConfig
from mmseqvae.data import FrontEnd, decode_items, encode_items, front_end_from_dict
from mmseqvae.data.data_warning import warn
from mmseqvae.data.dataset import to_device
from mmseqvae.decoding import Sampling
from mmseqvae.features.arrays import FrontEnd as FrameFrontEnd
from mmseqvae.inference.forecasting import Draws
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.build import CorpusInfo, ModelSource, build, model_from
from mmseqvae.pipeline.run_folder import CONFIG, damaged, make_room, read_settings, read_weights, write_run
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.categories import Category, Labels
from mmseqvae.tokenizers.characters import Tokenizer

SHOWN = 5  # unknown symbols that a warning names


@dataclass
class Trained:
    """A model with what turns user units (strings, samples or files, arrays) into sequences and back.

    front_ends: of the modalities, and of the covariates. longest: {modality: most steps}, but for labels. config: what
    the model was built from, None where it is the user's own. windows: how its items were cut, and others should be.
    """

    model: MultimodalVAE
    front_ends: dict[str, FrontEnd]
    longest: dict[str, int]
    config: ModelConfig | None
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

        A `DataWarning` tells what training never saw: symbols of a text, a label, the value of a covariate.
        """
        items = list(items)
        batch = encode_items(self.front_ends, items)
        for name, front_end in self.front_ends.items():
            if isinstance(front_end, Tokenizer | Category):
                for text in dict.fromkeys(item[name] for item in items if item.get(name) is not None):
                    if unknown := front_end.unknown(text):
                        shown = ", ".join(repr(symbol) for symbol in list(unknown)[:SHOWN])
                        warn(f"{name} {text!r}: this model never saw {shown}")
        return to_device(batch, self.model.device)

    def _generator(self, seed: int | None) -> torch.Generator | None:
        return None if seed is None else self.model.generator(seed)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, each under a temporary name first."""
        front_ends = {name: front_end.to_dict() for name, front_end in self.front_ends.items()}
        model = None if self.config is None else asdict(self.config)
        settings = {"model": model, "longest": self.longest, "windows": asdict(self.windows)}
        write_run(Path(folder), self.model, {**settings, "front_ends": front_ends})

    @classmethod
    def load(cls, folder: str | Path, model: ModelSource | None = None) -> Trained:
        """Read what `save` wrote; see `load`."""
        folder = Path(folder)
        state = read_settings(folder)
        with damaged(folder / CONFIG):
            front_ends = {name: front_end_from_dict(item) for name, item in state["front_ends"].items()}
            config = None if state["model"] is None else ModelConfig(**state["model"])
            windows = WindowConfig(**state["windows"])
        if config is None and (model is None or isinstance(model, ModelConfig)):
            raise ValueError(
                f"{folder} holds a model of the user's own: load(run, model=F), F being the function that built it, or "
                "a model of the same networks"
            )
        info = CorpusInfo(front_ends, state["longest"])
        if config is None or model is not None:
            made = model_from(cast(ModelSource, model), info)
            make_room(made, state)
        else:
            with damaged(folder / CONFIG):
                made = build(front_ends, state["longest"], config)
                make_room(made, state)
        read_weights(folder, made)
        return cls(made.eval(), front_ends, state["longest"], config, windows)


def load(folder: str | Path, model: ModelSource | None = None) -> Trained:
    """The trained model in a run directory: `mmseqvae.load("runs/spoken_digits-synth").generate(text="seven")`.

    Args:
        folder: what `fit` wrote. No code in its files is run, and none is named there.
        model: for networks of your own, the function that `fit` was given, or a model of the same networks, which gets
            the weights; None for those that a configuration built.

    Raises:
        FileNotFoundError: where the folder or a file is missing.
        ValueError: where a file is damaged, of another format version, or holds the weights of another model.
    """
    return Trained.load(folder, model)


def _names(want: str | Iterable[str] | None) -> list[str] | None:
    return None if want is None else [want] if isinstance(want, str) else list(want)
