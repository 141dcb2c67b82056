"""What a source gives: documents, and a count of what was wrong with them.

Two ideas. A document is the bytes of its UTF-8, checked, in one piece of memory: that is what is hashed, cut and sent
to other processes, while Python would need up to four bytes for a character of a `str`; it becomes one only in small
pieces. And a broken record never passes unseen: either it is counted, under a phrase that ends up in the report, and
left out; or, in strict mode, it is an error that names its place.
"""

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from gptjax.errors import UserError
from gptjax.tokenizer import replace_surrogates

Document = bytes | bytearray | memoryview
"""The UTF-8 of a text, without an error in it; a view where it lies in memory that is not Python's."""
Notes = Counter[str]
"""Things worth a line in the report, and how often they happened."""

REPLACED = "files had bytes that are not UTF-8 (replaced by U+FFFD; --strict names the first)"
REPLACED_RECORDS = "records had bytes that are not UTF-8 (replaced by U+FFFD; --strict names the first)"
SURROGATES = "records had surrogates without a partner (replaced by U+FFFD)"
BROKEN = 'broken records left out: not JSON, or without a string "text" (--strict names the first)'
BLOCK_BYTES = 2**20


def print_notes(notes: Notes) -> None:
    """The lines of the report."""
    for note, times in sorted(notes.items()):
        print(f"note: {times:,} {note}")


class Source(Protocol):
    """Any sequence of documents that can be read more than once, each time in the same order."""

    @property
    def name(self) -> str:
        """One word, for the name of a cache directory."""
        ...

    def documents(self, notes: Notes) -> Iterator[Document]:
        """Yield every document; may yield empty ones."""
        ...

    def identity(self) -> dict[str, Any]:
        """What, in JSON, distinguishes this text from another."""
        ...


def texts_of(document: Document, *, size: int = BLOCK_BYTES) -> Iterator[str]:
    """The text in pieces of at most `size` bytes, cut before a space where there is one, so that words stay whole."""
    begin = 0
    while begin < len(document):
        block = bytes(document[begin : begin + size])
        last = begin + len(block) == len(document)
        cut = -1 if last else block.rfind(b" ", 1)
        text, read = codecs.utf_8_decode(block if cut < 0 else block[:cut], "strict", last)
        yield text
        begin += read


def is_blank(document: Document) -> bool:
    """Whether there is nothing but white space."""
    # Most texts begin with a letter; the others are looked at as Python's text, which knows all white space.
    return not bytes(document[:1]).isalpha() and all(text.isspace() for text in texts_of(document))


def checked(content: Document, notes: Notes, *, strict: bool, where: str, note: str = REPLACED_RECORDS) -> Document:
    """Bytes as a document, line ends and byte-order marks as they are.

    What is not UTF-8 becomes U+FFFD, and is counted once under `note`; in strict mode it is a `UserError` that names
    the place: `where`, and the byte counted from 0.
    """
    wrong = _first_error(content)
    if wrong is None:
        return content
    if strict:
        raise UserError(f"{where}: byte {wrong} (0x{content[wrong]:02x}) is not UTF-8, counted from 0.")
    notes[note] += 1
    return _replaced(content)


def _first_error(content: Document) -> int | None:
    view, begin = memoryview(content), 0
    while begin < len(view):
        end = begin + BLOCK_BYTES
        try:
            begin += codecs.utf_8_decode(view[begin:end], "strict", end >= len(view))[1]
        except UnicodeDecodeError as error:
            return begin + error.start
    return None


def _replaced(content: Document) -> bytearray:
    view, begin, whole = memoryview(content), 0, bytearray()
    while begin < len(view):
        end = begin + BLOCK_BYTES
        text, read = codecs.utf_8_decode(view[begin:end], "replace", end >= len(view))
        whole += text.encode()
        begin += read
    return whole


def document_of_json(line: bytes, notes: Notes, *, strict: bool, where: str) -> Document | None:
    """The text of one JSON object with a string `text`; None where it is broken, and for a line of white space.

    In strict mode a broken record is a `UserError` that begins with `where`, and bytes that are not UTF-8 (which JSON
    demands) break a record too; otherwise they are replaced.
    """
    if line.isspace():
        return None
    try:
        record = read_json(str(line, "utf-8"))
    except UnicodeDecodeError as error:
        if strict:
            return broken(f"{where}: not a line of JSON in UTF-8: {error}.", notes, strict=strict)
        notes[REPLACED_RECORDS] += 1
        return document_of_json(str(line, "utf-8", "replace").encode(), notes, strict=strict, where=where)
    except (ValueError, RecursionError) as error:
        return broken(f"{where}: not a line of JSON in UTF-8: {error}.", notes, strict=strict)
    text = text_of(record, notes, strict=strict, where=where)
    return None if text is None else utf_8(text, notes)


def read_json(text: str) -> Any:
    """What a line of JSON holds; numbers too long for Python's integers become floats, for JSON allows them."""
    text = text.removeprefix("\ufeff")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=float)


def text_of(record: Any, notes: Notes, *, strict: bool, where: str) -> str | None:
    """The string `text` of a record; None where there is none, which breaks it."""
    text = record.get("text") if isinstance(record, dict) else None
    if isinstance(text, str):
        return text
    return broken(f'{where}: wanted an object with a string "text", got {str(record)[:80]}.', notes, strict=strict)


def utf_8(text: str, notes: Notes) -> bytes:
    """A text as a document; surrogates without a partner, which UTF-8 cannot hold, become U+FFFD and are counted."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        whole = replace_surrogates(text)
        if "\ufffd" in whole:
            notes[SURROGATES] += 1
        return whole.encode()


def broken(problem: str, notes: Notes, *, strict: bool) -> None:
    """Count a broken record; in strict mode raise what is wrong with it."""
    if strict:
        raise UserError(problem)
    notes[BROKEN] += 1
