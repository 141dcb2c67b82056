"""Parquet files: one column of text; a row group is a block.

The column holds strings or lists of strings, and may lie in a struct: `content.text`.

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
from data_pipelines.readers.fields import PARAGRAPHS
from data_pipelines.readers.text_files import explain_errors
from gptjax.core.errors import UserError, quote

ROWS = 16
"""Rows decoded at once."""


def read_parquet(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the strings of the column of text, in order. A null is an invalid record."""
    row = 0
    with open_parquet(path) as file:
        check_column(path, context.text_field, file.schema_arrow)
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            columns = [group.column(i) for i in range(group.num_columns)]
            size = sum(
                c.total_uncompressed_size for c in columns if _is_of_column(c.path_in_schema, context.text_field)
            )
            yield from Block(size, partial(_read_row_group, path, number, row)).chunks(context)
            row += group.num_rows


def _read_row_group(path: Path, group: int, row: int, context: ReadContext) -> Iterator[Document]:
    """The rows of a group by its number; the file has `row` rows before them."""
    column = context.text_field
    with open_parquet(path) as file:
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
            for value in join_values(find_column(batch, column)):
                row += 1
                where = f"{path}: row {row}"
                if value is not None:
                    yield validate_utf8(value, context, where=where)
                else:
                    context.skip_record(f"{where}: {column!r} is null, wanted a string.")


def _is_of_column(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def find_column(batch: Any, column: str) -> Any:
    """The array of a column, or of a field inside a struct."""
    if column in batch.schema.names:
        return batch.column(column)
    first, *rest = column.split(".")
    values = batch.column(first)
    for name in rest:
        values = values.flatten()[values.type.get_field_index(name)]  # unlike `field`, with the struct's own nulls
    return values


def join_values(values: Any) -> Iterator[Document | None]:
    """The bytes of each string, or of the joined strings of a list; None for a null."""
    from pyarrow import types

    if types.is_list(values.type) or types.is_large_list(values.type):
        for value in values:
            parts = value.as_py()
            text = None if parts is None or None in parts else PARAGRAPHS.join(parts)
            yield None if text is None else text.encode()
        return
    if values.type == "string_view":  # which cannot be cast to binary at once
        values = values.cast("large_string")
    # As strings, pyarrow would refuse a whole batch for one that is not UTF-8.
    for value in values.cast("large_binary"):
        yield memoryview(value.as_buffer()).cast("B") if value.is_valid else None


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
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


def check_column(path: Path, column: str, schema: Any) -> None:
    """Raise `UserError` unless the schema has one column of this name or path, of strings or lists of strings."""
    from pyarrow import types

    kind = _find_type(column, schema)
    if kind is None:
        names = ", ".join(_list_text_columns(schema)) or "none"
        raise UserError(f"{path}: wanted one column {column!r}; it has {quote(names)} (--text-field chooses another).")
    inner = kind.value_type if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    if not any(is_text(inner) for is_text in texts):
        names = ", ".join(_list_text_columns(schema)) or "none"
        raise UserError(
            f"{path}: the column {column!r} holds {quote(str(kind))}, wanted strings or lists of strings. "
            f"Columns are {quote(names)} (--text-field chooses one)."
        )


def _find_type(column: str, schema: Any) -> Any:
    from pyarrow import types

    if schema.names.count(column) == 1:
        return schema.field(column).type
    first, *rest = column.split(".")
    kind: Any = schema.field(first).type if rest and schema.names.count(first) == 1 else None
    for name in rest:
        if kind is None or not types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _list_text_columns(schema: Any) -> list[str]:
    """All columns, those of a struct by their path."""
    from pyarrow import types

    return [
        path
        for field in schema
        for path in (
            [f"{field.name}.{inner.name}" for inner in field.type] if types.is_struct(field.type) else [field.name]
        )
    ]
