"""The token shard format, the treaty between the pipelines that write tokens and the training that reads them.

The one idea: a split of a data set is one long stream of token ids, cut into files only because files must end
somewhere; nothing above this room knows where the cuts are. A file is the 1,024-byte header of llm.c and
modded-nanogpt (256 little-endian int32: magic, version, count) and then the ids, so the shards published for those
projects can be read as they are. `manifest.json` beside the files says what they must contain.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt

from gptjax.core.errors import UserError
from gptjax.data.manifest import MANIFEST_NAME, PREPARE_AGAIN, AnyPath, Counts, Manifest, read_manifest

Format = Literal["shards", "raw-uint16"]
HEADER_BYTES = 1024
MAX_TOKENS = 2**31 - 1
"""Tokens in one file: the count in the header is an int32."""
_KINDS = {np.dtype(np.uint16): (20240520, 1), np.dtype(np.uint32): (20240801, 7)}
"""Magic number and version by token type (llm.c: dev/data/data_common.py for GPT-2 and Llama 3)."""

Tokens = UInt[np.ndarray, " n"]


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 while every id fits, uint32 beyond 65,536 ids."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def shard_header(count: int, dtype: np.dtype) -> bytes:
    """The first 1,024 bytes of a shard that holds `count` tokens."""
    if count > MAX_TOKENS:
        raise UserError(f"a shard holds at most {MAX_TOKENS:,} tokens, got {count:,}; use smaller shards.")
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = (*_KINDS[dtype], count)
    return header.tobytes()


def write_shard(path: AnyPath, tokens: Tokens) -> None:
    """Write uint16 or uint32 tokens with their header, and wait until they are on the disk."""
    header = shard_header(len(tokens), tokens.dtype)
    with open(path, "wb") as file:
        file.write(header)
        np.ascontiguousarray(tokens).tofile(file)
        file.flush()
        os.fsync(file.fileno())


def open_shard(path: AnyPath, *, format: Format = "shards") -> Tokens:
    """Memory-map the tokens of one file, after checking its header against its size.

    `raw-uint16` is nanoGPT's `train.bin`: uint16 tokens from the first byte on, no header.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such shard.")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = np.frombuffer(file.read(HEADER_BYTES), "u1")
    magic, version, count = header[:12].view("<i4") if len(header) >= 12 else (0, 0, 0)
    if format == "raw-uint16":
        return _open_raw(path, size, is_shard=magic in dict(_KINDS.values()))
    dtype = _shard_dtype(path, int(magic), int(version), size)
    if size < HEADER_BYTES:
        raise UserError(f"{path}: {size} bytes are too few for the {HEADER_BYTES}-byte header; the file is cut short.")
    wanted = HEADER_BYTES + int(count) * dtype.itemsize
    if count < 0 or size != wanted:
        what = "is cut short" if size < wanted else "has bytes after its end"
        raise UserError(f"{path} {what}: its header promises {count:,} tokens, {wanted:,} bytes; found {size:,} bytes.")
    return map_file(path, dtype, offset=HEADER_BYTES, count=int(count))


def _shard_dtype(path: Path, magic: int, version: int, size: int) -> np.dtype:
    for dtype, (known_magic, known_version) in _KINDS.items():
        if magic == known_magic:
            if version == known_version:
                return dtype
            raise UserError(f"{path}: shard version {version} is unknown; wanted {known_version} for this magic.")
    if size < 12:
        raise UserError(f"{path}: {size} bytes are too few for the {HEADER_BYTES}-byte header; not a shard.")
    raw = " If it is a nanoGPT .bin without header, use format raw-uint16." if size % 2 == 0 else ""
    magics = " or ".join(str(known) for known, _ in _KINDS.values())
    raise UserError(f"{path}: not a token shard: it starts with {magic}, wanted {magics}.{raw}")


def _open_raw(path: Path, size: int, *, is_shard: bool) -> Tokens:
    if is_shard:
        raise UserError(f"{path}: has the header of a shard; use format shards, not raw-uint16.")
    if size % 2:
        raise UserError(f"{path}: {size:,} bytes are not a whole number of uint16 tokens.")
    return map_file(path, np.dtype(np.uint16), offset=0, count=size // 2)


def map_file(path: Path, dtype: np.dtype, *, offset: int, count: int) -> np.ndarray:
    """`count` numbers of a file from byte `offset` on, memory-mapped, little-endian."""
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype.newbyteorder("<"), mode="r", offset=offset, shape=(count,))


