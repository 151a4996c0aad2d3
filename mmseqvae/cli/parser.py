"""A command line of any function, from its signature and docstring, for the commands and for recipes alike."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import SUPPRESS, ArgumentParser, auto_cli, set_parsing_settings

import mmseqvae
from mmseqvae.cli.rewrite_arguments import hyphens, parts_of, spelt
from mmseqvae.config.ready_configs import READY
from mmseqvae.distributed import processes

ERRORS = (ValueError, OSError, ModuleNotFoundError, Warning)  # what a user can mend; anything else keeps its traceback
ESSENTIAL = {
    "audio.sample-rate", "text.units", "windows.length", "model.latent", "objective.name", "objective.beta",
    "training.epochs", "training.batch-size", "training.learning-rate", "training.threads",
}  # fmt: skip
"""Options of configurations that the short help shows."""
ALIASES = {"--start": ("--from",)}  # a name that Python keeps to itself
CONFIG_HELP = f"Options from a YAML file, or ready ones: {', '.join(READY)}. Other options override them."


def run(commands: Callable[..., Any] | dict[str, Any], args: list[str] | None = None, prog: str | None = None) -> Any:
    """Call a function, or one of several by its name, with the arguments of the command line.

    Options are spelt --with-hyphens, a `list[str]` takes several words and a `bool` that is False none. `--help` shows
    the essential ones, `--help all` all of them and `--help model` those of one configuration. Progress is logged to
    standard error. So is every warning, as one line, once. A mistake of the user becomes one message there, and exit
    code 2, and so does a warning that Python was told to take for an error.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mmseqvae").setLevel(logging.INFO)
    for chatty in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    words = sys.argv[1:] if args is None else list(args)
    several = isinstance(commands, dict)
    each = commands if isinstance(commands, dict) else {"": commands}
    words, shown = _help(words or ["--help"] * several, parts_of(each.values()))
    set_parsing_settings(docstring_parse_attribute_docstrings=shown is not None)  # which takes time
    parser = type("Parser", (Parser,), {"shown": shown or "", "parts": parts_of(each.values())})
    options: dict[str, Any] = {"version": mmseqvae.__version__} if several else {}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = Shown()
            words = spelt(words, each)
            return auto_cli(commands, args=words, parser_class=parser, prog=prog, config_help=CONFIG_HELP, **options)
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


class Parser(ArgumentParser):
    """Options with hyphens, switches without a word, and a help that is short; jsonargparse alone has none of these.

    shown: whose options the help shows: those of a configuration among `parts`, "all", or "" for the essential ones.
    """

    shown: str = ""
    parts: list[str] = []  # noqa: RUF012

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.needed: list[str] = []  # what a command line must have
        self.there: list[str] = []  # those of `parts` that this command has
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        # jsonargparse gives its groups of arguments this method, too, and there `parser` is this parser
        return _added(getattr(self, "parser", self), super().add_argument, *args, **kwargs)

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.needed.append("COMMAND")
        return super().add_subcommands(*args, **kwargs)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        self.usage = " ".join([self._name(), *self.needed, "[options]"])
        if self.there and self.shown != "all":
            self.epilog = f"All options: --help all. Those of one kind: --help {' | '.join(self.there)}."
        return super().format_help(*args, **kwargs)

    def shows(self, option: str) -> bool:
        """Whether the help that is asked for has this option."""
        part = option.partition(".")[0]
        if self.shown in ("", "all"):
            return self.shown == "all" or option in ESSENTIAL or (part not in self.parts and option != "print-config")
        return part == self.shown

    def _name(self) -> str:
        return self.prog.replace(" [options]", "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One message instead of a page of usage."""
        text, name = " ".join(message.split()), re.match(r"(python -m )?\S+", self.prog)[0]  # type: ignore[index]
        print(f"{name}: error: {text} (see {self._name()} --help)", file=sys.stderr)
        raise SystemExit(2) from ex


def _added(parser: Parser, add: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Add an argument: with hyphens, as a switch where its default is False, hidden where the help does not show it."""
    if args and args[0].startswith("-"):
        args = tuple(hyphens(option) for option in args)
        if kwargs.get("type") is bool and kwargs.get("default") is False:
            del kwargs["type"]
            kwargs["action"] = "store_true"
        if kwargs.get("required"):
            parser.needed.append(f"{args[0]} {args[0][2:].upper()}")
        args += ALIASES.get(args[0], ())
    elif args:
        parser.needed.append(args[0].upper())
    option = args[-1].lstrip("-") if args else ""
    part = option.partition(".")[0]
    if part in parser.parts and part not in parser.there:
        parser.there.append(part)
    action = add(*args, **kwargs)
    if action is not None and not parser.shows(option):
        action.help = SUPPRESS
    return action


def _help(words: list[str], parts: list[str]) -> tuple[list[str], str | None]:
    """The words without what stands behind --help, and that: "all", a part, or "" for nothing; None without --help."""
    for place, word in enumerate(words):
        option, equals, asked = word.partition("=")
        if option.endswith(".help"):  # jsonargparse has these for classes in a dict
            return words, "all"
        if option in ("-h", "--help"):
            asked = asked if equals else (words[place + 1] if place + 1 < len(words) else "")
            if asked not in ("all", *parts):
                return words, ""
            return [*words[:place], option], asked
    return words, None


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
