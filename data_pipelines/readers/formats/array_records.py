"""Raw ArrayRecord files (`*.array_record`), as grain's own tools write them: a record is a document.

A record is a JSON object or UTF-8 text; the first record of each file decides which. Sets that TFDS has prepared hold
protocol buffers, which `tfds:NAME` reads.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Chunk, Document, DocumentBlock, ReadContext, validate_utf8
from data_pipelines.readers.formats.json_lines import parse_text
from data_pipelines.readers.optional_packages import needs_extra
from gptjax.core.errors import UserError

SUFFIXES = (".array_record", ".arrayrecord")
_NUMBERED = re.compile(r"(\.array_?record)-\d+-of-\d+$")
MAX_RECORDS = 256
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Control characters that text does not have, but every protocol buffer of TFDS."""


def drop_number(name: str) -> str:
    """A file's name in lower case; ArrayRecord's own tools number the files of a set behind the suffix."""
    return _NUMBERED.sub(r"\1", name.lower())


def iter_contents(path: Path, *, block_bytes: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of the first, records) of each block; records count from 1."""
    context = ReadContext(block_bytes=block_bytes)
    with _open_reader(path) as reader:
        for begin, end in split_records(reader.num_records(), path.stat().st_size, context):
            yield begin + 1, reader.read(begin, end)


def read_array_records(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the text of every record, in the order of the file."""
    as_json = False
    with _open_reader(path) as reader:
        for begin, end in split_records(reader.num_records(), path.stat().st_size, context):
            contents = reader.read(begin, end)
            as_json = _is_json(contents[0]) if begin == 0 else as_json
            block = DocumentBlock(sum(map(len, contents)), partial(_read_records, path, begin, contents, as_json))
            yield from block.chunks(context)


def split_records(count: int, size: int, context: ReadContext) -> Iterator[tuple[int, int]]:
    """(begin, end) of the records of each block, of `count` records that take `size` bytes."""
    step = max(1, min(MAX_RECORDS, context.block_bytes * count // max(1, size)))
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)


def _read_records(
    path: Path, before: int, records: list[bytes], as_json: bool, context: ReadContext
) -> Iterator[Document]:
    for number, record in enumerate(records, start=before + 1):
        where = f"{path}: record {number}"
        if as_json:
            if (document := parse_text(record, context, where=where)) is not None:
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
            raise ValueError("it is no ArrayRecord file, or is cut off")
        yield reader
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as ArrayRecord: {str(error).rstrip('.')}.") from None
    finally:
        if reader.ok():  # closing a damaged one raises again
            reader.close()


def _is_json(record: bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(record.decode(errors="replace")), dict)
    return False
