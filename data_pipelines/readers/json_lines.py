"""JSON lines, plain, gzipped or compressed by Zstandard: as documents of text, or as records with their places."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.readers.documents import REPLACED_RECORDS, Block, Chunk, Document, ReadContext, encode_utf8
from data_pipelines.readers.paths import files_identity, find_files
from data_pipelines.readers.text_files import COMPRESSED, explain_errors, open_file
from gptjax.core.errors import UserError

# C4 and others publish JSON lines as .json.gz; a plain .json is more often a single object of many lines.
SUFFIXES = (*(kind + end for kind in (".jsonl", ".ndjson") for end in COMPRESSED), ".json.gz", ".json.zst")


def read_json_lines(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the text of the object in every line; blank lines are no records.

    A block is whole lines. Memory is a few times the longest line.
    """
    with open_file(path) as file:
        number = 1
        while lines := file.readlines(context.block_bytes):
            yield from Block(sum(map(len, lines)), partial(_parse_lines, path, number, lines)).chunks(context)
            number += len(lines)


def _parse_lines(path: Path, number: int, lines: list[bytes], context: ReadContext) -> Iterator[Document]:
    """The documents of some lines, the first of which is line `number` of the file."""
    for line_number, line in enumerate(lines, start=number):
        document = parse_json_line(line, context, where=f"{path}:{line_number}")
        if document is not None:
            yield document


def parse_json_line(line: bytes, context: ReadContext, *, where: str) -> Document | None:
    """Return the text of one JSON object; None for an invalid record, which is reported, and for a blank line.

    Bytes that are not UTF-8 are replaced by U+FFFD and reported.
    """
    if not line.strip():
        return None
    problem = ""
    try:
        content = line.decode()
    except UnicodeDecodeError as error:
        content, problem = line.decode(errors="replace"), f"{where}: not a line of JSON in UTF-8: {error}."
    try:
        record = parse_json(content)
    except (ValueError, RecursionError) as error:
        return context.skip_record(f"{where}: not a line of JSON in UTF-8: {error}.")
    wanted = context.text_field
    text = record.get(wanted) if isinstance(record, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(record)[:200] if isinstance(record, dict) and wanted not in record else ""
        found = f"one with {keys} (--text-field chooses another)" if keys else str(record)[:80]
        return context.skip_record(f'{where}: wanted an object with a string "{wanted}", got {found}.')
    if problem:
        context.report_problem(REPLACED_RECORDS, problem)
    return encode_utf8(text, context, where=where)


def parse_json(text: str) -> Any:
    """Parse one JSON value; integers too long for Python become floats."""
    text = text.removeprefix("\ufeff")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=float)


class Line(NamedTuple):
    """One line that is not blank; `where` is `FILE:NUMBER`, counted from 1."""

    where: str
    content: bytes

    def record(self) -> dict[str, Any]:
        """Parse the JSON object; raises `UserError` if there is none."""
        try:
            value = parse_json(self.content.decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.where}: not a line of JSON in UTF-8: {error}.") from None
        if not isinstance(value, dict):
            raise UserError(f"{self.where}: wanted a JSON object, got {str(value)[:80]}.")
        return value


@dataclass(frozen=True)
class JsonLines:
    """All lines of some files, in the order given."""

    spec: str
    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[Line]:
        for path in self.paths:
            with explain_errors(path), open_file(path) as file:
                for number, content in enumerate(file, start=1):
                    if content.strip():
                        yield Line(f"{path}:{number}", content)

    def identity(self) -> dict[str, Any]:
        """A JSON value that differs when the files differ."""
        return files_identity(self.spec, self.paths)


def open_json_lines(spec: str) -> JsonLines:
    """Open the lines of a file, of the JSON lines files in a directory, or of the files of a pattern."""
    known = ".jsonl (also .gz, .zst)"
    is_known = lambda name: name.lower().endswith(SUFFIXES)
    return JsonLines(spec, find_files(spec, is_known, known=known, otherwise=f" Wanted {known}."))
