"""Raw ArrayRecord files (`*.array_record`), as grain's own tools write them: a record is a document.

A record is either UTF-8 text or a JSON object that has the text in one of its fields. Which, the first record of each
file decides for the whole file, and the report says it. Sets that TFDS has prepared hold neither: their records are
protocol buffers, and `tfds:NAME` reads them.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.readers.documents import Document, Reading, checked, read_json
from data_pipelines.readers.extras import needs_extra
from data_pipelines.readers.long_lines import document_of_record
from gptjax.errors import UserError

READ_AS_JSON = "ArrayRecord files read as JSON objects"
READ_AS_TEXT = "ArrayRecord files read as plain text"
BATCH_BYTES = 2**22
MOST_RECORDS = 256


def read_array_records(path: Path, reading: Reading) -> Iterator[Document]:
    """The text of every record, in the order of the file."""
    as_json = None
    for number, record in enumerate(_records(path), start=1):
        if as_json is None:
            as_json = _is_json(record)
            if not as_json and _is_protocol_buffer(record):
                raise UserError(
                    f"{path}: its records are protocol buffers, not text. If TFDS made them, name the set: tfds:NAME."
                )
            reading.notes[READ_AS_JSON if as_json else READ_AS_TEXT] += 1
        where = f"{path}: record {number}"
        if not as_json:
            yield checked(record, reading, where=where)
        elif (document := document_of_record(record, reading, where=where)) is not None:
            yield document


def _records(path: Path) -> Iterator[bytes]:
    with needs_extra("data", what=f"{path}: reading ArrayRecord"):
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        count = reader.num_records()
        if not reader.ok():  # a damaged file claims to hold no records
            raise UserError(f"{path}: is no ArrayRecord file, or is cut off.")
        step = max(1, min(MOST_RECORDS, BATCH_BYTES * count // path.stat().st_size))
        for start in range(0, count, step):
            yield from reader.read(start, min(start + step, count))
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as ArrayRecord: {error}.") from None
    finally:
        if reader.ok():  # closing a damaged one is an error again
            reader.close()


def _is_json(record: bytes) -> bool:
    if not record[:64].lstrip().startswith((b"{", codecs.BOM_UTF8)):
        return False
    try:
        return isinstance(read_json(str(record, "utf-8", "replace")), dict)
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
