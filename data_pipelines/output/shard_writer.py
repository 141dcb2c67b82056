"""Writes the shards of a split and the files beside them while tokens arrive, and continues after a kill."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from data_pipelines.output.atomic_dir import sync
from data_pipelines.runtime.options import ShardOptions
from gptjax.core.file_sums import READ_BYTES
from gptjax.core.files import file_sha256
from gptjax.data.manifest import Counts, Manifest, ShardFile, Sidecar
from gptjax.data.shards import HEADER_BYTES, Format, open_shard, shard_header, token_dtype
from gptjax.data.splits import list_split_files
from gptjax.process.progress import ReadProgress
from gptjax.tokenization.tokenizer import SAVED_FILES, Tokenizer

SidecarKind = Literal["documents", "scored"]
SIDECAR_DTYPES: dict[SidecarKind, np.dtype] = {"documents": np.dtype("<i8"), "scored": np.dtype("u1")}
"""Where documents begin, in tokens of the split; and a mark for each token, 1 where its prediction counts."""


@dataclass(frozen=True)
class WriteState:
    """How much of a split is on disk: documents, tokens, bytes of the UTF-8 that they encode, bytes by file name.

    `sums` are SHA-256 of so many bytes of each file. `growing` is the shard that is not full, if there is one. Its
    header comes last, so its sum is without it.
    """

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    growing: str | None = None


def are_on_disk(directory: Path, states: Iterable[WriteState]) -> bool:
    """Whether every file of these states begins with what was written; reads them, several at a time."""
    files = [(state, name, size) for state in states for name, size in state.sizes.items()]
    progress = ReadProgress(directory, sum(size for *_, size in files))

    def is_on_disk(file: tuple[WriteState, str, int]) -> bool:
        state, name, size = file
        path, is_growing = directory / name, name == state.growing
        if not path.is_file() or (path.suffix == ".bin" and not is_growing and path.stat().st_size != size):
            return False  # nothing cuts what follows a full shard
        found = _GrowingSum(path, HEADER_BYTES if is_growing else 0).read_until(size, progress.add)
        return found == state.sums.get(name)

    with ThreadPoolExecutor(4) as pool:
        return all(pool.map(is_on_disk, files))


class _GrowingSum:
    """The sum of a file that grows, without its first `start` bytes."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path, self._digest, self._end = path, hashlib.sha256(), start

    def read_until(self, end: int, on_read: Callable[[int], object] = lambda count: None) -> str | None:
        """The sum of the file up to this byte; None if it ends before. What was read before is not read again.

        `on_read` is called after each part, with its bytes.
        """
        with self._path.open("rb") as file:
            file.seek(self._end)
            while self._end < end and (part := file.read(min(READ_BYTES, end - self._end))):
                self._digest.update(part)
                self._end += len(part)
                on_read(len(part))
        return None if self._end < end else self._digest.hexdigest()


