"""The token shard format: the files that the pipelines write and training reads.

A file is the 1,024-byte header of llm.c and modded-nanogpt (256 little-endian int32: magic, version, token count),
followed by the token ids. Shards published for those projects can be read as they are.
"""

import copy
import os
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt

from gptjax.core.errors import UserError
from gptjax.core.files import AnyPath
from gptjax.data.file_array import FileArray
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer

Format = Literal["shards", "raw-uint16", "raw-uint32"]
Tokens = UInt[np.ndarray, " n"]

RAW_DTYPES: dict[Format, np.dtype] = {"raw-uint16": np.dtype("<u2"), "raw-uint32": np.dtype("<u4")}
"""Token type of files without a header. Ids that others keep as int32 are the same bytes as uint32."""
LOOKED_BYTES = 2**15
"""How much is looked at in three places of a file without a header, before its ids are believed."""
CONTROL_BYTES = bytes({*range(32), 127} - {9, 10, 12, 13})
"""Bytes that no text has, and ids have everywhere: the upper bytes of small ids are among them."""
HIGH_HALF = 15
"""Largest high half of a 32-bit id: vocabularies have fewer than 2^20 ids."""
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


def open_shard(path: AnyPath, *, format: Format = "shards") -> FileArray:
    """The tokens of one file, after checking its header against its size.

    `raw-uint16` is nanoGPT's `train.bin`: uint16 tokens from the first byte on, no header. Such tokens are looked at
    before they are believed: `UserError` if they seem to be of another width, or are all the same.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such shard.")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = np.frombuffer(file.read(HEADER_BYTES), "u1")
    magic, version, count = header[:12].view("<i4") if len(header) >= 12 else (0, 0, 0)
    if format in RAW_DTYPES:
        return _open_raw(path, size, format=format, is_shard=magic in dict(_MAGIC_AND_VERSION.values()))
    dtype = _shard_dtype(path, int(magic), int(version), size)
    if size < HEADER_BYTES:
        raise UserError(f"{path}: {size} bytes are too few for the {HEADER_BYTES}-byte header; the file is cut short.")
    wanted = HEADER_BYTES + int(count) * dtype.itemsize
    if count < 0 or size != wanted:
        what = "is cut short" if size < wanted else "has bytes after its end"
        raise UserError(f"{path} {what}: its header promises {count:,} tokens, {wanted:,} bytes; found {size:,} bytes.")
    return FileArray(path, dtype, offset=HEADER_BYTES, count=int(count))


def _shard_dtype(path: Path, magic: int, version: int, size: int) -> np.dtype:
    for dtype, (known_magic, known_version) in _MAGIC_AND_VERSION.items():
        if magic == known_magic:
            if version == known_version:
                return dtype
            raise UserError(f"{path}: shard version {version} is unknown; wanted {known_version} for this magic.")
    if size < 12:
        raise UserError(f"{path}: {size} bytes are too few for the {HEADER_BYTES}-byte header; not a shard.")
    width = guess_width(path)
    raw = ""
    if width == 8:
        raw = " It looks like 64-bit ids: python -m data_pipelines.index_shards copies them to --output."
    elif width is not None:
        raw = (
            f" It looks like {8 * width}-bit ids without a header: python -m data_pipelines.index_shards records that, "
            f"or train with --data.format=raw-uint{8 * width}."
        )
    magics = " or ".join(str(known) for known, _ in _MAGIC_AND_VERSION.values())
    raise UserError(f"{path}: not a token shard: it starts with {magic}, wanted {magics}.{raw}")


def _open_raw(path: Path, size: int, *, format: Format, is_shard: bool) -> FileArray:
    dtype = RAW_DTYPES[format]
    if is_shard:
        raise UserError(f"{path}: has the header of a shard; use format shards, not {format}.")
    width = guess_width(path)
    if width not in (None, dtype.itemsize):
        wanted = {2: "use format raw-uint16", 4: "use format raw-uint32"}
        advice = wanted.get(width, "python -m data_pipelines.index_shards copies them to --output")
        raise UserError(f"{path}: its ids look like {8 * width} bits each, not {8 * dtype.itemsize}: {advice}.")
    if size % dtype.itemsize:
        raise UserError(f"{path}: {size:,} bytes are not a whole number of {dtype.name} tokens.")
    return FileArray(path, dtype, count=size // dtype.itemsize)


def has_header(path: Path) -> bool:
    """Whether a file begins like a shard."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") in dict(_MAGIC_AND_VERSION.values())


