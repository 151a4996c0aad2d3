"""Many short strings in two arrays, where a list would be as many objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

T = TypeVar("T", str, str | None)
NOTHING = b"\xff"  # None: a byte that no UTF-8 text holds


class StringArray(Sequence[T], Generic[T]):
    """A sequence of strings, and of None where T allows it; equal to any other sequence of the same.

    letters: all strings in UTF-8, one after another, [bytes] uint8. bounds: [N + 1] int64, string i is
    letters[bounds[i] : bounds[i + 1]]. Both may be memory-mapped.

    Raises ValueError where the bounds do not lie within the letters, in order.
    """

    def __init__(self, letters: np.ndarray, bounds: np.ndarray) -> None:
        if not len(bounds) or bounds[0] < 0 or bounds[-1] > len(letters) or (bounds[1:] < bounds[:-1]).any():
            raise ValueError(f"the bounds of strings must rise from 0 to at most {len(letters)}")
        self.letters = letters
        self.bounds = bounds

    @classmethod
    def of(cls, texts: Iterable[T]) -> StringArray[T]:
        """Raises UnicodeEncodeError for a lone surrogate."""
        if isinstance(texts, cls):
            return texts
        letters, bounds = bytearray(), array("q", [0])
        for text in texts:
            letters += NOTHING if text is None else text.encode()
            bounds.append(len(letters))
        return cls(np.frombuffer(letters, np.uint8), np.frombuffer(bounds, np.int64))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, item: int) -> T: ...
    @overload
    def __getitem__(self, item: slice) -> list[T]: ...
    def __getitem__(self, item: int | slice) -> T | list[T]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        place = int(item) + len(self) * (item < 0)
        if not 0 <= place < len(self):
            raise IndexError(f"string {item} of {len(self)}")
        text = self.letters[self.bounds[place] : self.bounds[place + 1]].tobytes()
        return None if text == NOTHING else text.decode()  # type: ignore[return-value]

    def __iter__(self) -> Iterator[T]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"StringArray([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"
