"""Frames as the model sees them: standardised channels, and the front end of arrays that already are frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

CONSTANT = 1e-6  # a channel that varies by less than this share of its size holds only rounding


class FramesError(ValueError):
    """An array that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of every channel, [C] each, in the units of the frames."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, clips: Iterable[np.ndarray | Tensor]) -> Standard:
        """Over all frames of the [T, C] `clips`, in float64; a channel that never varies gets standard deviation 1.

        Chan, Golub & LeVeque 1983, equation 2.1, so that one pass is as exact as two. Raises ValueError for no frames.
        """
        count, mean, scatter = 0, np.zeros(0), np.zeros(0)
        for clip in clips:
            frames = np.asarray(clip, np.float64)
            clip_mean = frames.mean(0) if len(frames) else np.zeros(0)
            if np.isnan(clip_mean).any():  # frames of NaN are holes
                frames = frames[~np.isnan(frames).any(1)]
                clip_mean = frames.mean(0) if len(frames) else clip_mean
            if not len(frames):
                continue
            clip_scatter = np.square(frames - clip_mean).sum(0)
            if not count:
                count, mean, scatter = len(frames), clip_mean, clip_scatter
                continue
            total = count + len(frames)
            delta = clip_mean - mean
            scatter = scatter + clip_scatter + delta**2 * (count * len(frames) / total)
            mean = mean + delta * (len(frames) / total)
            count = total
        if not count:
            raise ValueError("no frames to standardise by")
        std = np.sqrt(scatter / count)
        std[std <= CONSTANT * np.maximum(1, abs(mean))] = 1
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(std).float())

    def apply(self, frames: Tensor) -> Tensor:
        """[..., C] in its own units -> [..., C] of mean 0 and standard deviation 1."""
        return (frames - self.mean.to(frames.device)) / self.std.to(frames.device)

    def undo(self, frames: Tensor) -> Tensor:
        return frames * self.std.to(frames.device) + self.mean.to(frames.device)

    @property
    def log_jacobian(self) -> float:
        """Nats a frame: log p(frame in its own units) = log p(standardised frame) + log_jacobian = ... - sum ln std."""
        return -float(self.std.double().log().sum())

    def to_dict(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, state: dict[str, list[float]]) -> Standard:
        return cls(torch.tensor(state["mean"]), torch.tensor(state["std"]))


class FrontEnd:
    """What front ends of frames share: `fit` once on training frames, then `standardise` and back.

    channels: C of the frames; standard: None before `fit`.
    """

    kind: ClassVar[str]
    channels: int
    standard: Standard | None = None

    def fit(self, clips: Iterable[np.ndarray | Tensor]) -> None:
        """Take mean and standard deviation from [T, C] `clips` of the training split. Raises ValueError for none."""
        self.standard = Standard.fit(clips)

    @property
    def fitted(self) -> Standard:
        """The standardisation; RuntimeError before `fit`."""
        if self.standard is None:
            raise RuntimeError(f"this {self.kind} front end is not fitted: call fit() on training frames first")
        return self.standard

    def standardise(self, frames: Tensor) -> Tensor:
        """[..., C] -> [..., C], what encoders read."""
        return self.fitted.apply(frames)

    def destandardise(self, frames: Tensor) -> Tensor:
        """[..., C] as decoders write -> [..., C] in the units of the features."""
        return self.fitted.undo(frames)

    @property
    def log_jacobian(self) -> float:
        """Nats a frame to add to log p(standardised frame) for log p(frame in its own units)."""
        return self.fitted.log_jacobian


