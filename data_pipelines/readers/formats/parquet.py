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

from data_pipelines.readers.documents import Chunk, Document, DocumentBlock, ReadContext, validate_utf8
from data_pipelines.readers.fields import LABEL, find_text, join_text, list_fields, suggest_command, suggest_prepare
from data_pipelines.readers.formats.text_files import explain_errors
from data_pipelines.readers.optional_packages import import_pyarrow
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
            name = _find_stored([c.path_in_schema for c in columns], context.text_field)
            size = sum(c.total_uncompressed_size for c in columns if _is_of_column(c.path_in_schema, name))
            yield from DocumentBlock(size, partial(_read_row_group, path, number, row)).chunks(context)
            row += group.num_rows


def _read_row_group(path: Path, group: int, row: int, context: ReadContext) -> Iterator[Document]:
    """The rows of a group by its number; the file has `row` rows before them."""
    column = context.text_field
    with open_parquet(path) as file:
        stored = _find_stored([field.path for field in file.schema], column)
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=[stored], use_threads=False):
            for value in join_values(find_column(batch, column)):
                row += 1
                where = f"{path}: row {row}"
                if value is not None:
                    yield validate_utf8(value, context, where=where)
                else:
                    context.skip_record(f"{where}: {column!r} is null, wanted a string.")


def _find_stored(paths: list[str], column: str) -> str:
    """What names the column in the file: itself or, where lists are on the way to it, the column of these."""
    return column if any(_is_of_column(path, column) for path in paths) else column.partition(".")[0]


def _is_of_column(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def find_column(batch: Any, column: str) -> Any:
    """The array of a column, or of a field inside a struct, or inside the structs of a list."""
    from pyarrow import types

    if column in batch.schema.names:
        return batch.column(column)
    first, *rest = column.split(".")
    values = batch.column(first)
    for number, name in enumerate(rest):
        if not types.is_struct(values.type):  # the structs of a list: their fields as a list
            return _join_structs(values, ".".join(rest[number:]))
        values = values.flatten()[values.type.get_field_index(name)]  # unlike `field`, with the struct's own nulls
    return values


def _join_structs(values: Any, path: str) -> Any:
    """An array of strings: the texts at `path` in the structs of each list, joined."""
    import pyarrow

    values.validate(full=True)  # offsets outside of the buffers would be followed
    texts = [find_text({"list": value.as_py()}, f"list.{path}") for value in values]
    return pyarrow.array(texts, pyarrow.large_string())


def join_values(values: Any) -> Iterator[Document | None]:
    """The bytes of each string, or of the joined strings of a list; None for a null."""
    if is_list(values.type):
        for value in values:
            text = join_text(value.as_py())
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
    kind = _find_type(column, schema)
    if kind is not None and _is_text(kind):
        return
    texts = [name for field in schema for name, inner in _iter_leaves(field.name, field.type) if _is_text(inner)]
    names = f"Text is in {quote(list_fields(texts))}" if texts else f"It has {quote(list_fields(schema.names))}"
    found = f"the column {column!r} holds {quote(str(kind), limit=80)}, wanted strings or lists of strings"
    what = f"wanted one column {column!r}" if kind is None else found
    raise UserError(f"{path}: {what}. {names} (--text-field chooses one).{suggest_command(schema.names)}")


def is_list(kind: Any) -> bool:
    """Whether a type is a list of any kind."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_text(kind: Any) -> bool:
    """Whether a type holds strings, or lists of them."""
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) or is_list(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(is_text(inner) for is_text in texts)


def choose_columns(path: Path, found: list[str], wanted: tuple[str, ...]) -> list[str]:
    """The columns of a file that are wanted. Raises `UserError` where none of them makes a record."""
    if not {*found} & {*wanted} - {LABEL}:
        names = quote(", ".join(map(repr, found)))
        advice = suggest_command(found) or suggest_prepare(found)
        raise UserError(f"{path}: has the columns {names}; wanted some of {', '.join(wanted)}.{advice}")
    return [name for name in found if name in wanted]


def _find_type(column: str, schema: Any) -> Any:
    if column in schema.names:
        return schema.field(column).type if schema.names.count(column) == 1 else None
    leaves = (leaf for field in schema for leaf in _iter_leaves(field.name, field.type))
    return next((kind for name, kind in leaves if name == column), None)


def _iter_leaves(name: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """(path, type) of a column, or of the fields of its structs and of those in its lists."""
    from pyarrow import types

    inner = kind.value_type if is_list(kind) and types.is_struct(kind.value_type) else kind
    if not types.is_struct(inner):
        yield name, kind
        return
    for field in inner:
        yield from _iter_leaves(f"{name}.{field.name}", field.type)
