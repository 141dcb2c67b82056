"""Parquet files: the column `text`, a few rows at a time.

A row group may be larger than memory, so its rows are read in batches of about eight megabytes, by what the file says
of their size.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.documents import Document, Notes, broken, checked
from data_pipelines.extras import needs_extra
from gptjax.errors import UserError

COLUMN = "text"
BATCH_BYTES = 2**23
MOST_ROWS = 1024


def read_parquet(path: Path, notes: Notes, *, strict: bool) -> Iterator[Document]:
    """The strings of the column `text`, in the order of the file. A row without one is a broken record."""
    with needs_extra("data", what=f"{path}: reading Parquet"):
        import pyarrow
        import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            _check_column(path, file.schema_arrow, pyarrow.types)
            row = 0
            for group in range(file.num_row_groups):
                size = _rows_a_batch(file.metadata.row_group(group))
                for batch in file.iter_batches(size, row_groups=[group], columns=[COLUMN], use_threads=False):
                    for content in _contents(batch.column(0), pyarrow):
                        row += 1
                        where = f"{path}: row {row}"
                        if content is None:
                            broken(f"{where}: {COLUMN!r} is null, wanted a string.", notes, strict=strict)
                        else:
                            yield checked(content, notes, strict=strict, where=where)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}.") from None


def _contents(column: Any, pyarrow: Any) -> Iterator[memoryview | None]:
    """The bytes of each row where they lie, without a copy; None for null.

    As bytes, because pyarrow would refuse a whole batch for one string that is not UTF-8.
    """
    plain = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
    if pyarrow.types.is_string_view(plain.type):  # which cannot be cast to binary at once
        plain = plain.cast(pyarrow.large_string())
    binary = plain.cast(pyarrow.large_binary())
    _, ends, data = binary.buffers()
    ends = np.frombuffer(ends, np.int64)[binary.offset : binary.offset + len(binary) + 1].tolist()
    data = memoryview(data or b"").cast("B")
    for start, end, valid in zip(ends, ends[1:], binary.is_valid().to_pylist(), strict=False):
        yield data[start:end] if valid else None


def _check_column(path: Path, schema: Any, types: Any) -> None:
    if COLUMN not in schema.names:
        raise UserError(f"{path}: no column {COLUMN!r}; it has {', '.join(schema.names) or 'none'}.")
    kind = schema.field(COLUMN).type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    if not any(is_text(inner) for is_text in texts):
        raise UserError(f"{path}: the column {COLUMN!r} holds {kind}, wanted strings.")


def _rows_a_batch(group: Any) -> int:
    columns = [group.column(i) for i in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == COLUMN)
    return max(1, min(MOST_ROWS, BATCH_BYTES * group.num_rows // max(1, size)))
