"""Raw ArrayRecord files (`*.array_record`), as grain's own tools write them: a record is a document.

A record is a JSON object or UTF-8 text. The first record of each file decides which, and the report says it. Sets that
TFDS has prepared hold protocol buffers, which `tfds:NAME` reads.
"""

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Block, Chunk, Document, ReadContext, validate_utf8
from data_pipelines.readers.extras import needs_extra
from data_pipelines.readers.json_lines import parse_json, parse_json_line
from gptjax.core.errors import UserError

READ_AS_JSON = "ArrayRecord files read as JSON objects"
READ_AS_TEXT = "ArrayRecord files read as plain text"
MOST_RECORDS = 256
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Control characters that text does not have, but every protocol buffer of TFDS."""


def read_array_records(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the text of every record, in the order of the file."""
    as_json = None
    with _open_reader(path) as reader:
        for begin, end in split_records(reader.num_records(), path.stat().st_size, context):
            contents = reader.read(begin, end)
            if as_json is None:
                as_json = _is_json(contents[0])
                context.notes[READ_AS_JSON if as_json else READ_AS_TEXT] += 1
            block = Block(sum(map(len, contents)), partial(_parse_records, path, begin, contents, as_json))
            yield from block.chunks(context)


def split_records(count: int, size: int, context: ReadContext) -> Iterator[tuple[int, int]]:
    """(begin, end) of the records of each block, of `count` records that take `size` bytes."""
    step = max(1, min(MOST_RECORDS, context.block_bytes * count // max(1, size)))
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)


def _parse_records(
    path: Path, before: int, records: list[bytes], as_json: bool, context: ReadContext
) -> Iterator[Document]:
    """The documents of some records; the file has `before` records before them."""
    for number, record in enumerate(records, start=before + 1):
        where = f"{path}: record {number}"
        if as_json:
            document = parse_json_line(record, context, where=where)
            if document is not None:
                yield document
        elif _BINARY.search(record[:64]):
            context.skip_record(f"{where}: wanted text or a JSON object, got binary data (of TFDS? tfds:NAME).")
        else:
            yield validate_utf8(record, context, where=where)


@contextlib.contextmanager
def _open_reader(path: Path) -> Iterator[Any]:
    """An `ArrayRecordReader`; errors of reading become a `UserError`."""
    with needs_extra("data", what=f"{path}: reading ArrayRecord"):
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        reader.num_records()
        if not reader.ok():  # a damaged file claims to hold no records
            raise UserError(f"{path}: is no ArrayRecord file, or is cut off.")
        yield reader
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as ArrayRecord: {str(error).rstrip('.')}.") from None
    finally:
        if reader.ok():  # closing a damaged one raises again
            reader.close()


def _is_json(record: bytes) -> bool:
    try:
        return isinstance(parse_json(record.decode(errors="replace")), dict)
    except (ValueError, RecursionError):
        return False
