"""Token files of other projects that cannot be read in place: each kind as chunks of ids, by split.

- Megatron-LM's pair `.idx`, `.bin`: the index says the type and where sequences are, each of them a document.
- MosaicML's MDS: `index.json` and `.mds` files, whose samples are rows of consecutive tokens.
- NumPy's `.npy`, and files without a header that have this name (OLMo), `.bin`, or `.ds` (datatrove), of 16, 32 or 64
  bits.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.readers.formats.text_files import explain_errors
from data_pipelines.readers.optional_packages import import_pyarrow
from data_pipelines.readers.paths import find_split, tell_once
from gptjax.core.errors import UserError, count_of, quote
from gptjax.core.files import LARGEST_TOKENIZER, read_text
from gptjax.data.file_array import FileArray, iter_chunks
from gptjax.data.shards import HIGH_HALF, guess_width, has_header, open_shard

MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""By the code in the index. Megatron takes int32 from a vocabulary of 65,500 on, below it uint16."""
NPY_MAGIC = b"\x93NUMPY"
MDS_INDEX = "index.json"
MDS_CODECS = {"zstd": "zstd", "gz": "gzip", "bz2": "bz2", "br": "brotli"}
"""By the word in the index, which is also the ending of the file."""
MDS_MOST = 2**32 - 1
"""Bytes of a shard: its offsets have 32 bits."""
READ_TOKENS = 2**22
"""About as many tokens of short sequences are read at once."""
MDS_COLUMNS = ("tokens", "input_ids")


class TokenFiles(NamedTuple):
    """The files of a split: chunks of ids, and whether each chunk is a document."""

    paths: list[Path]
    are_documents: bool
    read: Callable[[Path], Iterator[np.ndarray]]


def find_foreign(directory: Path) -> dict[str, TokenFiles]:
    """The files of each split, by `train` and `val`; files that name no split are for training.

    Raises `UserError` for a directory without such files.
    """
    kinds: tuple[tuple[str, bool, Callable[[Path], Iterator[np.ndarray]]], ...] = (
        ("**/*.idx", True, _read_megatron),
        (f"**/{MDS_INDEX}", False, _read_mds),
        ("**/*.npy", False, _read_array),
        ("**/*.bin", False, _read_array),
        ("**/*.ds", False, _read_array),
    )
    for pattern, are_documents, read in kinds:
        splits: dict[str, list[Path]] = {}
        found = sorted(path for path in directory.glob(pattern) if path.is_file())  # no pipe, which never ends
        for path in _leave_out_merged(found) if read is _read_mds else found:
            named = find_split("/".join(path.relative_to(directory).parts))
            splits.setdefault({"validation": "val"}.get(named or "train", named or "train"), []).append(path)
        if list(splits) == ["test"]:
            first = splits["test"][0]
            raise UserError(f"{directory}: holds files of the test split only, such as {first}. Rename it to train.")
        if tests := splits.pop("test", []):
            tell_once(f"note: {directory}: not copied: {count_of(len(tests), 'files')} of the test split: {tests[0]}.")
        if splits:
            named = partial(_read_named, read)
            return {split: TokenFiles(paths, are_documents, named) for split, paths in splits.items()}
    raise UserError(
        f"{directory}: holds no token files: .bin, .npy, .ds, Megatron's .idx and .bin, or MDS's index.json."
    )


def _read_named(read: Callable[[Path], Iterator[np.ndarray]], path: Path) -> Iterator[np.ndarray]:
    """What `read` yields. What the system refuses is a `UserError` that names the file."""
    with explain_errors(path):
        yield from read(path)


