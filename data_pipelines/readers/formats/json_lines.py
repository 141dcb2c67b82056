"""JSON lines, plain, gzipped or compressed by Zstandard: as documents of text, or as records with their places."""

import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Chunk, Document, DocumentBlock, ReadContext, encode_utf8, validate_utf8
from data_pipelines.readers.fields import describe_fields, find_text, suggest_command, suggest_for_list
from data_pipelines.readers.formats.tables import is_json_array, read_json_array, report_absent
from data_pipelines.readers.formats.text_files import (
    COMPRESSED,
    is_before_object,
    is_json_object,
    open_file,
    write_edit,
    write_filter,
)
from gptjax.core.errors import UserError, quote
from gptjax.core.json_names import explain_names, parse_fields

SUFFIXES = tuple(kind + end for kind in (".jsonl", ".ndjson") for end in COMPRESSED)
JSON_SUFFIXES = tuple(".json" + end for end in COMPRESSED)
"""An array, or JSON lines: C4 and others publish these as .json.gz."""
SEEN_LINES = 20
SEEN_BYTES = 2**24
"""What is looked at of a file whose name does not say whether it holds records. A text may begin with an object."""


def read_json(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the texts of a .json file: an array of objects, or JSON lines under that name."""
    yield from (read_json_array if is_json_array(path) else read_json_lines)(path, context)


def read_json_lines(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the text of the object in every line, in blocks of whole lines; blank lines are no records."""
    check_lines(path)
    with open_file(path) as file:
        number = 1
        while lines := file.readlines(context.block_bytes):
            yield from DocumentBlock(sum(map(len, lines)), partial(_read_texts, path, number, lines)).chunks(context)
            number += len(lines)


def begins_with_records(path: Path) -> bool:
    """Whether the first lines are JSON objects, of whatever fields."""
    with open_file(path) as file:
        beginning = file.read(SEEN_BYTES)
    *whole, rest = beginning.split(b"\n", SEEN_LINES)
    if len(beginning) < SEEN_BYTES and len(whole) < SEEN_LINES:  # the file's last line, which may have no end
        whole.append(rest)
    lines = [line for line in whole if line.strip()]
    return bool(lines) and all(map(is_json_object, lines))


def check_lines(path: Path) -> None:
    """Raise `UserError` for an array over several lines, or its items, of which only the last would be a record."""
    with open_file(path) as file:
        first = next((line for line in itertools.islice(file, 100) if line.strip()), b"").strip()
    if first in (b"[", b"[{") or (first.startswith(b"[") and first.endswith(b",")):
        raise UserError(f"{path}: is an array over several lines. It is read from a file that is called {_json(path)}.")
    if first.startswith(b"{") and first.endswith(b"},"):
        advice = write_edit("sed -i 's/,[[:space:]]*$//'", path)  # they may end with \r
        wrong = "its lines end with commas, as in an array; wanted an object on each line"
        raise UserError(f"{path}: {wrong}. This takes them away: {advice}")


def _read_texts(path: Path, first: int, lines: list[bytes], context: ReadContext) -> Iterator[Document]:
    for number, line in enumerate(lines, start=first):
        if (text := parse_text(line, context, where=f"{path}:{number}")) is not None:
            yield text


def parse_text(line: bytes, context: ReadContext, *, where: str) -> Document | None:
    """Return the text of one JSON object; None for an invalid record, which is reported, and for a blank line."""
    if not line.strip():
        return None
    try:
        record = parse_object(bytes(validate_utf8(line, context, where=where)), where=where)
    except UserError as error:
        return context.skip_record(str(error))
    absent: list[str] = []
    if (text := find_text(record, context.text_field, absent=absent)) is None:
        if (repeated := explain_names(record)) is not None:
            return context.skip_record(f"{where}: {repeated}")
        field, known = context.text_field, quote(describe_fields(record))
        there = f"{quote(repr(record[field]), limit=40)} there, in " if field in record else ""
        found = f"{there}one with {known or 'no keys'} (--text-field chooses another)"
        wanted = f'wanted an object with a string "{field}"'
        return context.skip_record(f"{where}: {wanted}, got {found}.{suggest_command(record)}")
    if absent:
        report_absent(absent, record, context, where=where)
    return encode_utf8(text, context, where=where)


def parse_object(line: bytes, *, where: str) -> dict[str, Any]:
    """Parse one JSON object; raises `UserError` for anything else."""
    try:
        value = parse_fields(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {explain_line(line, error, where=where)}") from None
    if not isinstance(value, dict):
        path, wrap = _path_of(where), "jq -c '{text: .}'"
        as_array = f" An array is read from a file that is called {_json(path)}." if isinstance(value, list) else ""
        as_text = f" Make it one: {write_filter(wrap, path)}" if isinstance(value, str) else ""
        advice = suggest_for_list(value) or as_array or as_text
        raise UserError(f"{where}: wanted a JSON object, got {quote(str(value), limit=80)}.{advice}")
    return value


def explain_line(line: bytes, error: Exception, *, where: str) -> str:
    """What is wrong with a line that is no JSON; for an object over several lines or several on one, what to do.

    `where` is FILE:LINE.
    """
    is_cut = line.strip() == b"{" or is_before_object(error)
    advice = f" Each record must be a line of its own: {write_filter('jq -c .', _path_of(where))}" if is_cut else ""
    if line.lstrip().startswith((b"{'", b"[{'")):
        advice = " JSON has double quotes; Python's json.dumps writes them."
    reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
    return f"not a line of JSON in UTF-8: {reason}.{advice}"


def _path_of(where: str) -> Path:
    """The file of a place FILE:LINE."""
    return Path(where.rpartition(":")[0])


def _json(path: Path) -> str:
    """The ending under which an array in a file is read: `.json`, or that of a compressed one."""
    return f".json{path.suffix.lower() if path.suffix.lower() in COMPRESSED else ''}"
