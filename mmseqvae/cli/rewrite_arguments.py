"""Words of a command line as jsonargparse wants them: hyphens, lists of several words, names of today, files found."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from mmseqvae.config.ready_configs import read_file
from mmseqvae.config.renamed_options import current, said

logger = logging.getLogger(__name__)


def spelt(words: Sequence[str], commands: Mapping[str, Callable[..., Any]]) -> list[str]:
    """The same words in the one way that the parser knows.

    What `--config` names comes first, behind the command, so that other options override it wherever they stand.
    """
    kinds = [get_type_hints(command) for command in commands.values()]
    named = set().union(*map(_named, kinds))
    several = {hyphens(f"--{name}") for hints in kinds for name, kind in hints.items() if _takes_several(kind)}
    left, settings = _settings(_gathered([_today(word, named) for word in words], several))
    start = next((place + 1 for place, word in enumerate(left) if word in commands), 0)
    return [*left[:start], *settings, *left[start:]]


def _settings(words: list[str]) -> tuple[list[str], list[str]]:
    """The words without --config FILE, and the settings in each of these files as JSON."""
    left, settings = [], []
    following = iter(words)
    for word in following:
        option, equals, name = word.partition("=")
        if option == "--config" and (name := name if equals else next(following, "")):
            settings.append(f"--config={json.dumps(read_file(name), default=str)}")
        else:
            left.append(word)
    return left, settings


def hyphens(word: str) -> str:
    """--data_dir=a_b -> --data-dir=a_b."""
    return re.sub(r"^--[\w.]+", lambda option: option[0].replace("_", "-"), word)


def parts_of(commands: Collection[Callable[..., Any]]) -> list[str]:
    """Parameters that are configurations, such as model: the groups of options."""
    kinds = [get_type_hints(command) for command in commands]
    return list(dict.fromkeys(name for hints in kinds for name, kind in hints.items() if is_dataclass(kind)))


def _today(word: str, named: set[str]) -> str:
    """An option with hyphens and under the name that it has today: --model.rnn=gru -> --model.cell=gru.

    What follows one of the options `named` is a name of the user's and stays as it is.
    """
    option, equals, value = word.partition("=")
    if not re.match(r"--[A-Za-z]", option):
        return word
    plain = option[2:].replace("-", "_")
    prefix = next((known for known in named if plain.startswith(f"{known}.")), "")
    if not prefix:
        new = hyphens(f"--{current(plain)}")
    else:
        start, name = hyphens(f"--{prefix}."), option[len(prefix) + 3 :]
        if prefix == "objective.options":  # arguments of a function
            name = current(plain).removeprefix(f"{prefix}.")
        elif prefix == "model.modalities":
            name, dot, setting = name.partition(".")
            name += dot + setting.replace("-", "_")
        new = start + name
    if current(plain) != plain:
        print(f"warning: {said(option, new)}", file=sys.stderr)
    return new + equals + value


def _gathered(words: list[str], options: set[str]) -> list[str]:
    """--tokens a b -> --tokens=["a", "b"] for the `options` that take several words."""
    left: list[str] = []
    lists: dict[str, list[str]] = {}
    option = None
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in options and not value.startswith("["):
            lists.setdefault(name, []).append(value)
            option = None
        elif word.startswith("--"):
            option = word if word in options else None
            if option is None:
                left.append(word)
            else:
                lists.setdefault(option, [])
        elif option is None:
            left.append(word)
        else:
            lists[option].append(word)
    # an option without words stays as it is, so that the parser complains
    return left + [f"{o}={json.dumps(found, ensure_ascii=False)}" if found else o for o, found in lists.items()]


def _takes_several(kind: Any) -> bool:
    """list[str] or tuple[str, str], `| None` or not."""
    return any(get_origin(part) in (list, tuple) for part in (kind, *get_args(kind)))


def _named(kinds: Mapping[str, Any]) -> set[str]:
    """Options of type dict, whose parts have names of the user's: objective.weights of --objective.weights.text."""
    found = set()
    for name, kind in kinds.items():
        if get_origin(kind) is dict:
            found.add(name)
        elif is_dataclass(kind):
            found |= {f"{name}.{part}" for part in _named(get_type_hints(kind))}
    return found
