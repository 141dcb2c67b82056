"""The interface between readers and the rest: documents, blocks of them, and a count of what was invalid.

A document is the bytes of its UTF-8, already validated. A block says where consecutive documents lie, so that another
process can parse them. Every invalid record is counted, with the place of the first; in strict mode it is an error.
"""

import codecs
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gptjax.core.errors import UserError, count_of
from gptjax.core.unicode import replace_surrogates

Document = bytes | bytearray | memoryview
"""A text as valid UTF-8."""
REPLACED = "files had bytes that are not UTF-8 (replaced by U+FFFD)"
REPLACED_RECORDS = "records had bytes that are not UTF-8 (replaced by U+FFFD)"
SURROGATES = "records had surrogates without a partner (replaced by U+FFFD)"
INVALID = "invalid records skipped"
EMPTY = "empty documents skipped"
TEXT_FIELD = "text"


class Notes(Counter[str]):
    """How often each thing happened that the report mentions; `first` has the place of the first problem."""

    def __init__(self, times: Mapping[str, int] | None = None, first: Mapping[str, str] | None = None) -> None:
        super().__init__(times)
        self.first = dict(first or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Notes, (dict(self), self.first)

    def lines(self) -> list[str]:
        """One line for each note: how often, what, and where first."""
        first = {note: f"; the first: {place}" for note, place in self.first.items()}
        return [f"{count_of(times, note)}{first.get(note, '')}" for note, times in sorted(self.items())]

    def add(self, later: "Notes") -> None:
        """Add notes that were taken further on in the source."""
        self.update(later)
        self.first = later.first | self.first

    def as_json(self) -> dict[str, dict[str, Any]]:
        """The arguments that make the same notes."""
        return {"times": dict(self), "first": self.first}

    def take(self) -> "Notes":
        """Return the notes so far and begin anew."""
        taken = Notes(**self.as_json())
        self.clear()
        self.first = {}
        return taken


def parse_separator(spec: str | None) -> str | None:
    """The text between documents, in which `\\n` and `\\t` stand for a line end and a tab.

    Raises `UserError` for an empty one.
    """
    if spec == "":
        raise UserError("--separator is empty; wanted a text between documents, such as <|endoftext|>.")
    return None if spec is None else spec.replace("\\n", "\n").replace("\\t", "\t")


@dataclass(frozen=True)
class ReadContext:
    """Options of one pass over a source, and the notes taken on the way.

    `text_field` names the JSON key, column or feature that holds the text. `strict` raises at the first problem, which
    otherwise is counted in `notes`. `block_bytes` is the usual size of a block. A text file is cut at `separator`.
    """

    text_field: str = TEXT_FIELD
    strict: bool = False
    notes: Notes = dataclasses.field(default_factory=Notes)
    block_bytes: int = 2**20
    separator: str | None = None

    def fresh_copy(self) -> "ReadContext":
        """The same options with notes of their own, for another pass."""
        return dataclasses.replace(self, notes=Notes())

    def report_problem(self, note: str, problem: str) -> None:
        """Count a problem under `note`, or raise a `UserError` in strict mode. `problem` says what is wrong, where."""
        if self.strict:
            raise UserError(problem)
        self.notes[note] += 1
        self.notes.first.setdefault(note, replace_surrogates(problem))  # it may quote a name that cannot be printed

    def skip_record(self, problem: str, *, note: str = INVALID) -> None:
        """Report a record that gives no document."""
        self.report_problem(note, problem)


@dataclass(frozen=True)
class DocumentBlock:
    """Consecutive documents of a source that another process can read: `read` can be pickled.

    `size` is about their bytes of text. `read` yields them in order; empty ones are allowed.
    """

    size: int
    read: Callable[[ReadContext], Iterator[Document]]

    def chunks(self, context: ReadContext) -> Iterator["Chunk"]:
        """The block itself or, where it is 16 times too large to be one, its documents."""
        return iter([self]) if self.size <= 16 * context.block_bytes else self.read(context)


Chunk = Document | DocumentBlock


class Source(Protocol):
    """A sequence of documents, in the same order and the same chunks at every pass.

    Implement it in a file of your own to read another kind of text: `--source=my_reader.py:Mails`. The simplest
    `chunks` yields one `bytes` for each document. Yielding blocks lets other processes do the parsing. `name` is one
    word. `identity` is a JSON value that differs when the text differs.
    """

    @property
    def name(self) -> str: ...

    def chunks(self, context: ReadContext) -> Iterator[Chunk]: ...

    def identity(self) -> dict[str, Any]: ...


def iter_documents(chunks: Iterable[Chunk], context: ReadContext) -> Iterator[Document]:
    """Yield all documents, reading blocks in this process."""
    for chunk in chunks:
        if isinstance(chunk, DocumentBlock):
            yield from chunk.read(context)
        else:
            yield chunk
        del chunk  # a large document would stay in memory while the next one is read


def iter_text(document: Document, *, size: int = 2**14) -> Iterator[str]:
    """Yield the text in pieces of at most `size` bytes, cut before a space where there is one."""
    begin = 0
    while begin < len(document):
        block = bytes(document[begin : begin + size])
        last = begin + len(block) == len(document)
        cut = -1 if last else block.rfind(b" ", 1)
        text, read = codecs.utf_8_decode(block if cut < 0 else block[:cut], "strict", last)
        yield text
        begin += read


def is_blank(document: Document) -> bool:
    """True for a document of nothing but white space, as `str.isspace` defines it."""
    return not bytes(document[:1]).isalpha() and all(text.isspace() for text in iter_text(document))


def validate_utf8(content: Document, context: ReadContext, *, where: str, note: str = REPLACED_RECORDS) -> Document:
    """Return the bytes as a document, with invalid UTF-8 replaced by U+FFFD, which is one problem under `note`."""
    try:
        str(content, "utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} (0x{content[error.start]:02x})"
        advice = "A file of Windows is converted by iconv -f WINDOWS-1252 -t UTF-8."
        context.report_problem(note, f"{where}: {byte} is not UTF-8, counted from 0. {advice}")
        return str(content, "utf-8", "replace").encode()
    return content


def encode_utf8(text: str, context: ReadContext, *, where: str) -> bytes:
    """Return the UTF-8 of a text, with lone surrogates replaced by U+FFFD, which is one problem."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        context.report_problem(SURROGATES, f"{where}: its text has a surrogate without a partner, which is no UTF-8.")
        return replace_surrogates(text).encode()
