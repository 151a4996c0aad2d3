"""Options that have new names: in code and on the command line the old ones still do, with a warning, for one release.

What stands in the folders of older runs is read under its old names without a word.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

RENAMED: dict[str, dict[str, str]] = {
    "training": {
        "sure": "pseudo_label_threshold",
        "gaps": "span_masking",
        "conditionals": "unimodal_posteriors",
        "components": "fitted_components",
        "ema": "ema_decay",
        "clip": "gradient_clip",
    },
    "model": {"rnn": "cell", "longest": "max_steps_factor"},
    "objective.options": {  # of `coordinated`
        "own": "self_reconstruction",
        "tokens": "token_reconstruction",
        "cross": "cross_reconstruction",
    },
}
OF_OPTIONS = "coordinated"


def current(name: str) -> str:
    """The name that an option goes by today: training.sure is training.pseudo_label_threshold."""
    part, dot, option = name.rpartition(".")
    return part + dot + RENAMED.get(part, {}).get(option, option)


def current_keys(part: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The same options of `part` under the names that they go by today."""
    return {RENAMED[part].get(name, name): value for name, value in options.items()}


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration file or the folder of a run holds, its parts model, training and objective as of today."""
    found = dict(settings)
    for part in ("model", "training"):
        if isinstance(found.get(part), dict):
            found[part] = current_keys(part, found[part])
    if options := _options(found):
        found["objective"] = {**found["objective"], "options": current_keys("objective.options", options)}
    return found


def old_names(settings: Mapping[str, Any]) -> list[str]:
    """The old names in what `current_settings` takes, such as training.sure."""
    parts = {"model": settings.get("model"), "training": settings.get("training")}
    held = {**parts, "objective.options": _options(settings)}
    return [f"{part}.{name}" for part, there in held.items() if isinstance(there, dict)
            for name in there if name in RENAMED[part]]  # fmt: skip


def said(old: str, new: str | None = None) -> str:
    """What an old name has become, for a warning."""
    return f"{old} is now called {new or current(old)}; the next release will not know the old name"


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the objective, where it is the one whose options have new names."""
    objective = settings.get("objective")
    if not isinstance(objective, dict) or objective.get("name", OF_OPTIONS) != OF_OPTIONS:
        return {}
    options = objective.get("options")
    return options if isinstance(options, dict) else {}


def warned_keys(part: str, options: Mapping[str, Any], stacklevel: int) -> dict[str, Any]:
    """`current_keys`, with a FutureWarning for every old name."""
    for name in sorted(options.keys() & RENAMED[part].keys()):
        warn(f"{part}.{name}", stacklevel + 1)
    return current_keys(part, options)


def warn(name: str, stacklevel: int) -> None:
    """Say what an old name has become."""
    warnings.warn(said(name), FutureWarning, stacklevel + 1)


def accepts_old_arguments(part: str) -> Callable[[F], F]:
    """A decorator of a function: old names are keywords of it, with a warning.

    Args:
        part: what its keywords are called in RENAMED.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def accepting(*args: Any, **options: Any) -> Any:
            return function(*args, **warned_keys(part, options, 2))

        return cast(F, accepting)

    return decorate


def accepts_old_names(part: str) -> Callable[[type[T]], type[T]]:
    """A decorator of a configuration: old names are keywords of its constructor and attributes, with a warning.

    Args:
        part: what the configuration is called in RENAMED.
    """

    def decorate(cls: type[T]) -> type[T]:
        init, names = cls.__init__, {field.name for field in fields(cls)}  # type: ignore[arg-type]

        @functools.wraps(init)
        def accepting(self: T, *args: Any, **options: Any) -> None:
            old = {name: options.pop(name) for name in RENAMED[part].keys() & options.keys()}
            given = warned_keys(part, old, 2)
            twice = sorted(given.keys() & options.keys())
            if twice and not names <= options.keys():  # `dataclasses.replace` passes every field
                raise TypeError(f"{part}.{twice[0]} is given by its old name, too: leave the old one out")
            init(self, *args, **options | given)

        cls.__init__ = accepting  # type: ignore[assignment,method-assign]
        for name in RENAMED[part]:
            setattr(cls, name, _reads(part, name))
        return cls

    return decorate


def _reads(part: str, name: str) -> property:
    def read(self: Any) -> Any:
        warn(f"{part}.{name}", 2)
        return getattr(self, RENAMED[part][name])

    return property(read)