class TokenStream:
    """One split as one array of tokens, though it lies in many files (kept in the order of their names).

    `name` says in messages which data this is; `companions` are files that say something of the tokens, by kind (see
    `manifest.Companion`). Memory maps are left behind when a stream is pickled, and opened anew.
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
        self.paths = paths
        self.sidecars = dict(sidecars or {})
        self.name = name
        self.format: Format = format
        self._identity = identity
        self._shards  # noqa: B018  the files are checked here, not at the first batch
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    @functools.cached_property
    def _shards(self) -> list[np.ndarray]:
        shards = [np.asarray(open_shard(path, format=self.format)) for path in self.paths]
        if len({shard.dtype for shard in shards}) != 1:
            raise UserError(f"{self.paths[0].parent}: shards of uint16 and of uint32 tokens are mixed in one split.")
        return shards

    def __getstate__(self) -> dict[str, Any]:
        maps = ("_shards", "documents", "scored")
        return {name: value for name, value in self.__dict__.items() if name not in maps}

    @functools.cached_property
    def document_starts(self) -> Int[np.ndarray, " documents"] | None:
        """Where each document begins, ascending from 0; None where nobody wrote it down."""
        path = self.sidecars.get("documents")
        return None if path is None else map_file(path, np.dtype(np.int64), offset=0, count=path.stat().st_size // 8)

    @functools.cached_property
    def loss_mask(self) -> UInt[np.ndarray, " n"] | None:
        """For each token 1 where its prediction counts, else 0; None where all count."""
        path = self.sidecars.get("scored")
        return None if path is None else map_file(path, np.dtype(np.uint8), offset=0, count=path.stat().st_size)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def dtype(self) -> np.dtype:
        return self._shards[0].dtype

    @property
    def has_manifest(self) -> bool:
        """Whether it is known what the files must contain."""
        return bool(self._identity)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 that tells this data from other data: by the manifest's hashes, else by samples of every file."""
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
        """A copy of tokens `start` up to `start + length`, across the borders of files."""
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of a stream of {len(self)}")
        pieces = []
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while length > 0:
            begin = start - int(self._ends[shard]) + len(self._shards[shard])
            piece = self._shards[shard][begin : begin + length]
            pieces.append(piece)
            start, length, shard = start + len(piece), length - len(piece), shard + 1
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def read_sequences(self, starts: Int[np.ndarray, " n"], length: int) -> UInt[np.ndarray, "n length"]:
        """Rows of `length` tokens, one for each start, in the order and with the repeats of `starts`."""
        starts = np.asarray(starts, np.int64)
        if starts.size and (starts.min() < 0 or starts.max() + length > len(self)):
            raise IndexError(f"starts {starts.min()} to {starts.max()}, {length} tokens each, of {len(self)}")
        rows = np.empty((len(starts), length), self.dtype)
        first = np.searchsorted(self._ends, starts, side="right")
        crosses = starts + length > self._ends[np.minimum(first, len(self._ends) - 1)]
        for shard in np.unique(first[~crosses]) if length else ():
            inside = np.flatnonzero((first == shard) & ~crosses)
            tokens = self._shards[shard]
            begin = starts[inside] - (self._ends[shard] - len(tokens))
            rows[inside] = np.lib.stride_tricks.sliding_window_view(tokens, length)[begin]
        for row in np.flatnonzero(crosses):
            rows[row] = self.read(int(starts[row]), length)
        return rows

    def file_spans(self) -> list[tuple[Path, int, int]]:
        """For each file its first token's place in the split, and the place after its last."""
        ends = self._ends.tolist()
        return list(zip(self.paths, [0, *ends[:-1]], ends, strict=True))

    def take(self, positions: Int[np.ndarray, " n"]) -> UInt[np.ndarray, " n"]:
        """The tokens at these positions, in their order."""
        if len(self._shards) == 1:
            return self._shards[0][positions]
        tokens = np.empty(len(positions), self.dtype)
        shards = np.searchsorted(self._ends, positions, side="right")
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            content = self._shards[shard]
            tokens[here] = content[positions[here] - (self._ends[shard] - len(content))]
        return tokens

    def find(self, token: int) -> Int[np.ndarray, " found"]:
        """Every position of an id, ascending; reads the whole split."""
        begins = self._ends - [len(shard) for shard in self._shards]
        found = [
            begin + start + np.flatnonzero(part == token)
            for begin, shard in zip(begins, self._shards, strict=True)
            for start, part in iter_chunks(shard)
        ]
        return np.concatenate(found) if found else np.zeros(0, np.int64)


def list_split_files(directory: AnyPath, split: str) -> list[Path]:
    """Every `.bin` with the split's name as a word in its own, sorted.

    `fineweb_train_000001.bin`, `train_000000.bin` and nanoGPT's `train.bin` are all of the split `train`.
    """
    return [path for path in sorted(Path(directory).glob("*.bin")) if is_of_split(path.name, split)]


def is_of_split(name: str, split: str) -> bool:
    """Whether the split's name is a word in a file's."""
    return split in re.split(r"[^A-Za-z]+", name)


