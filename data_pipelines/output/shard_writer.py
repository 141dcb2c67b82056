"""Writes the shards of a split and the files beside them while tokens arrive, and continues after a kill.

`SplitWriter.sync` returns a state whose tokens are all on disk. A writer that is opened with it cuts off what was
appended later, so that continuing gives the same bytes.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np

from data_pipelines.output.atomic_dir import sync
from gptjax.manifest import Companion, Counts, Manifest, ShardFile
from gptjax.shards import HEADER_BYTES, file_sha256, shard_header, token_dtype
from gptjax.tokenizer import Tokenizer

SidecarKind = Literal["documents", "scored"]
SIDECAR_DTYPES: dict[SidecarKind, np.dtype] = {"documents": np.dtype("<i8"), "scored": np.dtype("u1")}
"""Where documents begin, in tokens of the split; and a mark for each token, 1 where its prediction counts."""


@dataclass(frozen=True)
class WriteState:
    """How much of a split is on disk."""

    tokens: int = 0
    bytes: int = 0
    """Of the UTF-8 that the tokens encode."""
    documents: int = 0
    last_start: int = 0
    """The token at which the last document begins."""
    files: dict[str, ShardFile] = field(default_factory=dict)
    """Finished shards."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes by file name, of finished shards, the unfinished one and sidecars."""

    def is_on_disk(self, directory: Path) -> bool:
        """Whether every file has at least its size."""
        paths = {directory / name: size for name, size in self.sizes.items()}
        return all(path.is_file() and path.stat().st_size >= size for path, size in paths.items())


class SplitWriter:
    """Appends tokens to `SPLIT_000000.bin`, `SPLIT_000001.bin`, …, of `shard_tokens` tokens each but the last.

    Starts of documents go to the sidecar `SPLIT.documents` and marks to `SPLIT.scored`, if there are any. With the
    `state` of an earlier writer in the same directory, writing continues from there. After `finish`, `files` and
    `sidecars` hold the entries of the manifest.
    """

    def __init__(
        self, directory: Path, split: str, *, dtype: np.dtype, shard_tokens: int, state: WriteState | None = None
    ) -> None:
        state = state or WriteState()
        self.files: dict[str, ShardFile] = dict(state.files)
        self.sidecars: dict[str, Companion] = {}
        self.tokens, self.bytes = state.tokens, state.bytes
        self.documents, self.last_start = state.documents, state.last_start
        self._directory, self._split, self._dtype, self._limit = directory, split, dtype, shard_tokens
        self._count = state.tokens - sum(file.tokens for file in state.files.values())
        """Tokens in the unfinished shard."""
        self._open: dict[str, IO[bytes]] = {
            name: _open_at(directory / name, size) for name, size in state.sizes.items() if name not in state.files
        }

    @property
    def counts(self) -> Counts:
        """Documents, tokens and bytes so far."""
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
            self.last_start = self.tokens + int(starts[-1])
        if scored is not None:
            self._append_sidecar("scored", scored)
        self.tokens += len(tokens)
        self.bytes += size
        while len(tokens):
            head, tokens = tokens[: self._limit - self._count], tokens[self._limit - self._count :]
            if self._count == 0:
                self._open_file(self._shard_name).write(bytes(HEADER_BYTES))  # the header needs the final count
            self._open_file(self._shard_name).write(head.astype(self._dtype.newbyteorder("<"), copy=False).data)
            self._count += len(head)
            if self._count == self._limit:
                self._finish_shard()

    def sync(self) -> WriteState:
        """Wait until everything appended is on disk, and return how much that is."""
        sizes = {name: file.bytes for name, file in self.files.items()}
        for name, file in self._open.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        return WriteState(self.tokens, self.bytes, self.documents, self.last_start, dict(self.files), sizes)

    def finish(self) -> None:
        """Complete the last shard and the sidecars; files stay open until `close`."""
        if self._count:
            self._finish_shard()
        self.sync()
        for kind in SIDECAR_DTYPES:
            if (name := f"{self._split}.{kind}") in self._open:
                self.sidecars[name] = describe_sidecar(self._directory / name, self._split, kind)

    def close(self) -> None:
        """Close all files as they are."""
        for file in self._open.values():
            file.close()

    def _append_sidecar(self, kind: SidecarKind, values: np.ndarray) -> None:
        self._open_file(f"{self._split}.{kind}").write(values.astype(SIDECAR_DTYPES[kind], copy=False).tobytes())

    def _open_file(self, name: str) -> IO[bytes]:
        if name not in self._open:
            self._open[name] = _open_at(self._directory / name, 0)
        return self._open[name]

    def _finish_shard(self) -> None:
        path = self._directory / self._shard_name
        with self._open.pop(path.name) as file:
            file.seek(0)
            file.write(shard_header(self._count, self._dtype))
        sync(path)
        self.files[path.name] = ShardFile(self._split, self._count, path.stat().st_size, file_sha256(path))
        self._count = 0

    @property
    def _shard_name(self) -> str:
        return f"{self._split}_{len(self.files):06d}.bin"


def _open_at(path: Path, size: int) -> IO[bytes]:
    """Open a file for writing after its first `size` bytes; the rest of it is deleted."""
    file = path.open("r+b" if size else "wb")
    file.truncate(size)
    file.seek(size)
    return file


def describe_sidecar(path: Path, split: str, kind: SidecarKind) -> Companion:
    """The manifest entry of a sidecar that is on disk."""
    return Companion(split, kind, path.stat().st_size, file_sha256(path))


@contextlib.contextmanager
def open_split_writers(
    directory: Path,
    splits: Iterable[str],
    *,
    vocab_size: int,
    shard_tokens: int,
    states: Mapping[str, WriteState] | None = None,
) -> Iterator[dict[str, SplitWriter]]:
    """Yield a writer for each split; they finish unless the body raises."""
    dtype, states = token_dtype(vocab_size), states or {}
    writers = {
        split: SplitWriter(directory, split, dtype=dtype, shard_tokens=shard_tokens, state=states.get(split))
        for split in splits
    }
    try:
        yield writers
        for writer in writers.values():
            writer.finish()
    finally:
        for writer in writers.values():
            writer.close()


class SplitContents(Protocol):
    """What the manifest says of a split."""

    @property
    def counts(self) -> Counts: ...
    @property
    def files(self) -> Mapping[str, ShardFile]: ...
    @property
    def sidecars(self) -> Mapping[str, Companion]: ...


def write_manifest(
    directory: Path,
    splits: Mapping[str, SplitContents],
    tokenizer: Tokenizer,
    *,
    request: dict[str, Any],
    dtype: np.dtype | None = None,
    notes: Iterable[str] = (),
) -> Manifest:
    """Write `tokenizer.json` and at last `manifest.json`, which says that the directory is complete."""
    tokenizer.save(directory)
    manifest = Manifest(
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=(dtype or token_dtype(tokenizer.vocab_size)).name,
        splits={name: split.counts for name, split in splits.items()},
        files={name: file for split in splits.values() for name, file in split.files.items()},
        companions={name: file for split in splits.values() for name, file in split.sidecars.items()},
        request=request,
        notes=list(notes),
    )
    manifest.write(directory)
    return manifest
