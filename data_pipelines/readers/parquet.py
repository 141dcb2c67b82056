"""Parquet files: one column of text, a few rows at a time.

The one idea: a group of rows is a block, for a group can be read by itself. One that is larger than memory may bear is
read here, in batches of eight megabytes at most, by what the file says of the sizes. pyarrow holds the page of a row
whole: as packed, unpacked, and its dictionary.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.documents import Chunk, Document, ReadContext, validate_utf8
from data_pipelines.readers.extras import import_pyarrow
from data_pipelines.readers.text_files import naming
from gptjax.errors import UserError

ROWS_BYTES = 2**23
MOST_ROWS = 128
MOST_REPEATED_BYTES = 2**25
"""In a batch, of texts that stand in the file's dictionary once and in many rows."""
_DICTIONARY_PAGE = b"\x15\x04\x15"
"""Field 1, an integer: 2, doubled as all signed ones are; field 2, an integer."""
MOST_BLOCK_BYTES = 2**24


def read_parquet(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """The strings of the column of text, in the order of the file. A row without one is a broken record."""
    column, row = context.text_field, 0
    with _opened(path) as file:
        _check_column(path, column, file.schema_arrow)
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            rows = _RowGroup(path, number, row, _bytes_of(group, column))
            row += group.num_rows
            if rows.size <= MOST_BLOCK_BYTES:
                yield rows
            else:
                yield from rows.documents(context)


@dataclass(frozen=True)
class _RowGroup:
    """A group by its number; `row` is how many rows the file has before it, `size` that of the text as encoded."""

    path: Path
    number: int
    row: int
    size: int

    def documents(self, context: ReadContext) -> Iterator[Document]:
        column, row = context.text_field, self.row
        with _opened(self.path) as file:
            group = file.metadata.row_group(self.number)
            repeated = max(1, *(_dictionary_bytes(self.path, one) for one in _columns(group, column)))
            size = min(MOST_ROWS, ROWS_BYTES * group.num_rows // max(1, self.size), MOST_REPEATED_BYTES // repeated)
            size = max(1, size)
            for batch in file.iter_batches(size, row_groups=[self.number], columns=[column], use_threads=False):
                for content in _contents(batch.column(0)):
                    row += 1
                    where = f"{self.path}: row {row}"
                    if content is None:
                        context.skip_record(f"{where}: {column!r} is null, wanted a string.")
                    else:
                        yield validate_utf8(content, context, where=where)
                    del content
                del batch  # or it would be held while the next one is read


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; what goes wrong while it is read names the file."""
    pyarrow = import_pyarrow(what=f"{path}: reading Parquet")
    import pyarrow.parquet as parquet

    try:
        with naming(path):
            state = path.stat()
            metadata = _metadata(path, state.st_size, state.st_mtime_ns)
            options = {"pre_buffer": False, "buffer_size": 2**20, "page_checksum_verification": True}
            with parquet.ParquetFile(path, metadata=metadata, **options) as file:
                yield file
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet: {str(error).rstrip('.')}.") from None


@functools.lru_cache(maxsize=1)
def _metadata(path: Path, size: int, changed: int) -> Any:
    """That of a file in this state: of thousands of groups it takes longer to parse than a group to read."""
    import pyarrow.parquet as parquet

    return parquet.read_metadata(path)


def _contents(column: Any) -> Iterator[memoryview | None]:
    """The bytes of each row where they lie, without a copy; None for null.

    As bytes, because pyarrow would refuse a whole batch for one string that is not UTF-8.
    """
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        values = list(_contents(column.dictionary))
        yield from (None if index is None else values[index] for index in column.indices.to_pylist())
        return
    if pyarrow.types.is_string_view(column.type):  # which cannot be cast to binary at once
        column = column.cast(pyarrow.large_string())
    binary = column.cast(pyarrow.large_binary())
    _, ends, data = binary.buffers()
    ends = np.frombuffer(ends, np.int64)[binary.offset : binary.offset + len(binary) + 1].tolist()
    data = memoryview(data or b"").cast("B")
    for start, end, valid in zip(ends, ends[1:], binary.is_valid().to_pylist(), strict=False):
        yield data[start:end] if valid else None


def _check_column(path: Path, column: str, schema: Any) -> None:
    from pyarrow import types

    if (found := schema.names.count(column)) != 1:
        others = ", ".join(schema.names) or "none"
        how_many = "several columns" if found else "no column"
        raise UserError(f"{path}: {how_many} {column!r}; it has {others} (--text-field chooses another).")
    kind = schema.field(column).type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    if not any(is_text(inner) for is_text in texts):
        raise UserError(f"{path}: the column {column!r} holds {kind}, wanted strings.")


def _bytes_of(group: Any, name: str) -> int:
    """Of a column in a group, as it is encoded."""
    return sum(column.total_uncompressed_size for column in _columns(group, name))


def _columns(group: Any, name: str) -> list[Any]:
    columns = [group.column(i) for i in range(group.num_columns)]
    return [column for column in columns if column.path_in_schema == name]


def _dictionary_bytes(path: Path, column: Any) -> int:
    """How large the dictionary of a column in a group is, no value of which is larger; 0 if there is none.

    The header of its first page says it (apache/parquet-format: a PageHeader in Thrift's compact protocol, whose first
    fields are the kind of page and how many bytes it has unpacked).
    """
    with path.open("rb") as file:
        file.seek(column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset)
        header = file.read(9)
    if not header.startswith(_DICTIONARY_PAGE):
        return 0
    size = 0
    for place, digit in enumerate(header.removeprefix(_DICTIONARY_PAGE)):
        size |= (digit & 0x7F) << 7 * place
        if digit < 0x80:
            break
    return size // 2
