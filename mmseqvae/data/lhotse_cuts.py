"""Cuts of lhotse, which prepares many speech corpora: stretches of recordings with what is said in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmseqvae.data.clips import Broken, Piece, file_digest, file_trouble
from mmseqvae.data.manifest import ManifestError
from mmseqvae.features.log_mel import AudioError

if TYPE_CHECKING:
    from lhotse.cut import Cut

CUTS = ("MonoCut", "MultiCut", "MixedCut")
SAID = ("text", "speaker", "language", "gender")  # fields of a supervision that become columns
BYTES_A_SAMPLE = 2


def read_cuts(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """A .jsonl or .jsonl.gz manifest of cuts, numbered from 1: the number and the cells, or what is wrong.

    Columns are id, audio, of the supervision text, speaker, language and gender, and the custom fields of supervision
    and cut, `split` and `label` among them. A cut without supervision is a recording alone. Paths of recordings are
    absolute or start where the command runs, as in lhotse. Raises ManifestError for another manifest or a damaged one,
    ModuleNotFoundError without the extra `data`.
    """
    try:
        from lhotse import CutSet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: lhotse cuts need the extra `data`: pip install 'mmseqvae[data]'", name=error.name
        ) from error
    try:
        for number, cut in enumerate(CutSet.from_file(path), start=1):
            if type(cut).__name__ not in CUTS:
                raise ManifestError(
                    f"{path}: entry {number} is a {type(cut).__name__}, cuts are needed: `lhotse cut simple` makes them"
                )
            yield number, _cells(cut)
    except ManifestError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ManifestError(f"{path}: is no whole lhotse manifest ({error!r})") from error


def _cells(cut: Cut) -> dict[str, Any]:
    cells: dict[str, Any] = {"id": cut.id}
    if cut.has_recording:
        cells["audio"] = Stretch(cut)
    supervisions = cut.supervisions
    if len(supervisions) > 1:
        cells["text"] = Broken(
            f"is that of {len(supervisions)} supervisions: `lhotse cut trim-to-supervisions` makes a cut of each"
        )
    for supervision in supervisions[:1]:
        if len(supervisions) == 1:
            cells |= {name: getattr(supervision, name) for name in SAID}
        cells |= supervision.custom or {}
    return {**cells, **(getattr(cut, "custom", None) or {})}


@dataclass(frozen=True, eq=False)
class Stretch(Piece):
    """The sound of a cut, with all that lhotse knows to do with it (other rates and speeds, mixtures, channels)."""

    cut: Cut

    def __str__(self) -> str:
        return f"{', '.join(self.files()) or 'the recording'} of cut {self.cut.id}"

    def trouble(self) -> str | None:
        return next((wrong for wrong in (file_trouble(Path(file)) for file in self.files()) if wrong), None)

    def digest(self) -> str:
        state = self.cut.drop_supervisions().to_dict()
        state.pop("id", None)
        told = json.dumps(state, sort_keys=True, default=str)
        return hashlib.sha256("\n".join([told, *map(file_digest, self.files())]).encode()).hexdigest()

    @property
    def size(self) -> int:
        return int(self.cut.duration * self.cut.sampling_rate * BYTES_A_SAMPLE)

    def sound(self) -> tuple[np.ndarray, int]:
        from lhotse.audio import AudioLoadingError, DurationMismatchError

        try:
            samples = self.cut.load_audio()
        except (AudioLoadingError, DurationMismatchError, OSError, EOFError, ValueError, RuntimeError) as error:
            told = " ".join(str(error).split())
            raise AudioError(f"{self}: cannot be read as sound, perhaps truncated ({told:.300})") from error
        return np.asarray(samples).T, self.cut.sampling_rate

    def files(self) -> list[str]:
        """Of the recordings that the cut is made of."""
        tracks = getattr(self.cut, "tracks", None)
        cuts = [self.cut] if tracks is None else [track.cut for track in tracks]
        recordings = [cut.recording for cut in cuts if getattr(cut, "recording", None) is not None]
        return [source.source for recording in recordings for source in recording.sources if source.type == "file"]