def _read_array(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        is_npy = file.read(len(NPY_MAGIC)) == NPY_MAGIC
    if is_npy:
        try:
            with np.errstate(all="ignore"):  # a shape may be any numbers
                array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a header is parsed as Python's literals, with errors of many classes
            raise UserError(f"{path}: cannot be read as an array of NumPy: {quote(str(error))}.") from None
        if array.dtype.kind not in "iu":
            raise UserError(f"{path}: holds {array.dtype} values; wanted whole numbers.")
        if not array.flags.c_contiguous:
            advice = "Write it again: np.save(FILE, np.ascontiguousarray(array))."
            raise UserError(f"{path}: is stored by columns (Fortran's order), wanted by rows. {advice}")
        tokens = FileArray(path, array.dtype, offset=array.offset, count=array.size)
    elif has_header(path):
        tokens = open_shard(path)
    else:
        width, size = guess_width(path) or 2, path.stat().st_size
        if size % width:
            raise UserError(f"{path}: {size:,} bytes are not a whole number of {8 * width}-bit ids. Copy it again.")
        tokens = FileArray(path, np.dtype(f"u{width}"))
    for _, chunk in iter_chunks(tokens):
        yield chunk


def _read_megatron(path: Path) -> Iterator[np.ndarray]:
    content = path.with_suffix(".bin")
    header = np.dtype([("magic", "V9"), ("version", "<u8"), ("code", "u1"), ("sequences", "<u8"), ("documents", "<u8")])
    with path.open("rb") as file:
        start = file.read(header.itemsize)
    if len(start) < header.itemsize or not start.startswith(MEGATRON_MAGIC):
        raise UserError(f"{path}: is not an index of Megatron-LM.")
    fields = np.frombuffer(start, header)[0]
    code, count = int(fields["code"]), int(fields["sequences"])
    if code not in MEGATRON_DTYPES or fields["version"] != 1:
        raise UserError(f"{path}: holds tokens of type {code} in version {fields['version']}, which cannot be read.")
    if path.stat().st_size < header.itemsize + 12 * count or not content.is_file():
        raise UserError(f"{path}: is cut short, or {content.name} is not beside it.")
    lengths = np.asarray(FileArray(path, np.dtype("i4"), offset=header.itemsize, count=count), np.int64)
    begins = np.asarray(FileArray(path, np.dtype("i8"), offset=header.itemsize + 4 * count, count=count))
    dtype = np.dtype(MEGATRON_DTYPES[code])
    tokens, starts = FileArray(content, dtype), begins // dtype.itemsize
    if count == 0:
        return
    if int(lengths.sum()) > len(tokens) or lengths.min() < 0:
        raise UserError(f"{path}: its sequences are longer than {content.name} together. Copy both files again.")
    if ((starts < 0) | (starts > len(tokens) - lengths) | (begins % dtype.itemsize != 0)).any():
        raise UserError(f"{path}: a sequence lies outside of {content.name}, or between ids. Copy both files again.")
    order = np.lexsort((lengths, starts))
    if (starts[order][1:] < (starts + lengths)[order][:-1]).any():
        raise UserError(f"{path}: two of its sequences overlap in {content.name}. Copy both files again.")
    parts = np.cumsum(lengths) // READ_TOKENS  # sequences that are read at once
    for group in np.split(np.arange(count), np.flatnonzero(np.diff(parts)) + 1):
        found = tokens.read_ranges(starts[group], lengths[group])
        yield from np.split(found, np.cumsum(lengths[group])[:-1])


class _MdsShard(NamedTuple):
    """What an index says of a file."""

    path: Path
    size: int
    compression: Any
    columns: list[str]
    encodings: list[Any]
    sizes: list[Any]


def _leave_out_merged(indexes: list[Path]) -> list[Path]:
    """The indexes without those that repeat others: all files that they name lie in folders with an index of theirs."""
    folders = {index.parent for index in indexes}
    return [
        index
        for index in indexes
        if len(indexes) == 1 or not {shard.path.parent for shard in _read_mds_index(index)} <= folders - {index.parent}
    ]


def _read_mds_index(index: Path) -> list[_MdsShard]:
    try:
        described = [
            _MdsShard(
                index.parent / str(shard["raw_data"]["basename"]),
                int(shard["raw_data"].get("bytes", MDS_MOST)),
                shard.get("compression"),
                [str(column) for column in shard["column_names"]],
                list(shard["column_encodings"]),
                list(shard["column_sizes"]),
            )
            for shard in json.loads(read_text(index, limit=LARGEST_TOKENIZER))["shards"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"{index}: is not an index of MDS: {quote(repr(error))}.") from None
    if len({shard.path for shard in described}) < len(described):
        raise UserError(f"{index}: names a file twice.")
    for shard in described:
        if not all(size is None or (type(size) is int and size >= 0) for size in shard.sizes):
            raise UserError(f"{index}: is not an index of MDS: its column_sizes are {quote(repr(shard.sizes))}.")
        if ".." in shard.path.parts or not shard.path.is_relative_to(index.parent):
            raise UserError(f"{index}: {quote(str(shard.path))} is not below its folder.")
    return described


def _read_mds(index: Path) -> Iterator[np.ndarray]:
    for path, size, compression, columns, encodings, sizes in _read_mds_index(index):
        column = next((column for column in MDS_COLUMNS if column in columns), None)
        if column is None:
            raise UserError(f"{index}: wanted a column {' or '.join(MDS_COLUMNS)}; it has {quote(', '.join(columns))}.")
        content, number = _open_mds_file(path, str(compression or "none"), size=size), columns.index(column)
        data = list(_iter_data(content, path, number, sizes=sizes))
        encoding = str(encodings[number] if number < len(encodings) else None)
        width = _guess_mds_width(max(data, key=len, default=content[:0]))
        for datum in data:
            try:
                yield _decode_mds(bytes(datum), encoding, path=path, width=width)
            except (ValueError, IndexError) as error:
                raise _explain_damage(path, error) from None


def _open_mds_file(path: Path, compression: str, *, size: int) -> np.ndarray:
    """The bytes of a shard, which may be compressed: `shard.00000.mds.zstd` beside or instead of the raw one.

    `size` is what the index says of the raw one. Not more is unpacked.
    """
    if path.is_file():
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    kind, codec = compression.partition(":")[0], MDS_CODECS.get(compression.partition(":")[0])
    packed = path.parent / f"{path.name}.{kind}"
    if codec is None or not packed.is_file():
        wanted = f"{path} or {packed.name}" if codec else str(path)
        raise UserError(f"{quote(wanted)} is not there, though {MDS_INDEX} names it. Copy it there, decompressed.")
    pyarrow = import_pyarrow(what=f"{packed}: reading it")
    with explain_errors(packed), pyarrow.CompressedInputStream(pyarrow.OSFile(str(packed)), codec) as file:
        content = bytearray()
        while len(content) <= min(size, MDS_MOST) and (part := file.read(2**20)):
            content += part
    if len(content) > size:
        raise UserError(f"{packed}: holds more than the {size:,} bytes of {MDS_INDEX}. Copy both files again.")
    return np.frombuffer(content, np.uint8)


def _iter_data(content: np.ndarray, path: Path, column: int, *, sizes: list[Any]) -> Iterator[np.ndarray]:
    """The bytes of a column in each sample.

    Offsets of the samples come first, and in a sample the sizes of variable columns.
    """
    count = int(content[:4].view("<u4")[0]) if len(content) >= 4 else 0
    if len(content) < 8 + 4 * count:
        raise UserError(f"{path}: is cut short.")
    offsets = content[4 : 8 + 4 * count].view("<u4")
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        sample = content[begin:end]
        variable = [number for number, size in enumerate(sizes) if size is None]
        heads = sample[: 4 * len(variable)]
        if not begin <= end <= len(content) or len(heads) < 4 * len(variable):
            raise UserError(f"{path}: a sample lies outside of the file. Copy it again.")
        found = dict(zip(variable, heads.view("<u4").tolist(), strict=True))
        try:
            lengths = [found.get(number, size) for number, size in enumerate(sizes)]
            first = 4 * len(variable) + sum(lengths[:column])
            datum = sample[first : first + lengths[column]]
        except (IndexError, TypeError) as error:
            raise _explain_damage(path, error) from None
        yield datum


def _explain_damage(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: a sample is damaged: {quote(str(error))}. Copy the file again.")


def _guess_mds_width(datum: np.ndarray) -> int:
    """Bytes of an id in the column type `bytes`, which does not say it: older writers have int64."""
    quarters = datum[: len(datum) // 8 * 8].view("<u2").reshape(-1, 4)
    if not len(quarters):
        return 2
    return 8 if int(quarters[:, 2:].max()) == 0 else 4 if int(quarters[:, 1::2].max()) <= HIGH_HALF else 2


def _decode_mds(datum: bytes, encoding: str, *, path: Path, width: int) -> np.ndarray:
    """The ids of one sample; in the column type `bytes` they have `width` bytes."""
    kind, _, rest = encoding.partition(":")
    if kind == "bytes":
        return np.frombuffer(datum, f"<u{width}")
    dtype, _, shape = rest.partition(":")
    if kind != "ndarray" or dtype not in ("uint8", "uint16", "uint32", "int16", "int32", "int64", "uint64"):
        raise UserError(f"{path}: its tokens are stored as {quote(encoding)}; wanted bytes or ndarray:TYPE.")
    first = 0 if shape else 1 + (datum[0] >> 2) * 2 ** (datum[0] % 4)  # axes and their type, then the axes
    return np.frombuffer(datum[first:], np.dtype(dtype).newbyteorder("<"))
