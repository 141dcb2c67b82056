"""What a source gives: documents, or blocks of them, and a count of what was wrong with them.

Three ideas. A document is the bytes of its UTF-8, checked, in one piece of memory: that is what is hashed, cut and sent
to other processes, while Python would need up to four bytes for a character of a `str`; it becomes one only in small
pieces. A block says where documents lie (or, where only one process can get at them, holds them as they lie there), so
that many processes can parse what one has found. And a broken record never passes unseen: either it is counted, under a
phrase that ends up in the report with the place of the first, and left out; or, in strict mode, it is an error that
names its place.
"""

import codecs
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gptjax.errors import UserError
from gptjax.tokenizer import replace_surrogates

Document = bytes | bytearray | memoryview
"""The UTF-8 of a text, without an error in it; a view where it lies in memory that is not Python's."""
REPLACED = "files had bytes that are not UTF-8 (replaced by U+FFFD)"
REPLACED_RECORDS = "records had bytes that are not UTF-8 (replaced by U+FFFD)"
SURROGATES = "records had surrogates without a partner (replaced by U+FFFD)"
INVALID = "invalid records skipped"
EMPTY = "empty documents skipped"
TEXT_FIELD = "text"
BLOCK_BYTES = 2**20
TEXT_BYTES = 2**14
"""So much becomes a `str` at once: it stays in a core's cache, and leaves no holes in the heap, as a megabyte would."""


