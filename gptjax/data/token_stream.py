"""One split of a data set as one long array of tokens, though it lies in many files."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt

from gptjax.core.errors import UserError
from gptjax.data.file_array import FileArray, find_ranges, iter_chunks
from gptjax.data.packing import expand_ranges
from gptjax.data.shards import Format, Tokens, open_shard


class TokenStream:
    """The tokens of files, one after another in the order given.

    `name` identifies the data in messages. `sidecars` are files with facts about the tokens, by kind (see
    `manifest.Sidecar`).
    """

    def __init__(
        self,
        paths: tuple[Path, ...],
        *,
        name: str,
        format: Format = "shards",
        identity: str = "",
        sidecars: Mapping[str, Path] | None = None,
    ) -> None:
        """`identity` is a hash of what a manifest says of the files. Raises `UserError` for a damaged file."""
        self.paths, self.name, self.sidecars = paths, name, dict(sidecars or {})
        self.format: Format = format
        self._identity = identity
        self._shards = [open_shard(path, format=format) for path in paths]
        if len({shard.dtype for shard in self._shards}) != 1:
            raise UserError(f"{paths[0].parent}: shards of uint16 and of uint32 tokens are mixed in one split.")
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    @functools.cached_property
    def document_starts(self) -> Int[np.ndarray, " documents"] | None:
        """Where each document begins, ascending from 0; None if no file says so."""
        path = self.sidecars.get("documents")
        return None if path is None else np.asarray(FileArray(path, np.dtype(np.int64)))

    @functools.cached_property
    def loss_mask(self) -> FileArray | None:
        """For each token 1 if its prediction is scored, else 0, uint8; None if all are scored."""
        path = self.sidecars.get("scored")
        return None if path is None else FileArray(path, np.dtype(np.uint8))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def dtype(self) -> np.dtype:
        return self._shards[0].dtype

    @property
    def has_manifest(self) -> bool:
        """Whether a manifest says what the files must contain."""
        return bool(self._identity)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 that identifies the data: by the manifest's hashes, else by samples of every file."""
        if self._identity:
            return self._identity
        digest = hashlib.sha256(self.format.encode())
        for path in self.paths:
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                for start in (0, size // 3, size // 3 * 2, max(0, size - 2**16)):
                    file.seek(start)
                    digest.update(file.read(2**16))
        return digest.hexdigest()

    def read(self, start: int, length: int) -> Tokens:
        """Tokens `start` up to `start + length`, across file boundaries.

        Raises `UserError` for a file that was cut since it was opened, as do the other ways to read.
        """
        return self._read_ranges(np.array([start]), np.array([length]))

    def read_sequences(self, starts: Int[np.ndarray, " n"], length: int) -> UInt[np.ndarray, "n length"]:
        """One row of `length` tokens for each start, in the order of `starts`."""
        return self._read_ranges(starts, np.full(len(starts), length)).reshape(len(starts), length)

    def take(self, positions: Int[np.ndarray, " n"]) -> UInt[np.ndarray, " n"]:
        """The tokens at these positions, in their order."""
        return self._read_ranges(*find_ranges(positions))

    def _read_ranges(self, starts: Int[np.ndarray, " ranges"], lengths: Int[np.ndarray, " ranges"]) -> Tokens:
        """The tokens of these ranges, one range after another."""
        ends = starts + lengths
        if len(starts) and (starts.min() < 0 or lengths.min() < 0 or ends.max() > len(self)):
            raise IndexError(f"tokens {starts.min()} to {ends.max()} of a stream of {len(self)}")
        shards = np.searchsorted(self._ends, [starts, np.maximum(starts, ends - 1)], side="right")
        which, shard = expand_ranges(shards[0], np.minimum(shards[1] + 1, len(self._shards)))
        shard_begins = np.concatenate([[0], self._ends[:-1]])[shard]
        begins = np.maximum(starts[which], shard_begins)
        counts = np.minimum(ends[which], self._ends[shard]) - begins
        found, places = np.empty(int(lengths.sum()), self.dtype), np.cumsum(counts) - counts
        for number in np.unique(shard):
            here = shard == number
            self._shards[number].read_into(found, (begins - shard_begins)[here], counts[here], places[here])
        return found

    def list_file_spans(self) -> list[tuple[Path, int, int]]:
        """(file, position of its first token, position after its last) for each file."""
        ends = self._ends.tolist()
        return list(zip(self.paths, [0, *ends[:-1]], ends, strict=True))

    def find_token(self, token: int) -> Int[np.ndarray, " found"]:
        """Every position of an id, ascending. Reads the whole split."""
        found = [np.zeros(0, np.int64)]
        for (_, begin, _), shard in zip(self.list_file_spans(), self._shards, strict=True):
            found += [begin + start + np.flatnonzero(part == token) for start, part in iter_chunks(shard)]
        return np.concatenate(found)
