"""Files beside the shards that say something of their tokens, written along with them."""

from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from data_pipelines.writing import sync
from gptjax.manifest import Companion
from gptjax.shards import file_sha256

CompanionKind = Literal["documents", "scored"]
DTYPES = {"documents": np.dtype("<i8"), "scored": np.dtype("u1")}


class CompanionWriter:
    """Appends to `SPLIT.KIND`; used as a context, after which `files` says what was written."""

    def __init__(self, directory: Path, split: str, kind: CompanionKind) -> None:
        self.files: dict[str, Companion] = {}
        self._path, self._split = directory / f"{split}.{kind}", split
        self._kind: CompanionKind = kind
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "CompanionWriter":
        self._file = self._path.open("wb")
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        if error is None:
            sync(self._path)
            size = self._path.stat().st_size
            self.files[self._path.name] = Companion(self._split, self._kind, size, file_sha256(self._path))

    def append(self, values: Any) -> None:
        """Add numbers: starts of documents in tokens of the split, or a mark for each token."""
        assert self._file is not None
        self._file.write(np.asarray(values, DTYPES[self._kind]).tobytes())
