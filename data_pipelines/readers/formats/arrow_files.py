"""Arrow files, as `datasets.save_to_disk` leaves them: rows as records, or one column of text as documents."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Document, ReadContext, validate_utf8
from data_pipelines.readers.formats.arrow_values import check_values, iter_records, iter_texts
from data_pipelines.readers.formats.parquet import check_column, choose_columns
from data_pipelines.readers.formats.text_files import check_no_pointer, explain_errors
from data_pipelines.readers.optional_packages import import_pyarrow
from gptjax.core.errors import UserError, quote

SUFFIXES = (".arrow", ".feather")
ROWS = 64
"""Rows that are Python objects at once."""


def read_arrow(path: Path, context: ReadContext) -> Iterator[Document]:
    """Yield the strings of the column of text, in order. A null is an invalid record."""
    row = 0
    with _open(path) as (schema, batches):
        check_column(path, context.text_field, schema)
        for batch in batches:
            for value in iter_texts(batch, context.text_field, checks=True):
                row += 1
                where = f"{path}: row {row}"
                if value is None:
                    context.skip_record(f"{where}: {context.text_field!r} is null, wanted a string.")
                else:
                    yield validate_utf8(value, context, where=where)


def iter_arrow_rows(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (FILE: row NUMBER, the columns `fields` of the row)."""
    row = 0
    with _open(path) as (schema, batches):
        columns = choose_columns(path, schema.names, fields, batches=lambda: batches)
        for batch in batches:
            chosen = batch.select(columns)
            for values in chosen.columns:
                check_values(values)
            for begin in range(0, len(chosen), ROWS):
                part = chosen.slice(begin, ROWS)
                yield from iter_records(part, str(path), row + 1)
                row += len(part)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """(schema, record batches) of a stream or of a file with a footer; errors become a `UserError`."""
    pyarrow = import_pyarrow(what=f"{path}: reading Arrow")
    from pyarrow import ipc

    try:
        with explain_errors(path), pyarrow.memory_map(str(path)) as source:
            check_no_pointer(path)
            start = source.read(6)
            if start[:4] == b"FEA1":
                raise UserError(f"{path}: is Feather of version 1. Write it again, as version 2 or as Parquet.")
            source.seek(0)
            if start == b"ARROW1":
                reader = ipc.open_file(source)
                yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                stream = ipc.open_stream(source)
                yield stream.schema, iter(stream)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the name of a column is not UTF-8 ({error}).") from None
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Arrow: {quote(str(error)).rstrip('.')}.") from None
