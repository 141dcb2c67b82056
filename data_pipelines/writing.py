"""A directory of shards that is either whole or not there.

The one idea: everything is written into a hidden neighbour (`.NAME.partial`), flushed to the disk, and moved into
place by one rename at the end. Whoever holds the lock on `.NAME.lock` may write; a killed process loses its lock with
its life, so what the next one finds in `.NAME.partial` is a leftover and is removed. The empty lock file stays.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from gptjax.manifest import ShardFile
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
def replaced(output: Path) -> Iterator[Path]:
    """Give an empty directory to fill; it becomes `output` (in place of an older one) unless the body raises."""
    partial, old = (output.with_name(f".{output.name}.{what}") for what in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        sync(partial)
    except BaseException:
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


class SplitWriter:
    """Appends tokens to `SPLIT_000000.bin`, `SPLIT_000001.bin`, …, each of `shard_tokens` tokens but the last.

    Used as a context; when it ends without an error, `files` lists what was written.
    """

    def __init__(self, directory: Path, split: str, *, dtype: np.dtype, shard_tokens: int) -> None:
        self.files: dict[str, ShardFile] = {}
        self._directory, self._split, self._dtype, self._limit = directory, split, dtype, shard_tokens
        self._file: IO[bytes] | None = None
        self._count = 0

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._finish()
        elif self._file is not None:
            self._file.close()

    def append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._file is None:
                self._file = self._path.open("wb")
                # The header follows when the count is known; until then the file is no shard.
                self._file.write(bytes(HEADER_BYTES))
            head, tokens = tokens[: self._limit - self._count], tokens[self._limit - self._count :]
            self._file.write(head.astype(self._dtype.newbyteorder("<")).tobytes())
            self._count += len(head)
            if self._count == self._limit:
                self._finish()

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

    @property
    def _path(self) -> Path:
        return self._directory / f"{self._split}_{len(self.files):06d}.bin"
