"""Tables with a header (.csv, .tsv) and JSON arrays of objects (.json): records, as JSON lines are."""

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Document, ReadContext, encode_utf8
from data_pipelines.readers.fields import describe_fields, find_text
from data_pipelines.readers.text_files import COMPRESSED, open_file
from gptjax.core.errors import UserError, quote

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = tuple(kind + end for kind in DELIMITERS for end in COMPRESSED)
JSON_SUFFIX = ".json"
CELL_BYTES = 2**31 - 1
"""Largest cell; Python's default of 128 kB is less than many texts."""


def read_table(path: Path, context: ReadContext) -> Iterator[Document]:
    """Yield the text of each row, in the column that the context names."""
    yield from _read_texts(iter_rows(path), context)


def read_json_array(path: Path, context: ReadContext) -> Iterator[Document]:
    """Yield the text of each object of an array."""
    yield from _read_texts(iter_array(path), context)


def _read_texts(records: Iterator[tuple[str, dict[str, Any]]], context: ReadContext) -> Iterator[Document]:
    for where, record in records:
        text = find_text(record, context.text_field)
        if text is None:
            known = quote(describe_fields(record))
            context.skip_record(
                f'{where}: wanted text in "{context.text_field}"; there is {known} (--text-field chooses one).'
            )
        else:
            yield encode_utf8(text, context, where=where)


def iter_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (FILE: row NUMBER, cells by the names of the header); rows count from 1 behind the header."""
    csv.field_size_limit(CELL_BYTES)
    delimiter = next(mark for kind, mark in DELIMITERS.items() if kind in path.name.lower()[-len(".csv.zst") :])
    with open_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        try:
            rows = csv.DictReader(text, delimiter=delimiter, restval="")
            if not rows.fieldnames or len(set(rows.fieldnames)) < len(rows.fieldnames):
                raise UserError(f"{path}: its first line is no header of different names.")
            for number, row in enumerate(rows, start=1):
                yield f"{path}: row {number}", {name: cell for name, cell in row.items() if name is not None}
        except csv.Error as error:
            raise UserError(f"{path}: is no table: {error}.") from None
        finally:
            text.detach()


def iter_array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (FILE: item NUMBER, object) of a JSON array of objects; items count from 1."""
    with open_file(path) as file:
        try:
            items = json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is neither JSON nor JSON lines: {quote(str(error))}.") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        found = "an object" if isinstance(items, dict) else "no array of objects"
        raise UserError(f"{path}: holds {found}; wanted an array of objects, or an object on each line.")
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
    return len(lines) == 1 and not lines[0].lstrip(b"\xef\xbb\xbf \t").startswith(b"{")
