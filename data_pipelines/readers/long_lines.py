"""A line of JSON too long to be parsed whole: its long strings are taken out on the way.

The one idea: a string that is longer than `LONG_BYTES` is decoded piece by piece into UTF-8, and a short name stands in
its place; the line that remains is parsed like any other. So the text is in memory once and the line
never, though escapes may make the line six times as long as the text. Of all else, where every number and bracket
would be an object of Python's, there may be `MOST_STRUCTURE` bytes.
"""

import codecs
import json
import re
import uuid
from collections.abc import Iterable
from typing import Any

from data_pipelines.readers.documents import (
    REPLACED_RECORDS,
    Document,
    ReadContext,
    encode_utf8,
    extract_text,
    note_lone_surrogate,
    parse_json,
    parse_json_line,
)

# Whole strings and what stands between them.
_COMPLETE = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
# What may be decoded by itself: no escape is cut, and none that is half of a pair is parted from what follows it.
_HALF = rb"[dD][89abAB]"
_INSIDE = re.compile(
    rb'(?:[^"\\]++|\\[^u]|\\u(?!%b)[0-9a-fA-F]{4}|\\u%b[0-9a-fA-F]{2}(?=[^\\]|\\[^u]|\\u[0-9a-fA-F]{4}))*+'
    % (_HALF, _HALF),
    re.DOTALL,
)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
LONG_BYTES = 2**20
MOST_STRUCTURE = 2**24
"""Bytes outside of strings, which as Python's objects take 6 times as much (numbers) to 24 times (empty lists);"""
STRING_COSTS = 4
"""and a string counts as so many of them, beside what is in it."""
TOO_MUCH = f"records left out with more than {MOST_STRUCTURE:,} bytes of numbers and brackets"
_LONGEST_REST = 16
"""Bytes: two escapes, of which the second is not complete, or a character."""


class TooMuchStructure(Exception):
    """More numbers and brackets in a line than there may be."""


def document_of_long_line(blocks: Iterable[bytes], context: ReadContext, *, where: str) -> Document | None:
    """The text of one JSON object, as `document_of_json`; the blocks are all of one line."""
    line, blocks = _LongLine(strict=context.strict), iter(blocks)
    try:
        for block in blocks:
            line.add(block)
        if line.is_blank():
            return None
        record = line.parsed()
    except TooMuchStructure:
        for _ in blocks:
            pass
        return context.report_problem(
            TOO_MUCH, f"{where}: more than {MOST_STRUCTURE:,} bytes of it are not in strings."
        )
    except (ValueError, RecursionError) as error:
        for _ in blocks:
            pass
        what = error.msg if isinstance(error, json.JSONDecodeError) else error  # its place is one in what was parsed
        return context.skip_record(f"{where}: not a line of JSON in UTF-8: {what}.")
    text = extract_text(record, context, where=where, hidden=line.name)
    if text is None:
        return None
    if line.replaced:
        context.report_problem(REPLACED_RECORDS, f"{where}: not a line of JSON in UTF-8.")
    document, halves = (line.strings[text], text in line.halves) if text in line.strings else encode_utf8(text)
    if halves:
        note_lone_surrogate(context, where=where)
    return document


def document_of_record(record: bytes, context: ReadContext, *, where: str) -> Document | None:
    """As `document_of_json`, of a record of any length that is in memory."""
    if len(record) <= LONG_BYTES:
        return parse_json_line(record, context, where=where)
    blocks = (record[begin : begin + LONG_BYTES] for begin in range(0, len(record), LONG_BYTES))
    return document_of_long_line(blocks, context, where=where)


class _LongLine:
    """The line as far as it is known; `strings` are its long ones by name.

    `replaced` says whether bytes were not UTF-8 (in strict mode an error), `halves` which strings had surrogates
    without a partner.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strings: dict[str, bytearray] = {}
        self.halves: set[str] = set()
        self.replaced = False
        self._short, self._rest, self._strict = bytearray(), b"", strict
        self.name = uuid.uuid4().hex  # the beginning of their names, which no text has
        self._open: str | None = None
        self._structure = 0

    def add(self, block: bytes) -> None:
        data, place = self._rest + block, 0
        while place < len(data):
            if self._open is None:
                end = _end(_COMPLETE, data, place)
                self._count_structure(data[place:end])
                self._short += data[place:end]
                place = end
                if len(data) - place <= LONG_BYTES:  # at the end, or at a string of which too little is known
                    break
                self._open = f"{self.name}{len(self.strings)}"
                self.strings[self._open] = bytearray()
                self._short += f'"{self._open}"'.encode()
                place += 1
            else:
                end = _end(_INSIDE, data, place)
                closed = data[end : end + 1] == b'"'
                place += self._take(data[place:end], whole=closed)
                if not closed:
                    break
                self._open, place = None, end + 1
        self._rest = data[place:]
        if self._open is not None and len(self._rest) > _LONGEST_REST:
            raise ValueError(f"no escape: {self._rest[:_LONGEST_REST]!r}")

    def _count_structure(self, complete: bytes) -> None:
        strings = _STRING.findall(complete)
        self._structure += len(complete) - sum(map(len, strings)) + STRING_COSTS * len(strings)
        if self._structure > MOST_STRUCTURE:
            raise TooMuchStructure

    def _take(self, part: bytes, *, whole: bool) -> int:
        """Decode what is inside of a string, but for a character that is not complete unless `whole`."""
        assert self._open is not None
        text, read = self._decoded(part, whole=whole)
        content, halves = encode_utf8(json.loads(f'"{text}"'))
        self.strings[self._open] += content
        self.halves |= {self._open} if halves else set()
        return read

    def _decoded(self, part: bytes | bytearray, *, whole: bool) -> tuple[str, int]:
        try:
            return codecs.utf_8_decode(part, "strict", whole)
        except UnicodeDecodeError:
            if self._strict:
                raise
            self.replaced = True
            return codecs.utf_8_decode(part, "replace", whole)

    def is_blank(self) -> bool:
        """Whether there is nothing but white space."""
        return not self.strings and (self._short + self._rest).isspace()

    def parsed(self) -> Any:
        """What the line holds, the long strings by their names."""
        if self._open is not None:
            raise ValueError("it ends within a string")
        return parse_json(self._decoded(self._short + self._rest, whole=True)[0])


def _end(pattern: re.Pattern[bytes], data: bytes, place: int) -> int:
    found = pattern.match(data, place)
    assert found is not None  # it matches nothing, too
    return found.end()
