"""A training that starts from the weights of another run, with new symbols and modalities beside those of the run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from mmseqvae.data import FrontEnd
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.tokenizers.categories import Category
from mmseqvae.tokenizers.characters import Tokenizer

SHOWN = 8  # symbols that a line names
ITEMS = "learnt.views."  # pseudo-inputs of a VampPrior, which are items of the new corpus


@torch.no_grad()
def start_from(run: Trained, trained: Trained) -> list[str]:
    """Copy the weights of a run into a new model where the two are alike, and tell what is not.

    A weight with one row a symbol is copied symbol by symbol; a new symbol starts as the run's unknown one. The priors
    and posteriors that were fitted after the run's training are left behind: they are fitted anew.

    Args:
        run: a trained model.
        trained: a new model, and the tokenizers and features of its corpus, prepared with `start=run.front_ends`.

    Returns:
        A line each for what is new or left out.

    Raises:
        ValueError: where the corpus lacks symbols of the run, or has other features or tokens under the same name.
    """
    lines = _differences(run.front_ends, trained.front_ends)
    before, after = run.model.state_dict(), trained.model.state_dict()
    ends = {f"modalities.{name}.": run.model.modalities.reads(name) for name in run.model.modalities}
    ends |= {f"modalities.{name}.decoder.": run.model.modalities.writes(name) for name in run.model.modalities}
    ends |= {f"covariates.{name}.": name for name in run.model.covariates}
    fresh, left = [], [name for name in before if name not in after and not _fitted_afterwards(name)]
    for name, new in after.items():
        old, view = before.get(name), _longest_match(ends, name)
        if name.startswith(ITEMS):
            fresh.append(name)
        elif old is not None and old.shape == new.shape:
            new.copy_(old)
        elif old is None or not _by_symbol(old, new, run.front_ends.get(view), trained.front_ends.get(view)):
            fresh.append(name)
    lines += [f"new, not in the run: {part}" for part in _parts(fresh)]
    return lines + [f"not taken from the run: {part}" for part in _parts(left)]


def _differences(before: Mapping[str, FrontEnd], after: Mapping[str, FrontEnd]) -> list[str]:
    lines = []
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            lines.append(f"{name}: in the run, but not in the corpus")
        elif new.kind != old.kind:
            raise ValueError(f"{name} is of kind {old.kind} in the run and of kind {new.kind} in the corpus")
        elif isinstance(old, Tokenizer | Category) and isinstance(new, Tokenizer | Category):
            if lost := [symbol for symbol in old.vocabulary if symbol not in new.vocabulary]:
                raise ValueError(
                    f"{name}: the corpus lacks symbols of the run, {_shown(lost)}: prepare it with "
                    "prepare(..., start=run.front_ends)"
                )
            if added := [symbol for symbol in new.vocabulary if symbol not in old.vocabulary]:
                lines.append(f"{name}: new symbols, {_shown(added)}")
        elif old.to_dict() != new.to_dict():
            raise ValueError(
                f"{name}: the features of the corpus are not those of the run: prepare it with "
                "prepare(..., start=run.front_ends)"
            )
    return lines + [f"{name}: in the corpus, but not in the run" for name in after if name not in before]


def _by_symbol(old: Tensor, new: Tensor, before: FrontEnd | None, after: FrontEnd | None) -> bool:
    """Copy rows [V + k, ...] symbol by symbol, the k rows behind the vocabulary as they are; whether that fits."""
    if not isinstance(before, Tokenizer | Category) or not isinstance(after, Tokenizer | Category):
        return False
    sizes = before.vocabulary_size, after.vocabulary_size
    behind = len(old) - sizes[0] if old.ndim and new.ndim else -1
    if behind < 0 or old.shape[1:] != new.shape[1:] or len(new) - sizes[1] != behind:
        return False
    unknown = old[before.unknown_id] if isinstance(before, Tokenizer) else old[-1]
    new[: sizes[1]] = unknown
    numbers = after.vocabulary
    for symbol, number in before.vocabulary.items():
        new[numbers[symbol]] = old[number]
    new[sizes[1] :] = old[sizes[0] :]
    return True


def _fitted_afterwards(name: str) -> bool:
    return name.startswith(("fitted.", "conditionals."))


def _longest_match(ends: Mapping[str, str], name: str) -> str:
    return ends.get(max((prefix for prefix in ends if name.startswith(prefix)), key=len, default=""), "")


def _parts(names: list[str]) -> list[str]:
    """Names of weights -> those of the parts that they belong to, each once: "modalities.text.decoder.net"."""
    return [part for part, _ in groupby(name.rpartition(".")[0] or name for name in names)]


def _shown(symbols: list[str]) -> str:
    more = f" and {len(symbols) - SHOWN} more" if len(symbols) > SHOWN else ""
    return ", ".join(map(repr, sorted(symbols)[:SHOWN])) + more
