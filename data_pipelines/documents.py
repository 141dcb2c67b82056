"""What a source gives: documents, and a count of what was wrong with them.

The one idea: a broken record never passes unseen. Either it is counted, under a phrase that ends up in the report, and
left out; or, in strict mode, it is an error that names its place.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from gptjax.errors import UserError
from gptjax.tokenizer import replace_surrogates

Notes = Counter[str]
"""Things worth a line in the report, and how often they happened."""

REPLACED = "files had bytes that are not UTF-8 (replaced by U+FFFD)"
REPLACED_RECORDS = "records had bytes that are not UTF-8 (replaced by U+FFFD)"
SURROGATES = "records had surrogates without a partner (replaced by U+FFFD)"
BROKEN = 'broken records left out: not JSON, or without a string "text" (--strict names the first)'


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

    def documents(self, notes: Notes) -> Iterator[str]:
        """Yield every document; may yield empty ones."""
        ...

    def identity(self) -> dict[str, Any]:
        """What, in JSON, distinguishes this text from another."""
        ...


def decoded(content: bytes | memoryview, notes: Notes, *, note: str = REPLACED) -> str:
    """Bytes as text, line ends and byte-order marks as they are; what is not UTF-8 is replaced, and counted once."""
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError:
        notes[note] += 1
        return str(content, "utf-8", errors="replace")


def text_of_json(line: bytes, notes: Notes, *, strict: bool, where: str) -> str | None:
    """The text of one JSON object with a string `text`; None where it is broken, and for a line of white space.

    In strict mode a broken record is a `UserError` that begins with `where`, and bytes that are not UTF-8 (which JSON
    demands) break a record too; otherwise they are replaced.
    """
    if line.isspace():
        return None
    try:
        written = str(line, "utf-8") if strict else decoded(line, notes, note=REPLACED_RECORDS)
        del line
        record = json.loads(written.removeprefix("\ufeff"))
        del written
    except (ValueError, RecursionError) as error:
        return broken(f"{where}: not a line of JSON in UTF-8: {error}.", notes, strict=strict)
    return checked_text(record, notes, strict=strict, where=where)


def checked_text(record: Any, notes: Notes, *, strict: bool, where: str) -> str | None:
    """The string `text` of a record; None where there is none. Surrogates without a partner become U+FFFD."""
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        problem = f'{where}: wanted an object with a string "text", got {str(record)[:80]}.'
        return broken(problem, notes, strict=strict)
    mended = replace_surrogates(text)
    if mended is not text and "\ufffd" in mended:
        notes[SURROGATES] += 1
    return mended


def broken(problem: str, notes: Notes, *, strict: bool) -> None:
    """Count a broken record; in strict mode raise what is wrong with it."""
    if strict:
        raise UserError(problem)
    notes[BROKEN] += 1