class SplitWriter:
    """Appends tokens to `SPLIT_000000.bin`, `SPLIT_000001.bin`, …, of `shard_tokens` tokens each but the last.

    Starts of documents go to the sidecar `SPLIT.documents` and marks to `SPLIT.scored`, if there are any. With the
    `state` of an earlier writer in the same directory, writing continues from there: what came later is cut off.
    """

    def __init__(
        self, directory: Path, split: str, *, dtype: np.dtype, shard_tokens: int, state: WriteState | None = None
    ) -> None:
        state = state or WriteState()
        self.documents, self.tokens, self.bytes = state.documents, state.tokens, state.bytes
        self._directory, self._split, self._dtype, self._limit = directory, split, dtype, shard_tokens
        self._finished = dict(state.sizes)
        self._growing: dict[str, _GrowingSum] = {}
        self._open: dict[str, IO[bytes]] = {}
        for name in (self._shard_name, *(f"{split}.{kind}" for kind in SIDECAR_DTYPES)):
            if name in self._finished:
                self._open_file(name, self._finished.pop(name))
        self._sums = {name: state.sums[name] for name in self._finished}
        """Of finished files."""

    @property
    def counts(self) -> Counts:
        return Counts(self.documents, self.tokens, self.bytes)

    def append(
        self, tokens: np.ndarray, starts: np.ndarray | None = None, *, scored: np.ndarray | None = None, size: int = 0
    ) -> None:
        """Append tokens of `size` bytes of text.

        `starts` are the ascending indices among them at which documents begin. `scored` has a mark for each token, 1
        where its prediction counts.
        """
        if starts is not None and len(starts):
            self._append_sidecar("documents", starts + self.tokens)
            self.documents += len(starts)
        if scored is not None:
            self._append_sidecar("scored", scored)
        self.bytes += size
        while len(tokens):
            count = self.tokens % self._limit
            head, tokens = tokens[: self._limit - count], tokens[self._limit - count :]
            if count == 0:
                self._open_file(self._shard_name).write(bytes(HEADER_BYTES))  # the header needs the final count
            self._open_file(self._shard_name).write(head.astype(self._dtype.newbyteorder("<"), copy=False).data)
            if count + len(head) == self._limit:
                self._finish_shard(self._limit)
            self.tokens += len(head)

    def sync(self) -> WriteState:
        """Wait until everything appended is on disk, and return how much that is."""
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = self._finished | {name: file.tell() for name, file in self._open.items()}
        growing = self._shard_name if self._shard_name in self._open else None
        return WriteState(self.documents, self.tokens, self.bytes, sizes, self._sum(sizes, growing), growing)

    def _sum(self, sizes: Mapping[str, int], shard: str | None) -> dict[str, str]:
        """The sums of so many bytes of each file; the header of this shard comes last."""
        found = dict(self._sums)
        for name in sizes.keys() - found.keys():
            start = HEADER_BYTES if name == shard else 0
            growing = self._growing.setdefault(name, _GrowingSum(self._directory / name, start))
            found[name] = growing.read_until(sizes[name]) or ""
        self._sums = {name: found[name] for name in self._finished}
        return found

    def finish(self) -> None:
        """Complete the last shard and the sidecars."""
        if count := self.tokens % self._limit:
            self._finish_shard(count)
        self.sync()

    def close(self) -> None:
        """Close all files as they are."""
        for file in self._open.values():
            file.close()

    def _append_sidecar(self, kind: SidecarKind, values: np.ndarray) -> None:
        self._open_file(f"{self._split}.{kind}").write(values.astype(SIDECAR_DTYPES[kind], copy=False).tobytes())

    def _open_file(self, name: str, size: int = 0) -> IO[bytes]:
        """Open a file for writing after its first `size` bytes, unless it is open; the rest of it is deleted."""
        if name not in self._open:
            file = self._open[name] = (self._directory / name).open("r+b" if size else "wb")
            file.truncate(size)
            file.seek(size)
        return self._open[name]

    def _finish_shard(self, count: int) -> None:
        name = self._shard_name
        with self._open.pop(name) as file:
            self._finished[name] = file.tell()
            self._growing.pop(name, None)  # of a whole file, the header is part of the sum
            file.seek(0)
            file.write(shard_header(count, self._dtype))
        sync(self._directory / name)

    @property
    def _shard_name(self) -> str:
        return f"{self._split}_{self.tokens // self._limit:06d}.bin"


@contextlib.contextmanager
def open_split_writers(
    directory: Path, options: ShardOptions, *, vocab_size: int, states: Mapping[str, WriteState] | None = None
) -> Iterator[dict[str, SplitWriter]]:
    """Yield a writer for each split that gets text; they finish unless the body raises."""
    how = {"dtype": token_dtype(vocab_size), "shard_tokens": options.shard_tokens}
    writers = {
        split: SplitWriter(directory, split, **how, state=(states or {}).get(split)) for split in options.split_names
    }
    try:
        yield writers
        for writer in writers.values():
            writer.finish()
    finally:
        for writer in writers.values():
            writer.close()


def write_manifest(
    directory: Path,
    counts: Mapping[str, Counts],
    *,
    tokenizer: Tokenizer,
    request: dict[str, Any],
    dtype: np.dtype | None = None,
    notes: Iterable[str] = (),
    format: Format = "shards",
) -> Manifest:
    """Hash the files of the splits, and write `tokenizer.json` and at last `manifest.json`.

    `dtype` and `format` are those of the shards, by default the smallest for the vocabulary, and ours.
    """
    shards = {path: split for split in counts for path in list_split_files(directory, split)}
    sidecars: dict[Path, tuple[str, SidecarKind]] = {
        directory / f"{split}.{kind}": (split, kind) for split in counts for kind in SIDECAR_DTYPES
    }
    paths = [*shards, *filter(Path.is_file, sidecars)]
    with ThreadPoolExecutor() as pool:
        hashes = zip(paths, pool.map(file_sha256, paths), strict=True)
        known = {path: (path.stat().st_size, digest) for path, digest in hashes}
    tokenizer.save(directory)
    manifest = Manifest(
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=(dtype or token_dtype(tokenizer.vocab_size)).name,
        splits=dict(counts),
        files={
            path.name: ShardFile(split, len(open_shard(path, format=format)), *known[path])
            for path, split in shards.items()
        },
        sidecars={path.name: Sidecar(*sidecars[path], *known[path]) for path in paths if path in sidecars},
        request=request,
        notes=list(notes),
        format=format,
        tokenizer_files={name: file_sha256(directory / name) for name in SAVED_FILES if (directory / name).is_file()},
    )
    manifest.write(directory)
    return manifest
