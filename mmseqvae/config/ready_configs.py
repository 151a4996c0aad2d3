"""Files of settings: those that come with the library, by their names, and YAML files of the user's own.

settings = load_config("words")
fit(prepare(manifest, audio=settings.audio, text=settings.text, windows=settings.windows), "runs/mine",
    model=settings.model, objective=settings.objective, training=settings.training)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmseqvae.config.data import LogMelConfig, TextConfig, WindowConfig
from mmseqvae.config.model import ModelConfig
from mmseqvae.config.renamed_options import current_settings, old_names, said
from mmseqvae.config.training import ObjectiveConfig, TrainingConfig

READY = {path.stem: path for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))}
"""{name: file} of the settings that come with the library."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a file of settings says, and defaults of what it does not; see `load_config`."""

    audio: LogMelConfig = field(default_factory=LogMelConfig)
    """How recordings become log-mels."""
    text: TextConfig = field(default_factory=TextConfig)
    """How strings become tokens."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    """How long items are cut."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The networks."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is maximised."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How long and how fast."""


def load_config(name: str | Path) -> Settings:
    """The settings of a YAML file, which builds nothing but them.

    Args:
        name: of a ready file, such as "words", or the path of another.

    Returns:
        Settings that `prepare` and `fit` take.

    Raises:
        FileNotFoundError: where there is no such file, and no ready one of that name.
        ValueError: for a setting that is not known, or a value of another type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    found, known = read_file(name), [part.name for part in fields(Settings)]
    if strange := sorted(found.keys() - set(known)):
        raise ValueError(f"{name}: {strange[0]} is no part of the settings; there are {', '.join(known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Settings)
    try:
        return Settings(**parser.instantiate(parser.parse_object(found)))
    except ArgumentError as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error


def read_file(name: str | Path) -> dict[str, Any]:
    """The settings in a file as plain data, under the names that they have today.

    Raises FileNotFoundError where there is no such file, ValueError where it is no YAML or no settings.
    """
    from jsonargparse import get_loader  # safe: plain data only

    path = Path(name) if Path(name).is_file() else READY.get(str(name))
    if path is None:
        raise FileNotFoundError(f"there is no file {name}, and no ready settings of that name: {', '.join(READY)}")
    try:
        found = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except Exception as error:  # of the YAML library, whichever that is
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found or {}, dict):
        raise ValueError(f"{path} must hold settings such as `model: {{latent: 16}}`, not {type(found).__name__}")
    if _builds(found):
        raise ValueError(f"{path}: class_path is no setting: files hold numbers, words and lists, and build nothing")
    for old in old_names(found or {}):
        logger.warning("%s: %s", path, said(old))
    return current_settings(found or {})


def _builds(found: Any) -> bool:
    """Whether there is a class somewhere, which the parser would import."""
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return (isinstance(found, dict) and "class_path" in found) or any(map(_builds, parts))