def open_split(directory: AnyPath, split: str, *, format: Format = "shards") -> TokenStream:
    """One split of a directory: the files its manifest names, else every `.bin` with the split's name in its own."""
    folder = Path(directory)
    if not folder.is_dir():
        what = "is a file; give the directory that holds it" if folder.is_file() else "no such directory of shards"
        raise UserError(f"{folder}: {what}.")
    found = list_split_files(folder, split)
    manifest = read_manifest(folder) if format == "shards" else None
    if manifest is not None:
        _compare(folder, manifest, split, found)
    if not found:
        others = ", ".join(path.name for path in sorted(folder.glob("*.bin"))[:5]) or "no .bin files at all"
        raise UserError(f"{folder}: no files of the split {split!r} (*{split}*.bin); it holds {others}.")
    name, companions = f"{folder} ({split})", _companions(folder, manifest, split)
    identity = _identity(manifest, split)
    stream = TokenStream(tuple(found), name=name, format=format, identity=identity, sidecars=companions)
    if manifest is not None:
        if stream.dtype != np.dtype(manifest.dtype):
            raise UserError(f"{found[0]}: tokens are {stream.dtype}, {MANIFEST_NAME} says {manifest.dtype}.")
        _compare_counts(manifest.splits[split], stream)
    return stream


def _identity(manifest: Manifest | None, split: str) -> str:
    if manifest is None:
        return ""
    files = manifest.files_of(split) | manifest.sidecars_of(split)
    content = [(name, file.bytes, file.sha256) for name, file in files.items()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _companions(folder: Path, manifest: Manifest | None, split: str) -> dict[str, Path]:
    """The files beside the shards, by kind, with the sizes that the manifest says."""
    if manifest is None:
        return {}
    listed = manifest.sidecars_of(split)
    for name, file in listed.items():
        check_size(folder / name, file.bytes)
    return {file.kind: folder / name for name, file in listed.items()}


def check_size(path: Path, wanted: int) -> None:
    """Raise unless the file is there and has the size that the manifest says."""
    if not path.is_file():
        raise UserError(f"{path}: missing, though {MANIFEST_NAME} names it. {PREPARE_AGAIN}")
    if (size := path.stat().st_size) != wanted:
        raise UserError(f"{path}: {size:,} bytes, but {MANIFEST_NAME} says {wanted:,}. {PREPARE_AGAIN}")


def _compare_counts(counts: Counts, stream: TokenStream) -> None:
    """Tokens, documents and marks are as many as the manifest says; the first and the last document begin inside."""
    found = [("tokens", len(stream), counts.tokens)]
    if (starts := stream.document_starts) is not None:
        found.append(("documents", len(starts), counts.documents))
        if len(starts) and not (starts[0] == 0 and 0 <= starts[-1] < len(stream)):
            where = stream.sidecars["documents"]
            raise UserError(f"{where}: its documents do not begin inside the split. {PREPARE_AGAIN}")
    if stream.loss_mask is not None:
        found.append(("marks of scored tokens", len(stream.loss_mask), counts.tokens))
    for what, number, wanted in found:
        if number != wanted:
            raise UserError(f"{stream.name} has {number:,} {what}, {MANIFEST_NAME} says {wanted:,}. {PREPARE_AGAIN}")


def _compare(folder: Path, manifest: Manifest, split: str, found: list[Path]) -> None:
    """The cheap half of `verify`: names and sizes."""
    listed = manifest.files_of(split)
    if found and split not in manifest.splits:
        raise UserError(f"{folder}: holds files of the split {split!r}, of which {MANIFEST_NAME} says nothing.")
    beside = {path.name for path in folder.glob(f"{split}.*") if path.suffix in (".documents", ".scored")}
    extra = sorted(({path.name for path in found} - listed.keys()) | (beside - manifest.sidecars_of(split).keys()))
    missing = sorted(listed.keys() - {path.name for path in found})
    if missing or extra:
        raise UserError(
            f"{folder}: its files are not those of its {MANIFEST_NAME}: missing {', '.join(missing) or 'none'}; "
            f"not listed {', '.join(extra) or 'none'}. Prepare the data again, or remove what does not belong; "
            "if others made the shards, fetch them or adopt them (data_pipelines.adopt) to the end."
        )
    for name, file in listed.items():
        check_size(folder / name, file.bytes)


def file_sha256(path: AnyPath) -> str:
    """SHA-256 of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def iter_chunks(tokens: np.ndarray, *, size: int = 2**24) -> Iterator[tuple[int, np.ndarray]]:
    """(where it begins, some of them): for looking at all of them without holding all."""
    for start in range(0, len(tokens), size):
        yield start, tokens[start : start + size]
