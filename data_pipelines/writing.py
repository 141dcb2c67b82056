"""A directory of shards that is either whole or not there.

The one idea: everything is written into a hidden neighbour (`.NAME.partial`), flushed to the disk, and moved into
place by one rename at the end. Whoever holds the lock on `.NAME.lock` may write; a killed process loses its lock with
its life, so what the next one finds in `.NAME.partial` is a leftover: removed, or gone on with where it is known how
far it was whole (`SplitWriter.written`). The empty lock file stays.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from gptjax.manifest import Companion, ShardFile
from gptjax.shards import HEADER_BYTES, file_sha256, shard_header


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the right to write `output`, waiting for whoever has it now."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_name(f".{output.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that is preparing {output}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def replaced(output: Path, *, keep: str | None = None) -> Iterator[Path]:
    """Give a directory to fill; it becomes `output` (in place of an older one) unless the body raises.

    The directory is empty, and removed when the body raises. With `keep`, it is left as it is found and after an error
    as long as it holds a file of that name; the body sees to both.
    """
    partial, old = (output.with_name(f".{output.name}.{what}") for what in ("partial", "old"))
    shutil.rmtree(old, ignore_errors=True)
    if keep is None or not (partial / keep).exists():
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    try:
        yield partial
        sync(partial)
    except BaseException:
        if keep is None or not (partial / keep).exists():
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if output.exists():
        os.rename(output, old)
    os.rename(partial, output)
    sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Written:
    """How far a split is on the disk: tokens and documents in all, the latter's last beginning, and shards finished."""

    tokens: int = 0
    documents: int = 0
    last_start: int = 0
    files: dict[str, ShardFile] = field(default_factory=dict)


class SplitWriter:
    """Appends tokens to `SPLIT_000000.bin`, `SPLIT_000001.bin`, …, each of `shard_tokens` tokens but the last.

    Where documents begin goes to `SPLIT.documents`, if it is said. Used as a context; when it ends without an error,
    `files` and `companions` list what was written. With `after`, what `written` once returned in the same directory,
    writing goes on from there, and whatever was written later is forgotten.
    """

    def __init__(
        self, directory: Path, split: str, *, dtype: np.dtype, shard_tokens: int, after: Written | None = None
    ) -> None:
        after = after or Written()
        self.files: dict[str, ShardFile] = dict(after.files)
        self.companions: dict[str, Companion] = {}
        self.tokens, self.documents, self.last_start = after.tokens, after.documents, after.last_start
        self._directory, self._split, self._dtype, self._limit = directory, split, dtype, shard_tokens
        self._count = after.tokens - sum(file.tokens for file in after.files.values())
        self._file: IO[bytes] | None = None
        self._starts: IO[bytes] | None = None
        if self._count:
            self._file = _reopened(self._path, HEADER_BYTES + self._count * dtype.itemsize)
        if self.documents:
            self._starts = _reopened(self._documents_path, 8 * self.documents)

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._finish()
            self._finish_documents()
        for file in (self._file, self._starts):
            if file is not None:
                file.close()

    def append(self, tokens: np.ndarray, starts: np.ndarray | None = None) -> None:
        """Write tokens; `starts` are the places among them (ascending) at which documents begin."""
        if starts is not None and len(starts):
            if self._starts is None:
                self._starts = self._documents_path.open("wb")
            begins = (starts + self.tokens).astype("<i8")
            self._starts.write(begins.tobytes())
            self.documents += len(begins)
            self.last_start = int(begins[-1])
        self.tokens += len(tokens)
        while len(tokens):
            if self._file is None:
                self._file = self._path.open("wb")
                # The header follows when the count is known; until then the file is no shard.
                self._file.write(bytes(HEADER_BYTES))
            head, tokens = tokens[: self._limit - self._count], tokens[self._limit - self._count :]
            self._file.write(head.astype(self._dtype.newbyteorder("<"), copy=False).data)
            self._count += len(head)
            if self._count == self._limit:
                self._finish()

    def written(self) -> Written:
        """Wait until all that was appended is on the disk, and say how much that is."""
        for file in (self._file, self._starts):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
        return Written(self.tokens, self.documents, self.last_start, dict(self.files))

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.seek(0)
        self._file.write(shard_header(self._count, self._dtype))
        self._file.close()
        path = self._path
        sync(path)
        size = path.stat().st_size
        self.files[path.name] = ShardFile(self._split, self._count, size, file_sha256(path))
        self._file, self._count = None, 0

    def _finish_documents(self) -> None:
        if self._starts is None:
            return
        self._starts.close()
        path = self._documents_path
        sync(path)
        self.companions[path.name] = Companion(self._split, "documents", path.stat().st_size, file_sha256(path))

    @property
    def _path(self) -> Path:
        return self._directory / f"{self._split}_{len(self.files):06d}.bin"

    @property
    def _documents_path(self) -> Path:
        return self._directory / f"{self._split}.documents"


def _reopened(path: Path, size: int) -> IO[bytes]:
    """A file to go on writing after its first `size` bytes."""
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file


def is_on_disk(directory: Path, split: str, written: Written, *, itemsize: int) -> bool:
    """Whether what was once `written` is still all there, at least by the files' sizes."""
    count = written.tokens - sum(file.tokens for file in written.files.values())
    wanted = {name: file.bytes for name, file in written.files.items()}
    if count:
        wanted[f"{split}_{len(written.files):06d}.bin"] = HEADER_BYTES + count * itemsize
    if written.documents:
        wanted[f"{split}.documents"] = 8 * written.documents
    paths = {directory / name: size for name, size in wanted.items()}
    return all(path.is_file() and path.stat().st_size >= size for path, size in paths.items())