def guess_width(path: Path) -> Literal[2, 4, 8] | None:
    """Bytes of a token in a file without a header, by the values in three places; None for a file of a few tokens.

    The upper parts of a wider id are 0 or tiny. Raises `UserError` for what is no ids of 16, 32 or 64 bits: values that
    are all the same, text, ids of 8 bits, negative values.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        parts, starts = [], (0,) if size <= 3 * LOOKED_BYTES else (0, size // 16 * 8, (size - LOOKED_BYTES) // 8 * 8)
        for start in starts:
            file.seek(start)
            parts.append(file.read(3 * LOOKED_BYTES // len(starts)))
    content = b"".join(part[: len(part) // 8 * 8] for part in parts)
    if len(content) < 64:
        return None
    quarters = np.frombuffer(content, "<u2").reshape(-1, 4)
    if quarters.min() == quarters.max():
        raise UserError(f"{path}: all values are {quarters[0, 0]}, so these are no tokens.")
    _refuse_other_values(path, content, quarters)
    if quarters[:, 2:].max() == 0 and quarters[:, 1].max() <= HIGH_HALF:
        return 8
    high = quarters[:, 1::2].max()
    return 4 if high == 0 or high <= HIGH_HALF < quarters[:, ::2].max() else 2


def _refuse_other_values(path: Path, content: bytes, quarters: np.ndarray) -> None:
    """Raise `UserError` for text, ids of 8 bits, negative values of 32 or 64 bits, and the highest byte first."""
    if content.startswith(b"LITPKDS"):
        raise UserError(f"{path}: is a file of LitGPT, with a header of its own; wanted the ids alone.")
    if len(content.translate(None, CONTROL_BYTES)) == len(content):
        raise UserError(f"{path}: is plain text; wanted token ids. python -m data_pipelines.prepare makes them.")
    if _are_bytes_alike(content):
        raise UserError(f"{path}: looks like ids of 8 bits; wanted 16, 32 or 64. Write it again as uint16.")
    lower, upper = quarters[:, ::2], quarters[:, 1::2]
    if lower.byteswap().max() <= HIGH_HALF < upper.byteswap().max():  # upper parts of wider ids come first
        found = "ids of 32 or 64 bits with the highest byte first"
        raise UserError(f"{path}: looks like {found}. Write it again with the lowest byte first.")
    is_negative = upper == 0xFFFF
    # Negative values are small. Ids of 16 bits may have 65535 as a marker, beside any other id.
    is_near_zero = (lower[is_negative] >= 0x8000).all()
    if is_negative.any() and is_near_zero and (upper[~is_negative] <= HIGH_HALF).all():
        values = np.ascontiguousarray(quarters).view("<i4")
        found = f"holds the negative value {values[values < 0].flat[0]}, as labels do where nothing is scored"
        raise UserError(f"{path}: {found}; wanted token ids. Write the ids of the inputs instead.")


def _are_bytes_alike(content: bytes) -> bool:
    """Whether even and odd bytes are drawn alike, as ids of 8 bits are, by the chi-squared test of two samples.

    The upper byte of a wider id is another number than its lower one. Bytes that are all equally frequent say nothing:
    made ids below 65,536 have them as well.
    """
    pairs = np.frombuffer(content, np.uint8).reshape(-1, 2)
    pairs = pairs[pairs.any(axis=1)]  # padding says nothing
    low, high = (np.bincount(pairs[:, side], minlength=256) for side in (0, 1))
    total, mean = low + high, 2 * len(pairs) / 256
    degrees = max(1, np.count_nonzero(total) - 1)
    limit = 1 + 3 * np.sqrt(2 / degrees)  # three standard deviations above the mean
    distance = np.sum((low - high) ** 2 / np.maximum(total, 1)) / degrees
    is_even = np.sum((total - mean) ** 2) < limit * 255 * mean
    return bool(len(pairs) >= 2 * degrees and distance < limit and not is_even)


def load_shard_tokenizer(spec: str | os.PathLike[str], *, end_of_text: str | None = None) -> Tokenizer:
    """`load_tokenizer` for shards of texts, whose documents begin with the end of text, whatever begins them elsewhere.

    Chats and pairs begin as the tokenizer says.
    """
    found = copy.copy(load_tokenizer(spec, end_of_text=end_of_text))
    found.begin_of_text_name = None
    return found
