"""A command line of any function, from its signature and docstring, for the commands and for recipes alike."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, auto_cli
from jsonargparse._core import ArgumentGroup  # the class of every group, which has no public name

from mmseqvae.config.renamed_options import current
from mmseqvae.distributed import processes

ERRORS = (ValueError, OSError, ModuleNotFoundError, Warning)  # what a user can mend; anything else keeps its traceback


def run(commands: Callable[..., Any] | dict[str, Any], args: list[str] | None = None, prog: str | None = None) -> Any:
    """Call a function, or one of several by its name, with the arguments of the command line.

    Options are spelt --with-hyphens, a `list[str]` takes several words and a `bool` that is False none. Progress is
    logged to standard error. So is every warning, as one line, once. A mistake of the user becomes one message there,
    and exit code 2, and so does a warning that Python was told to take for an error.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mmseqvae").setLevel(logging.INFO)
    for chatty in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    several = list(commands.values()) if isinstance(commands, dict) else [commands]
    named = set().union(*(_named(get_type_hints(command)) for command in several))
    words = [_spelt(word, named) for word in (sys.argv[1:] if args is None else args)]
    words = [re.sub(r"^--from(?==|$)", "--start", word) for word in words]  # a name that Python keeps to itself
    words = _gathered(words, set().union(*map(_lists, several)))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = Shown()
            return auto_cli(commands, args=words, parser_class=Parser, prog=prog)
    except ERRORS as error:
        name = (prog or sys.argv[0]).rpartition("/")[2]
        print(f"{name}: error: {_message(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


class Shown:
    """What a terminal is shown of warnings: one line of each text. Of several processes the first alone shows any."""

    def __init__(self) -> None:
        self.texts: set[str] = set()

    def __call__(self, message: Warning | str, *where: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if text not in self.texts and processes().first:
            print(f"warning: {text}", file=sys.stderr)
        self.texts.add(text)


class Spelling:
    """Of options: hyphens, several words for a list, no word for a switch. jsonargparse alone has neither."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        if args and args[0].startswith("--"):
            args = tuple(_hyphens(option) for option in args)
            if kwargs.get("type") is bool and kwargs.get("default") is False:
                del kwargs["type"]
                kwargs["action"] = "store_true"
        return super().add_argument(*args, **kwargs)  # type: ignore[misc]


class Group(Spelling, ArgumentGroup):
    pass


class Parser(Spelling, ArgumentParser):
    _group_class = Group

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One message instead of a page of usage."""
        text, name = " ".join(message.split()), re.match(r"(python -m )?\S+", self.prog)[0]  # type: ignore[index]
        print(f"{name}: error: {text} (see {self.prog.replace(' [options]', '')} --help)", file=sys.stderr)
        raise SystemExit(2) from ex


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


def _lists(command: Callable[..., Any]) -> set[str]:
    """The options of a function that take several words: of type list[str] or tuple[str, str], `| None` or not."""
    found = set()
    for name, kind in get_type_hints(command).items():
        if any(get_origin(part) in (list, tuple) for part in (kind, *get_args(kind))):
            found.add(_hyphens(f"--{name}"))
    return found


def _hyphens(word: str) -> str:
    """--data_dir=a_b -> --data-dir=a_b."""
    return re.sub(r"^--[\w.]+", lambda option: option[0].replace("_", "-"), word)


def _spelt(word: str, named: set[str]) -> str:
    """An option with hyphens and under the name that it has today: --model.rnn=gru -> --model.cell=gru.

    What follows one of the options `named` is a name of the user's and stays as it is.
    """
    option, equals, value = word.partition("=")
    if not re.match(r"--[A-Za-z]", option):
        return word
    plain = option[2:].replace("-", "_")
    prefix = next((known for known in named if plain.startswith(f"{known}.")), "")
    if prefix == "objective.options":  # the arguments of a function
        option = f"--{plain}"
    if prefix == "model.modalities":  # its own name, and a setting
        start, dot, setting = option.rpartition(".")
        option = start + dot + setting.replace("-", "_") if option.count(".") > 2 else option
    if (today := current(plain)) != plain:
        new = f"--{today}" if prefix else _hyphens(f"--{today}")
        print(f"warning: {option} is now called {new}; the next release will not know the old name", file=sys.stderr)
        option = new
    end = len(prefix) + 2 if prefix else None
    return _hyphens(option[:end]) + (option[end:] if prefix else "") + equals + value


def _named(kinds: Mapping[str, Any]) -> set[str]:
    """Options of type dict, whose parts have names of the user's: objective.weights of --objective.weights.text."""
    found = set()
    for name, kind in kinds.items():
        if get_origin(kind) is dict:
            found.add(name)
        elif is_dataclass(kind):
            found |= {f"{name}.{part}" for part in _named(get_type_hints(kind))}
    return found


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def pairs(words: list[str], option: str, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """NAME=VALUE words of an option, beside what is `known`. Raises ValueError where malformed or given twice."""
    found = dict(known or {})
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} {word}: NAME=VALUE is needed")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = value
    return found


def refuse_file(out: Path) -> None:
    """A folder can be made here, which is better known before hours of training than after."""
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"--out {out}: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"--out {out}: {nearest} may not be written to")