class Notes(Counter[str]):
    """Things worth a line in the report, and how often they happened; of what was wrong, where it was `first`."""

    def __init__(self, times: Mapping[str, int] | None = None, first: Mapping[str, str] | None = None) -> None:
        super().__init__(times)
        self.first = dict(first or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Notes, tuple(self.as_json().values())

    def lines(self) -> list[str]:
        """Each note with how often it happened."""
        return [self._line(note, times) for note, times in sorted(self.items())]

    def _line(self, note: str, times: int) -> str:
        return f"{times:,} {note}" + (f"; the first: {self.first[note]}" if note in self.first else "")

    def add(self, later: "Notes") -> None:
        """Count also what was noted further on in the source."""
        self.update(later)
        self.first = later.first | self.first

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Arguments of the same notes."""
        return {"times": dict(self), "first": self.first}

    def take(self) -> "Notes":
        """What was noted since this was last asked; it is not counted here any more."""
        taken = Notes(**self.as_json())
        self.clear()
        self.first = {}
        return taken


@dataclass(frozen=True)
class ReadContext:
    """How a source is read, once, and what is worth noting meanwhile: it goes with the reading to every record.

    The text of a record is the string in `text_field`, be it a key of a JSON object, a column or a feature. `strict`
    stops at the first trouble, which otherwise is counted in `notes`.
    """

    text_field: str = TEXT_FIELD
    strict: bool = False
    notes: Notes = dataclasses.field(default_factory=Notes)

    def fresh_copy(self) -> "ReadContext":
        """The same once more, noting it apart: what is read twice is to be counted once."""
        return dataclasses.replace(self, notes=Notes())

    def report_problem(self, note: str, problem: str) -> None:
        """Count it under `note`; in strict mode it is a `UserError`. `problem` says what is wrong, and where."""
        if self.strict:
            raise UserError(problem)
        self.notes[note] += 1
        # It may quote a name that cannot be printed.
        self.notes.first.setdefault(note, replace_surrogates(problem))

    def skip_record(self, problem: str) -> None:
        """A record that gives no document."""
        self.report_problem(INVALID, problem)


class Block(Protocol):
    """Neighbouring documents of a source, which another process can read: it can be pickled.

    It is meant for about a megabyte of text, and for no more than 16.
    """

    @property
    def size(self) -> int:
        """About how many bytes of text these are."""
        ...

    def documents(self, context: ReadContext) -> Iterator[Document]:
        """Yield them in their order; may yield empty ones."""
        ...


Chunk = Document | Block


class Source(Protocol):
    """Any sequence of documents that can be read more than once, each time in the same order and the same chunks."""

    @property
    def name(self) -> str:
        """One word, for the name of a cache directory."""
        ...

    def chunks(self, context: ReadContext) -> Iterator[Chunk]:
        """Yield every document, by itself or in a block; may yield empty ones."""
        ...

    def identity(self) -> dict[str, Any]:
        """What, in JSON, distinguishes this text from another."""
        ...


def iter_documents(chunks: Iterable[Chunk], context: ReadContext) -> Iterator[Document]:
    """All documents one after another, read here."""
    for chunk in chunks:
        if isinstance(chunk, Document):
            yield chunk
        else:
            yield from chunk.documents(context)
        del chunk  # a document would be held while the next one is read


def iter_text(document: Document, *, size: int = TEXT_BYTES) -> Iterator[str]:
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
    return not bytes(document[:1]).isalpha() and all(text.isspace() for text in iter_text(document))


def validate_utf8(content: Document, context: ReadContext, *, where: str, note: str = REPLACED_RECORDS) -> Document:
    """Bytes as a document, line ends and byte-order marks as they are.

    What is not UTF-8 becomes U+FFFD, which is trouble once, under `note`, at `where` and the byte counted from 0.
    """
    wrong = _first_error(content)
    if wrong is None:
        return content
    context.report_problem(note, f"{where}: byte {wrong} (0x{content[wrong]:02x}) is not UTF-8, counted from 0.")
    return _replaced(content)


def _first_error(content: Document) -> int | None:
    view, begin = memoryview(content), 0
    while begin < len(view):
        end = begin + TEXT_BYTES
        try:
            begin += codecs.utf_8_decode(view[begin:end], "strict", end >= len(view))[1]
        except UnicodeDecodeError as error:
            return begin + error.start
    return None


def _replaced(content: Document) -> bytearray:
    view, begin, whole = memoryview(content), 0, bytearray()
    while begin < len(view):
        end = begin + TEXT_BYTES
        text, read = codecs.utf_8_decode(view[begin:end], "replace", end >= len(view))
        whole += text.encode()
        begin += read
    return whole


def parse_json_line(line: bytes, context: ReadContext, *, where: str) -> Document | None:
    """The text of one JSON object; None where it is broken, and for a line of white space.

    What is wrong is said to be at `where`. Bytes that are not UTF-8, which JSON demands, break a record in strict mode;
    otherwise they are replaced.
    """
    if not line.strip():
        return None
    try:
        record = parse_json(str(line, "utf-8"))
    except UnicodeDecodeError as error:
        problem = f"{where}: not a line of JSON in UTF-8: {error}."
        if context.strict:
            raise UserError(problem) from None
        document = parse_json_line(str(line, "utf-8", "replace").encode(), context, where=where)
        if document is not None:
            context.report_problem(REPLACED_RECORDS, problem)
        return document
    except (ValueError, RecursionError) as error:
        return context.skip_record(f"{where}: not a line of JSON in UTF-8: {error}.")
    text = extract_text(record, context, where=where)
    if text is None:
        return None
    document, halves = encode_utf8(text)
    if halves:
        note_lone_surrogate(context, where=where)
    return document


def parse_json(text: str) -> Any:
    """What a line of JSON holds; numbers too long for Python's integers become floats, for JSON allows them."""
    text = text.removeprefix("\ufeff")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=float)


def extract_text(record: Any, context: ReadContext, *, where: str, hidden: str = "") -> str | None:
    """The text of a JSON value; None where there is none, which breaks the record. Nobody is told what is `hidden`."""
    wanted = context.text_field
    text = record.get(wanted) if isinstance(record, dict) else None
    if isinstance(text, str):
        return text
    others = ", ".join(record)[:200] if isinstance(record, dict) and wanted not in record else ""
    got = f"one with {others} (--text-field chooses another)" if others else str(record)[:80]
    if hidden:
        got = got.replace(hidden, "…")
    return context.skip_record(f'{where}: wanted an object with a string "{wanted}", got {got}.')


def encode_utf8(text: str) -> tuple[bytes, bool]:
    """The UTF-8 of a text, and whether surrogates without a partner, which it cannot hold, became U+FFFD."""
    try:
        return text.encode(), False
    except UnicodeEncodeError:
        return replace_surrogates(text).encode(), True


def note_lone_surrogate(context: ReadContext, *, where: str) -> None:
    """Say that `utf_8` replaced something in a text."""
    context.report_problem(SURROGATES, f"{where}: its text has a surrogate without a partner, which UTF-8 cannot hold.")
