"""Raw ArrayRecord files (`*.array_record`), as grain's own tools write them: a record is a document.

A record is either UTF-8 text or a JSON object that has the text in one of its fields. Which, the first record of each
file decides for the whole file, and the report says it. Sets that TFDS has prepared hold neither: their records are
protocol buffers, and `tfds:NAME` reads them.
"""

import codecs
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import BLOCK_BYTES, Chunk, Document, ReadContext, parse_json, validate_utf8
from data_pipelines.readers.extras import needs_extra
from data_pipelines.readers.long_lines import document_of_record
from gptjax.errors import UserError

READ_AS_JSON = "ArrayRecord files read as JSON objects"
READ_AS_TEXT = "ArrayRecord files read as plain text"
MOST_RECORDS = 256


def read_array_records(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """The text of every record, in the order of the file."""
    as_json = None
    with _opened(path) as reader:
        for begin, end in ranges(reader.num_records(), path.stat().st_size):
            contents = reader.read(begin, end)
            if as_json is None:
                as_json = _is_json(contents[0])
                if not as_json and _is_protocol_buffer(contents[0]):
                    raise UserError(
                        f"{path}: its records are protocol buffers, not text. If TFDS made them, name the set: "
                        "tfds:NAME."
                    )
                context.notes[READ_AS_JSON if as_json else READ_AS_TEXT] += 1
            records = _Records(path, begin, contents, as_json)
            if max(map(len, contents)) <= BLOCK_BYTES:
                yield records
            else:
                yield from records.documents(context)
            del contents, records  # before the next are read


def ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of those to read at once, about a megabyte, of `count` records that take `size` bytes."""
    step = max(1, min(MOST_RECORDS, BLOCK_BYTES * count // max(1, size)))
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)


@dataclass(frozen=True)
class _Records:
    """Some records, and how many the file has before them."""

    path: Path
    before: int
    contents: list[bytes]
    as_json: bool

    @property
    def size(self) -> int:
        return sum(map(len, self.contents))

    def documents(self, context: ReadContext) -> Iterator[Document]:
        for number, record in enumerate(self.contents, start=self.before + 1):
            where = f"{self.path}: record {number}"
            if not self.as_json:
                yield validate_utf8(record, context, where=where)
            elif (document := document_of_record(record, context, where=where)) is not None:
                yield document


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An `ArrayRecordReader`; what goes wrong while it is read names the file."""
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
        if reader.ok():  # closing a damaged one is an error again
            reader.close()


def _is_json(record: bytes) -> bool:
    if not record[:64].lstrip().startswith((b"{", codecs.BOM_UTF8)):
        return False
    try:
        return isinstance(parse_json(str(record, "utf-8", "replace")), dict)
    except (ValueError, RecursionError):
        return False


def _is_protocol_buffer(record: bytes) -> bool:
    """Whether it begins as a `tf.train.Example` does: field 1, whose length is that of the rest."""
    if not record.startswith(b"\n"):
        return False
    length, shift = 0, 0
    for position, byte in enumerate(record[1:6], start=2):
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return length == len(record) - position
    return False
