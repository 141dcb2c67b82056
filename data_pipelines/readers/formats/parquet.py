"""Parquet files: one column of text; a row group is a block.

The column holds strings or lists of strings, and may lie in a struct: `content.text`.

pyarrow holds one page at a time, as compressed and as decoded, and a few rows: memory grows with the largest page,
which may hold many texts, and with the largest rows.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Chunk, Document, DocumentBlock, ReadContext, validate_utf8
from data_pipelines.readers.fields import (
    LABEL,
    list_fields,
    plain_name,
    split_field,
    suggest_command,
    suggest_for_tokens,
    suggest_path,
    suggest_prepare,
)
from data_pipelines.readers.formats.arrow_values import is_list, iter_texts
from data_pipelines.readers.formats.text_files import check_no_pointer, explain_errors
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
            size = _measure_column(file, number, context.text_field)
            yield from DocumentBlock(size, partial(_read_row_group, path, number, row)).chunks(context)
            row += file.metadata.row_group(number).num_rows


def _read_row_group(path: Path, group: int, row: int, context: ReadContext) -> Iterator[Document]:
    """The rows of a group by its number; the file has `row` rows before them."""
    column = context.text_field
    with open_parquet(path) as file:
        stored = _list_stored(file, column)
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=stored, use_threads=False):
            for value in iter_texts(batch, column):
                row += 1
                where = f"{path}: row {row}"
                if value is not None:
                    yield validate_utf8(value, context, where=where)
                else:
                    context.skip_record(f"{where}: {column!r} is null, wanted a string.")


def _measure_column(file: Any, group: int, column: str) -> int:
    """Bytes of a column in a row group, unpacked.

    A row is read first. That raises for damaged metadata, where pyarrow 26.0 would end the process.
    """
    stored = _list_stored(file, column)
    next(file.iter_batches(1, row_groups=[group], columns=stored, use_threads=False), None)
    metadata, paths = file.metadata.row_group(group), [field.path for field in file.schema]
    chosen = [number for number, path in enumerate(paths) if any(_is_of_column(path, name) for name in stored)]
    return sum(metadata.column(number).total_uncompressed_size for number in chosen)


def _list_stored(file: Any, field: str) -> list[str]:
    """What names each column in the file: itself or, where lists are on the way to it, the column of these."""
    paths = [part.path for part in file.schema]
    names = split_field(field, file.schema_arrow.names)
    return [name if any(_is_of_column(path, name) for path in paths) else name.partition(".")[0] for name in names]


def _is_of_column(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; errors of reading it become a `UserError`."""
    pyarrow = import_pyarrow(what=f"{path}: reading Parquet")
    import pyarrow.parquet as parquet

    try:
        with explain_errors(path):
            check_no_pointer(path)
            metadata = _read_metadata(path, path.stat().st_size, path.stat().st_mtime_ns)
            options = {"pre_buffer": False, "buffer_size": 2**20, "page_checksum_verification": True}
            with parquet.ParquetFile(path, metadata=metadata, **options) as file:
                yield file
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet: {quote(str(error)).rstrip('.')}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the name of a column is not UTF-8 ({error}).") from None


@lru_cache(maxsize=1)
def _read_metadata(path: Path, size: int, modified: int) -> Any:
    # Parsed once for a file in one state: with thousands of row groups it takes longer than reading one of them.
    import pyarrow.parquet as parquet

    return parquet.read_metadata(path)


def check_column(path: Path, field: str, schema: Any) -> None:
    """Raise `UserError` unless the schema has one column of each name or path, of strings or lists of strings."""
    for name in split_field(field, schema.names):
        _check_column(path, name, schema)


def _check_column(path: Path, column: str, schema: Any) -> None:
    kind = _find_type(column, schema)
    if kind is not None and _is_text(kind):
        return
    texts = [name for field in schema for name, inner in _iter_leaves(field.name, field.type) if _is_text(inner)]
    if not texts and kind is None:
        advice = suggest_for_tokens(schema.names) or suggest_command(schema.names)
        raise UserError(f"{path}: holds no text. It has {quote(list_fields(schema.names)) or 'no columns'}.{advice}")
    names = f"Text is in {quote(list_fields(texts))} (--text-field chooses one)" if texts else "No other holds text"
    found = f"the column {column!r} holds {quote(str(kind), limit=80)}, wanted strings or lists of strings"
    what = f"wanted one column {column!r}" if kind is None else found
    raise UserError(f"{path}: {what}. {names}.{suggest_command(schema.names)}")


def _is_text(kind: Any) -> bool:
    """Whether a type holds strings, or lists of them."""
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) or is_list(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(is_text(inner) for is_text in texts)


def choose_columns(
    path: Path, found: list[str], wanted: tuple[str, ...], *, batches: Callable[[], Iterator[Any]]
) -> list[str]:
    """The columns of a file that are wanted. Raises `UserError` where none of them makes a record.

    `batches` of all columns are read then, for what the first row says.
    """
    chosen = [name for name in found if name in wanted or plain_name(name) in wanted]
    if not {*map(plain_name, chosen)} - {LABEL}:
        names = quote(", ".join(map(repr, found)))
        renaming = " --rename-fields=NAME:NEW gives a column another name."
        path_advice = _suggest_path(batches()) if "messages" in wanted else ""
        advice = path_advice or suggest_command(found) or suggest_prepare(found) or renaming
        raise UserError(f"{path}: has the columns {names}; wanted some of {', '.join(wanted)}.{advice}")
    return chosen


def _suggest_path(batches: Iterator[Any]) -> str:
    """What a message adds for messages inside a column."""
    with contextlib.suppress(UnicodeDecodeError):
        first = next((batch for batch in batches if len(batch)), None)
        return "" if first is None else suggest_path(first.slice(0, 1).to_pylist()[0])
    return ""


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
