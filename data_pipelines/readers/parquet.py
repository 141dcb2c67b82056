"""Parquet files: one column of text, a few rows at a time.

A row group may be larger than memory, so its rows are read in batches of about eight megabytes, by what the file says
of their size.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.documents import Document, Reading, checked
from data_pipelines.readers.extras import needs_extra
from gptjax.errors import UserError

BATCH_BYTES = 2**23
MOST_ROWS = 1024


def read_parquet(path: Path, reading: Reading) -> Iterator[Document]:
    """The strings of the column of text, in the order of the file. A row without one is a broken record."""
    column = reading.text_field
    with needs_extra("data", what=f"{path}: reading Parquet"):
        import pyarrow
        import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            _check_column(path, column, file.schema_arrow, pyarrow.types)
            row = 0
            for group in range(file.num_row_groups):
                size = _rows_a_batch(file.metadata.row_group(group), column)
                for batch in file.iter_batches(size, row_groups=[group], columns=[column], use_threads=False):
                    for content in _contents(batch.column(0), pyarrow):
                        row += 1
                        where = f"{path}: row {row}"
                        if content is None:
                            reading.broken(f"{where}: {column!r} is null, wanted a string.")
                        else:
                            yield checked(content, reading, where=where)
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


def _check_column(path: Path, column: str, schema: Any, types: Any) -> None:
    if column not in schema.names:
        others = ", ".join(schema.names) or "none"
        raise UserError(f"{path}: no column {column!r}; it has {others} (--text-field chooses another).")
    kind = schema.field(column).type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    if not any(is_text(inner) for is_text in texts):
        raise UserError(f"{path}: the column {column!r} holds {kind}, wanted strings.")


def _rows_a_batch(group: Any, name: str) -> int:
    columns = [group.column(i) for i in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
    return max(1, min(MOST_ROWS, BATCH_BYTES * group.num_rows // max(1, size)))
