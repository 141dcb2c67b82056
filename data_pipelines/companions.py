"""Files beside the shards that say something of their tokens, written along with them."""

import os
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from gptjax.core.files import file_sha256
from gptjax.data.manifest import Sidecar

CompanionKind = Literal["documents", "scored"]
DTYPES = {"documents": np.dtype("<i8"), "scored": np.dtype("u1")}


class CompanionWriter:
    """Appends to `SPLIT.KIND`, behind the first `after` numbers of it; `count` are in it by now."""

    def __init__(self, directory: Path, split: str, kind: CompanionKind, *, after: int = 0) -> None:
        self.count = after
        self._path, self._split = directory / f"{split}.{kind}", split
        self._kind: CompanionKind = kind
        self._file = reopened(self._path, after * DTYPES[kind].itemsize) if after else self._path.open("wb")

    def append(self, values: Any) -> None:
        """Add numbers: starts of documents in tokens of the split, or a mark for each token."""
        numbers = np.asarray(values, DTYPES[self._kind])
        self._file.write(numbers.tobytes())
        self.count += len(numbers)

    def flush(self) -> None:
        """Wait until all that was appended is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> dict[str, Sidecar]:
        """Close the file, and say under its name what was written."""
        self.flush()
        self.close()
        size = self._path.stat().st_size
        return {self._path.name: Sidecar(self._split, self._kind, size, file_sha256(self._path))}

    def close(self) -> None:
        """Close the file as it is; more than once does no harm."""
        self._file.close()


def reopened(path: Path, size: int) -> IO[bytes]:
    """A file to go on writing behind its first `size` bytes; what else was in it is gone."""
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
