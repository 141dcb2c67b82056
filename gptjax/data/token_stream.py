"""One split of a data set as one long array of tokens, though it lies in many files."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt

from gptjax.core.errors import UserError
from gptjax.data.shards import Format, Tokens, iter_chunks, map_file, open_shard


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
        self._sizes = {path: path.stat().st_size for path in (*paths, *self.sidecars.values()) if path.is_file()}
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    @functools.cached_property
    def _shards(self) -> list[np.ndarray]:
        shards = [np.asarray(open_shard(path, format=self.format)) for path in self.paths]
        if len({shard.dtype for shard in shards}) != 1:
            raise UserError(f"{self.paths[0].parent}: shards of uint16 and of uint32 tokens are mixed in one split.")
        return shards

    @functools.cached_property
    def document_starts(self) -> Int[np.ndarray, " documents"] | None:
        """Where each document begins, ascending from 0; None if no file says so."""
        path = self.sidecars.get("documents")
        return None if path is None else map_file(path, np.dtype(np.int64))

    @functools.cached_property
    def loss_mask(self) -> UInt[np.ndarray, " n"] | None:
        """For each token 1 if its prediction is scored, else 0; None if all are scored."""
        path = self.sidecars.get("scored")
        return None if path is None else map_file(path, np.dtype(np.uint8))

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
        """A copy of tokens `start` up to `start + length`, across file boundaries.

        Raises `UserError` for a file that was cut since it was opened, as do the other ways to read.
        """
        first, last = np.searchsorted(self._ends, [start, max(start, start + length - 1)], side="right")
        self._check_sizes(np.arange(first, last + 1))
        return self._read(start, length)

    def _read(self, start: int, length: int) -> Tokens:
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of a stream of {len(self)}")
        pieces = [np.empty(0, self.dtype)]
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while length > 0:
            begin = start - int(self._ends[shard]) + len(self._shards[shard])
            pieces.append(self._shards[shard][begin : begin + length])
            start, length, shard = start + len(pieces[-1]), length - len(pieces[-1]), shard + 1
        return np.concatenate(pieces)

    def read_sequences(self, starts: Int[np.ndarray, " n"], length: int) -> UInt[np.ndarray, "n length"]:
        """One row of `length` tokens for each start, in the order of `starts`."""
        rows = np.empty((len(starts), length), self.dtype)
        ends = np.concatenate([starts, starts + max(0, length - 1)])
        self._check_sizes(np.unique(np.searchsorted(self._ends, ends, side="right")))
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = self._read(start, length)
        return rows

    def take(self, positions: Int[np.ndarray, " n"]) -> UInt[np.ndarray, " n"]:
        """The tokens at these positions, in their order."""
        if len(self._shards) == 1:
            self._check_sizes(np.zeros(1, int))
            return self._shards[0][positions]
        tokens = np.empty(len(positions), self.dtype)
        shards = np.searchsorted(self._ends, positions, side="right")
        self._check_sizes(found := np.unique(shards))
        for shard in found:
            here = np.flatnonzero(shards == shard)
            content = self._shards[shard]
            tokens[here] = content[positions[here] - (self._ends[shard] - len(content))]
        return tokens

    def _check_sizes(self, shards: Int[np.ndarray, " n"]) -> None:
        """Raise if one of these files, or one beside them, has fewer bytes than when it was opened.

        To read what a mapped file has lost would end the process with SIGBUS.
        """
        paths = [self.paths[shard] for shard in shards.tolist() if shard < len(self.paths)]
        for path in (*paths, *self.sidecars.values()):
            with contextlib.suppress(FileNotFoundError):  # what is deleted stays mapped, and a save notices it
                if (size := os.stat(path).st_size) < (before := self._sizes.get(path, 0)):
                    raise UserError(
                        f"{path}: {size:,} bytes, and {before:,} when it was opened: it was cut while it was read. Put "
                        "the file back. The run goes on from its last checkpoint."
                    )

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
