"""The token shard format: the files that the pipelines write and training reads.

A file is the 1,024-byte header of llm.c and modded-nanogpt (256 little-endian int32: magic, version, token count),
followed by the token ids. Shards published for those projects can be read as they are.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt

from gptjax.core.errors import UserError
from gptjax.core.files import AnyPath

Format = Literal["shards", "raw-uint16"]
Tokens = UInt[np.ndarray, " n"]

HEADER_BYTES = 1024
MAX_TOKENS = 2**31 - 1
"""Tokens in one file: the count in the header is an int32."""
_MAGIC_AND_VERSION = {np.dtype(np.uint16): (20240520, 1), np.dtype(np.uint32): (20240801, 7)}
"""By token type (llm.c: dev/data/data_common.py for GPT-2 and Llama 3)."""


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 if every id fits, uint32 beyond 65,536 ids."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def shard_header(count: int, dtype: np.dtype) -> bytes:
    """The first 1,024 bytes of a shard that holds `count` tokens."""
    if count > MAX_TOKENS:
        raise UserError(f"a shard holds at most {MAX_TOKENS:,} tokens, got {count:,}; use smaller shards.")
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = (*_MAGIC_AND_VERSION[dtype], count)
    return header.tobytes()


def write_shard(path: AnyPath, tokens: Tokens) -> None:
    """Write uint16 or uint32 tokens with their header and flush them to the disk."""
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
        return _open_raw(path, size, is_shard=magic in dict(_MAGIC_AND_VERSION.values()))
    dtype = _shard_dtype(path, int(magic), int(version), size)
    if size < HEADER_BYTES:
        raise UserError(f"{path}: {size} bytes are too few for the {HEADER_BYTES}-byte header; the file is cut short.")
    wanted = HEADER_BYTES + int(count) * dtype.itemsize
    if count < 0 or size != wanted:
        what = "is cut short" if size < wanted else "has bytes after its end"
        raise UserError(f"{path} {what}: its header promises {count:,} tokens, {wanted:,} bytes; found {size:,} bytes.")
    return map_file(path, dtype, offset=HEADER_BYTES, count=int(count))


def _shard_dtype(path: Path, magic: int, version: int, size: int) -> np.dtype:
    for dtype, (known_magic, known_version) in _MAGIC_AND_VERSION.items():
        if magic == known_magic:
            if version == known_version:
                return dtype
            raise UserError(f"{path}: shard version {version} is unknown; wanted {known_version} for this magic.")
    if size < 12:
        raise UserError(f"{path}: {size} bytes are too few for the {HEADER_BYTES}-byte header; not a shard.")
    raw = " If it is a nanoGPT .bin without header, use format raw-uint16." if size % 2 == 0 else ""
    magics = " or ".join(str(known) for known, _ in _MAGIC_AND_VERSION.values())
    raise UserError(f"{path}: not a token shard: it starts with {magic}, wanted {magics}.{raw}")


def _open_raw(path: Path, size: int, *, is_shard: bool) -> Tokens:
    if is_shard:
        raise UserError(f"{path}: has the header of a shard; use format shards, not raw-uint16.")
    if size % 2:
        raise UserError(f"{path}: {size:,} bytes are not a whole number of uint16 tokens.")
    return map_file(path, np.dtype(np.uint16), offset=0, count=size // 2)


def map_file(path: Path, dtype: np.dtype, *, offset: int = 0, count: int | None = None) -> np.ndarray:
    """`count` little-endian numbers of a file from byte `offset` on (all of them by default), memory-mapped."""
    count = (path.stat().st_size - offset) // dtype.itemsize if count is None else count
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype.newbyteorder("<"), mode="r", offset=offset, shape=(count,))


def iter_chunks(values: np.ndarray, *, size: int = 2**24) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, part) of an array, part by part, so that a mapped file is not held in memory at once."""
    for start in range(0, len(values), size):
        yield start, values[start : start + size]
