"""An array that stays in its file: what is asked for is read, nothing else.

Files are not memory-mapped. To read what a mapped file has lost ends the process with SIGBUS, without a word, and
while a disk is slow no other thread runs, for a page fault keeps Python's lock.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from gptjax.core.errors import UserError


class FileArray:
    """`count` numbers of a file from byte `offset` on (all of them by default), little-endian unless the type says so.

    Slices, arrays of places and `np.asarray` read copies. `UserError` if the file is gone, or shorter than it was when
    this was made.
    """

    def __init__(self, path: Path, dtype: np.dtype, *, offset: int = 0, count: int | None = None) -> None:
        self.path, self.dtype, self.offset = path, np.dtype(dtype), offset
        self.bytes = path.stat().st_size
        self.count = (self.bytes - offset) // self.dtype.itemsize if count is None else count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice | Int[np.ndarray, "..."]) -> np.ndarray:
        if isinstance(places, slice):
            start, stop, step = places.indices(self.count)
            if step > 0:
                return self.read_ranges(np.array([start]), np.array([max(0, stop - start)]))[::step]
            places = np.arange(start, stop, step)
        where = np.asarray(places).reshape(-1)
        return self.read_ranges(*find_ranges(where)).reshape(np.shape(places))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self.path} is read from the disk, which is a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def read_ranges(self, starts: Int[np.ndarray, " ranges"], lengths: Int[np.ndarray, " ranges"]) -> np.ndarray:
        """The numbers at these ranges, one range after another."""
        found = np.empty(int(lengths.sum()), self.dtype)
        self.read_into(found, starts, lengths, np.cumsum(lengths) - lengths)
        return found

    def read_into(
        self,
        target: np.ndarray,
        starts: Int[np.ndarray, " n"],
        lengths: Int[np.ndarray, " n"],
        places: Int[np.ndarray, " n"],
    ) -> None:
        """Read each range to its place in a contiguous array of this type."""
        if len(starts) and (starts.min() < 0 or lengths.min() < 0 or (starts + lengths).max() > self.count):
            raise IndexError(f"{self.path}: a range lies outside of its {self.count} numbers")
        width, content = self.dtype.itemsize, target.view(np.uint8).data
        try:
            # Opened each time: a data set may have more files than a process may keep open.
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UserError(f"{self.path}: was removed while it was read. {PUT_BACK}") from None
        try:
            for start, length, place in zip(starts.tolist(), lengths.tolist(), places.tolist(), strict=True):
                self._fill(file, content[place * width : (place + length) * width], self.offset + start * width)
        finally:
            os.close(file)

    def _fill(self, file: int, target: memoryview, position: int) -> None:
        while len(target):
            count = os.preadv(file, [target], position)
            if count == 0:
                size = os.fstat(file).st_size
                raise UserError(
                    f"{self.path}: {size:,} bytes, and {self.bytes:,} when it was opened: it was cut while it was "
                    f"read. {PUT_BACK}"
                )
            target, position = target[count:], position + count


PUT_BACK = "Put the file back. The run goes on from its last checkpoint."


def find_ranges(places: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " ranges"], Int[np.ndarray, " ranges"]]:
    """(starts, lengths) of the ranges of consecutive places, in their order."""
    begins = np.flatnonzero(np.diff(places, prepend=places[:1] - 2) != 1)
    return places[begins], np.diff(begins, append=len(places))


def iter_chunks(values: np.ndarray | FileArray, *, size: int = 2**24) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, part) of an array, part by part, so that a file is not held in memory at once."""
    for start in range(0, len(values), size):
        yield start, values[start : start + size]
