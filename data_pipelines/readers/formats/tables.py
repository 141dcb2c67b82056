"""Tables with a header (.csv, .tsv) and JSON arrays of objects (.json): records, as JSON lines are."""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Document, ReadContext, encode_utf8, validate_utf8
from data_pipelines.readers.fields import describe_fields, find_text, list_fields, suggest_command
from data_pipelines.readers.formats.text_files import COMPRESSED, open_file
from gptjax.core.errors import UserError, quote

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = tuple(kind + end for kind in DELIMITERS for end in COMPRESSED)
CELL_BYTES = 2**31 - 1
"""Largest cell; Python's default of 128 kB is less than many texts."""
MARKS = (",", "\t", ";", "|")
"""What may stand between the cells of a table, whatever its name says."""


def read_table(path: Path, context: ReadContext) -> Iterator[Document]:
    """Yield the text of each row, in the column that the context names."""
    for where, row in iter_rows(path):
        if isinstance(row, UserError):
            context.skip_record(str(row))
        elif (text := find_text(row, context.text_field)) is not None:
            # Bytes that are not UTF-8 are still in the cell, as surrogates.
            yield validate_utf8(text.encode("utf-8", "surrogateescape"), context, where=where)
        else:
            names = quote(describe_fields(row))
            wanted = f'wanted the column "{context.text_field}"; its first line names {names}'
            context.skip_record(f"{where}: {wanted} (--text-field chooses one).{suggest_command(row)}")


def read_json_array(path: Path, context: ReadContext) -> Iterator[Document]:
    """Yield the text of each object of an array."""
    for number, (where, record) in enumerate(iter_array(path)):
        if number == 0 and not isinstance(record, dict):
            found = quote(str(record), limit=40)
            raise UserError(
                f"{path}: holds no array of objects; its first item is {found}. Wanted such as [{{…}}, {{…}}]."
            )
        text = find_text(record, context.text_field) if isinstance(record, dict) else None
        if text is not None:
            yield encode_utf8(text, context, where=where)
        else:
            known = quote(describe_fields(record) if isinstance(record, dict) else str(record), limit=160)
            wanted = f'wanted an object with text in "{context.text_field}"'
            advice = f"(--text-field chooses one).{suggest_command(record if isinstance(record, dict) else ())}"
            context.skip_record(f"{where}: {wanted}; there is {known} {advice}")


def iter_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Yield (FILE: row NUMBER, cells by the names of the header); rows count from 1 behind the header.

    A row with more cells than the header is a `UserError` in its place. Bytes that are not UTF-8 are surrogates.
    """
    csv.field_size_limit(CELL_BYTES)
    with open_file(path) as file:
        delimiter = find_delimiter(path, file.peek(2**12))
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            rows = csv.DictReader(text, delimiter=delimiter, restval="")
            if not rows.fieldnames or len(set(rows.fieldnames)) < len(rows.fieldnames):
                raise UserError(f"{path}: its first line is no header of different names.")
            for number, row in enumerate(rows, start=1):
                where, beyond = f"{path}: row {number}", row.pop(None, [])
                yield where, _explain_beyond(where, rows.fieldnames, beyond, delimiter) if beyond else row
        except csv.Error as error:
            raise UserError(f"{path}: is no table: {error}.") from None
        finally:
            text.detach()


def find_delimiter(path: Path, start: bytes) -> str:
    """What separates the cells: the mark of the file's kind or, if the header lacks it, another that the header has."""
    header = start.partition(b"\n")[0].decode("utf-8", "replace")
    usual = next(mark for kind, mark in DELIMITERS.items() if kind in path.name.lower()[-len(".csv.zst") :])
    return usual if usual in header else max(MARKS, key=lambda mark: (header.count(mark), mark == usual))


def _explain_beyond(where: str, names: Sequence[str], beyond: Sequence[str], delimiter: str) -> UserError:
    header = f"{len(names)} ({quote(list_fields(list(names)), limit=80)})"
    advice = f"A text with {delimiter!r} in it needs double quotes around it."
    return UserError(f"{where}: has {len(names) + len(beyond)} cells, the header {header}. {advice}")


def iter_array(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (FILE: item NUMBER, value) of a JSON array; items count from 1. Raises `UserError` for other JSON."""
    with open_file(path) as file:
        content = file.read()
    try:
        items = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        is_several = content.lstrip()[:1] == b"{" and "Extra data" in str(error)
        advice = f" One object a line is read: jq -c . {path.name} > {path.stem}.jsonl" if is_several else ""
        raise UserError(f"{path}: is neither JSON nor JSON lines: {quote(str(error))}.{advice}") from None
    if not isinstance(items, list):
        found = quote(list_fields(list(items)), limit=160) if isinstance(items, dict) else quote(str(items), limit=80)
        what = f"one object ({found})" if isinstance(items, dict) else found
        lists = [key for key, value in items.items() if isinstance(value, list)] if isinstance(items, dict) else []
        advice = f" Take the array out of it: jq '.{quote(lists[0])}' {path.name}" if lists else ""
        raise UserError(f"{path}: holds {what}; wanted an array of objects, or an object on each line.{advice}")
    for number, item in enumerate(items, start=1):
        yield f"{path}: item {number}", item


def is_json_array(path: Path) -> bool:
    """Whether a .json file is read whole: it does not hold a JSON value on each of several lines."""
    with open_file(path) as file:
        lines = [line for line in itertools.islice(file, 1000) if line.strip()][:2]
    try:
        json.loads(lines[0].decode("utf-8-sig"))
    except (ValueError, RecursionError, IndexError):
        return True
    return len(lines) == 1
