"""Parquet files: one column of text; a row group is a block.

pyarrow holds one page at a time, as compressed and as decoded, and a few rows: memory grows with the largest page,
which may hold many texts, and with the largest rows.
"""

import contextlib
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Block, Chunk, Document, ReadContext, validate_utf8
from data_pipelines.readers.extras import import_pyarrow
from data_pipelines.readers.text_files import explain_errors
from gptjax.core.errors import UserError

ROWS = 16
"""Rows decoded at once."""


def read_parquet(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the strings of the column of text, in order. A null is an invalid record."""
    row = 0
    with _open_parquet(path) as file:
        _check_column(path, context.text_field, file.schema_arrow)
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            columns = [group.column(i) for i in range(group.num_columns)]
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == context.text_field)
            yield from Block(size, partial(_read_row_group, path, number, row)).chunks(context)
            row += group.num_rows


def _read_row_group(path: Path, group: int, row: int, context: ReadContext) -> Iterator[Document]:
    """The rows of a group by its number; the file has `row` rows before them."""
    column = context.text_field
    with _open_parquet(path) as file:
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
            strings = batch.column(0)
            if strings.type == "string_view":  # which cannot be cast to binary at once
                strings = strings.cast("large_string")
            # As strings, pyarrow would refuse a whole batch for one that is not UTF-8.
            for value in strings.cast("large_binary"):
                row += 1
                where = f"{path}: row {row}"
                if value.is_valid:
                    yield validate_utf8(memoryview(value.as_buffer()).cast("B"), context, where=where)
                else:
                    context.skip_record(f"{where}: {column!r} is null, wanted a string.")


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; errors of reading it become a `UserError`."""
    pyarrow = import_pyarrow(what=f"{path}: reading Parquet")
    import pyarrow.parquet as parquet

    try:
        with explain_errors(path):
            metadata = _read_metadata(path, path.stat().st_size, path.stat().st_mtime_ns)
            options = {"pre_buffer": False, "buffer_size": 2**20, "page_checksum_verification": True}
            with parquet.ParquetFile(path, metadata=metadata, **options) as file:
                yield file
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet: {str(error).rstrip('.')}.") from None


@lru_cache(maxsize=1)
def _read_metadata(path: Path, size: int, modified: int) -> Any:
    # Parsed once for a file in one state: with thousands of row groups it takes longer than reading one of them.
    import pyarrow.parquet as parquet

    return parquet.read_metadata(path)


def _check_column(path: Path, column: str, schema: Any) -> None:
    from pyarrow import types

    if schema.names.count(column) != 1:
        names = ", ".join(schema.names) or "none"
        raise UserError(f"{path}: wanted one column {column!r}; it has {names} (--text-field chooses another).")
    kind = schema.field(column).type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    if not any(is_text(inner) for is_text in texts):
        raise UserError(f"{path}: the column {column!r} holds {kind}, wanted strings.")