class FrameArrays(FrontEnd):
    """Arrays [T, C] of any real numbers (video features, sensors, piano rolls), from memory or from .npy files.

    A frame of NaN in all its channels is a hole: the step exists, but was not observed. Where channels are missed apart
    from each other, let each be a modality. What holds nothing but 0 and 1 in training is not standardised.
    """

    kind = "arrays"

    def __init__(self, channels: int, standard: Standard | None = None) -> None:
        self.channels = channels
        self.standard = standard

    def fit(self, clips: Iterable[np.ndarray | Tensor]) -> None:
        binary = True

        def watched() -> Iterator[np.ndarray | Tensor]:
            nonlocal binary
            for clip in clips:
                frames = np.asarray(clip)
                binary = binary and bool(((frames == 0) | (frames == 1) | np.isnan(frames)).all())
                yield clip

        standard = Standard.fit(watched())
        self.standard = Standard(torch.zeros(self.channels), torch.ones(self.channels)) if binary else standard

    @property
    def binary(self) -> bool:
        """Whether training frames hold nothing but 0 and 1."""
        return not self.fitted.mean.any() and bool((self.fitted.std == 1).all())

    def read(self, source: np.ndarray | Tensor | str | Path) -> Tensor:
        """An array or an .npy file -> [T, C] float32, T >= 1; frames of NaN are holes.

        Raises FramesError for a file that is missing, truncated or pickled, and for an array that is not
        two-dimensional, is empty, has other channels, is not of real numbers, holds nothing but holes, or holds an
        infinity or a NaN in some channels of a frame only.
        """
        name, array = load_array(source) if isinstance(source, str | Path) else ("the array", np.asarray(source))
        if array.dtype.kind not in "fiub":
            raise FramesError(f"{name}: holds {array.dtype}, real numbers are needed")
        if array.ndim != 2:
            raise FramesError(
                f"{name}: has shape {array.shape}, [T, C] is needed (array[:, None] is T steps of one channel, "
                "array[None] one step of C channels)"
            )
        if not len(array):
            raise FramesError(f"{name}: holds no frames; leave the cell empty where a modality is missing")
        if array.shape[1] != self.channels:
            raise FramesError(f"{name}: has {array.shape[1]} channels, the others have {self.channels}")
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is reported as such
            frames = torch.from_numpy(array.astype(np.float32))
        hole = frames.isnan().all(1)
        bad = ~(frames.isfinite().all(1) | hole)
        if bad.any():
            raise FramesError(
                f"{name}: frame {int(bad.nonzero()[0])} holds a NaN or infinity in float32 (a hole is a frame that is "
                "NaN in all channels)"
            )
        if hole.all():
            raise FramesError(f"{name}: holds nothing but NaN; leave the cell empty where a modality is missing")
        return frames

    def encode(self, source: np.ndarray | Tensor | str | Path) -> Tensor:
        """An array or .npy file in user units -> standardised [T, C]."""
        return self.standardise(self.read(source))

    def decode(self, frames: Tensor) -> np.ndarray:
        """Standardised [T, C] -> array in user units."""
        return self.destandardise(frames.detach().float().cpu()).numpy()

    def describe(self) -> dict[str, Any]:
        """What the raw features depend on, besides the file."""
        return {"kind": self.kind, "channels": self.channels, "holes": "NaN"}

    def to_dict(self) -> dict[str, Any]:
        return {**self.describe(), "standard": self.standard and self.standard.to_dict()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> FrameArrays:
        return cls(state["channels"], state["standard"] and Standard.from_dict(state["standard"]))


def load_array(path: str | Path) -> tuple[str, np.ndarray]:
    """The name and the array of an .npy file. Raises FramesError where it is no whole .npy file of numbers."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise FramesError(f"{path}: file is missing") from error
    except (OSError, ValueError, EOFError) as error:
        raise FramesError(f"{path}: is not a whole .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        raise FramesError(f"{path}: is an archive of arrays, one .npy array is needed")
    return str(path), array


def channels_of(path: str | Path) -> int | None:
    """C of an .npy file [T, C] from its header alone; None where `FrameArrays.read` will have something to complain."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array.shape[1] if isinstance(array, np.ndarray) and array.ndim == 2 else None
