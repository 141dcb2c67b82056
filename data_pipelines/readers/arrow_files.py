"""Arrow files, as `datasets.save_to_disk` leaves them: one column of text, a document for each row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Document, ReadContext, validate_utf8
from data_pipelines.readers.extras import import_pyarrow
from data_pipelines.readers.parquet import check_column, find_column, join_values
from data_pipelines.readers.text_files import explain_errors
from gptjax.core.errors import UserError, quote

SUFFIXES = (".arrow", ".feather")


def read_arrow(path: Path, context: ReadContext) -> Iterator[Document]:
    """Yield the strings of the column of text, in order. A null is an invalid record."""
    pyarrow = import_pyarrow(what=f"{path}: reading Arrow")
    row = 0
    try:
        with explain_errors(path), pyarrow.memory_map(str(path)) as source:
            schema, batches = _open(pyarrow, source)
            check_column(path, context.text_field, schema)
            for batch in batches:
                for value in join_values(_check_values(find_column(batch, context.text_field))):
                    row += 1
                    where = f"{path}: row {row}"
                    if value is None:
                        context.skip_record(f"{where}: {context.text_field!r} is null, wanted a string.")
                    else:
                        yield validate_utf8(value, context, where=where)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Arrow: {quote(str(error)).rstrip('.')}.") from None


def _check_values(values: Any) -> Any:
    """The values once their offsets are known to lie inside their buffers, beyond which the library would read.

    Strings are taken as bytes, so that one which is not UTF-8 does not count as damage.
    """
    import pyarrow

    same_layout = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    values = values.view(same_layout[values.type]) if values.type in same_layout else values
    values.validate(full=True)
    return values


def _open(pyarrow: Any, source: Any) -> tuple[Any, Iterator[Any]]:
    """(schema, record batches) of a stream or of a file with a footer."""
    from pyarrow import ipc

    if source.read(6) == b"ARROW1":
        reader = ipc.open_file(source)
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    source.seek(0)
    reader = ipc.open_stream(source)
    return reader.schema, iter(reader)
