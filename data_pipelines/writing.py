"""The shards of a split with what lies beside them, written as tokens come, and gone on with after a kill.

The one idea: `SplitWriter.written` names a state in which everything is on the disk. Whatever was appended later can be
cut off again, so that writing goes on from there to the same bytes.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipelines.companions import DTYPES, CompanionKind, CompanionWriter, reopened
from data_pipelines.disk import sync
from gptjax.core.files import file_sha256
from gptjax.data.manifest import Counts, Manifest, ShardFile, Sidecar
from gptjax.data.shards import HEADER_BYTES, shard_header, token_dtype
from gptjax.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Written:
    """How far a split is on the disk.

    Tokens in all, the bytes of UTF-8 they stand for, where the last document begins, the shards that are finished, and
    how many numbers each companion holds.
    """

    tokens: int = 0
    bytes: int = 0
    last_start: int = 0
    files: dict[str, ShardFile] = field(default_factory=dict)
    companions: dict[CompanionKind, int] = field(default_factory=dict)

    def sizes(self, split: str, *, itemsize: int) -> dict[str, int]:
        """The names of all files that hold this, and the bytes each has at least."""
        sizes = {name: file.bytes for name, file in self.files.items()}
        if unfinished := self.tokens - sum(file.tokens for file in self.files.values()):
            sizes[_shard_name(split, len(self.files))] = HEADER_BYTES + unfinished * itemsize
        return sizes | {f"{split}.{kind}": DTYPES[kind].itemsize * count for kind, count in self.companions.items()}


class SplitWriter:
    """Appends tokens to `SPLIT_000000.bin`, `SPLIT_000001.bin`, …, each of `shard_tokens` tokens but the last.

    Where documents begin goes to `SPLIT.documents` and marks go to `SPLIT.scored`, if they are given. Used as a
    context; when it ends without an error, `files` and `companions` list what was written. With `after`, what `written`
    once returned in the same directory, writing goes on from there, and whatever was written later is forgotten.
    """

    def __init__(
        self, directory: Path, split: str, *, dtype: np.dtype, shard_tokens: int, after: Written | None = None
    ) -> None:
        after = after or Written()
        self.files: dict[str, ShardFile] = dict(after.files)
        self.companions: dict[str, Sidecar] = {}
        self.tokens, self.bytes, self.last_start = after.tokens, after.bytes, after.last_start
        self._directory, self._split, self._dtype, self._limit = directory, split, dtype, shard_tokens
        self._count = after.tokens - sum(file.tokens for file in after.files.values())
        self._file: IO[bytes] | None = None
        if self._count:
            self._file = reopened(self._path, HEADER_BYTES + self._count * dtype.itemsize)
        self._beside: dict[CompanionKind, CompanionWriter] = {
            kind: CompanionWriter(directory, split, kind, after=count) for kind, count in after.companions.items()
        }

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._finish()
            for companion in self._beside.values():
                self.companions |= companion.finish()
        for file in (self._file, *self._beside.values()):
            if file is not None:
                file.close()

    @property
    def counts(self) -> Counts:
        """What the split holds by now."""
        documents = self._beside["documents"].count if "documents" in self._beside else 0
        return Counts(documents, self.tokens, self.bytes)

    def append(
        self, tokens: np.ndarray, starts: np.ndarray | None = None, *, scored: np.ndarray | None = None, size: int = 0
    ) -> None:
        """Write tokens of `size` bytes of text.

        `starts` are the places among them (ascending) at which documents begin; `scored` has a mark for each, 1 where
        its prediction counts.
        """
        if starts is not None and len(starts):
            self._append_beside("documents", starts + self.tokens)
            self.last_start = self.tokens + int(starts[-1])
        if scored is not None:
            self._append_beside("scored", scored)
        self.tokens += len(tokens)
        self.bytes += size
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
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        for companion in self._beside.values():
            companion.flush()
        counts: dict[CompanionKind, int] = {kind: companion.count for kind, companion in self._beside.items()}
        return Written(self.tokens, self.bytes, self.last_start, dict(self.files), counts)

    def _append_beside(self, kind: CompanionKind, values: np.ndarray) -> None:
        if kind not in self._beside:
            self._beside[kind] = CompanionWriter(self._directory, self._split, kind)
        self._beside[kind].append(values)

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
        return self._directory / _shard_name(self._split, len(self.files))


def _shard_name(split: str, number: int) -> str:
    return f"{split}_{number:06d}.bin"


def is_on_disk(directory: Path, split: str, written: Written, *, itemsize: int) -> bool:
    """Whether what was once `written` is still all there, at least by the files' sizes."""
    paths = {directory / name: size for name, size in written.sizes(split, itemsize=itemsize).items()}
    return all(path.is_file() and path.stat().st_size >= size for path, size in paths.items())


@contextlib.contextmanager
def split_writers(
    directory: Path,
    splits: Iterable[str],
    tokenizer: Tokenizer,
    *,
    shard_tokens: int,
    after: Mapping[str, Written] | None = None,
) -> Iterator[dict[str, SplitWriter]]:
    """A writer for each split, all of them used as one context."""
    dtype = token_dtype(tokenizer.vocab_size)
    with contextlib.ExitStack() as stack:
        yield {
            split: stack.enter_context(
                SplitWriter(directory, split, dtype=dtype, shard_tokens=shard_tokens, after=(after or {}).get(split))
            )
            for split in splits
        }


def write_manifest(
    directory: Path,
    writers: Mapping[str, SplitWriter],
    tokenizer: Tokenizer,
    request: dict[str, Any],
    notes: Iterable[str] = (),
) -> Manifest:
    """Write `tokenizer.json` and `manifest.json`, with which the directory is complete.

    `request` says what made it, `notes` what was wrong with the source.
    """
    tokenizer.save(directory)
    manifest = Manifest(
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=token_dtype(tokenizer.vocab_size).name,
        splits={split: writer.counts for split, writer in writers.items()},
        files={name: file for writer in writers.values() for name, file in writer.files.items()},
        sidecars={name: file for writer in writers.values() for name, file in writer.companions.items()},
        request=request,
        notes=list(notes),
    )
    manifest.write(directory)
    return manifest
