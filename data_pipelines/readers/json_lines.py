"""JSON lines, plain, gzipped or compressed by Zstandard: as documents of text, or as records with their places."""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Block, Chunk, Document, ReadContext, encode_utf8, validate_utf8
from data_pipelines.readers.fields import describe_fields, find_text
from data_pipelines.readers.paths import find_files
from data_pipelines.readers.tables import (
    JSON_SUFFIX,
    TABLE_SUFFIXES,
    is_json_array,
    iter_array,
    iter_rows,
    read_json_array,
)
from data_pipelines.readers.text_files import COMPRESSED, open_file
from gptjax.core.errors import UserError, quote

# C4 and others publish JSON lines as .json.gz; a plain .json is more often a single object of many lines.
SUFFIXES = (*(kind + end for kind in (".jsonl", ".ndjson") for end in COMPRESSED), ".json.gz", ".json.zst")


def read_json(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the texts of a .json file: an array of objects, or JSON lines under that name."""
    yield from (read_json_array if is_json_array(path) else read_json_lines)(path, context)


def read_json_lines(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the text of the object in every line, in blocks of whole lines; blank lines are no records."""
    with open_file(path) as file:
        number = 1
        while lines := file.readlines(context.block_bytes):
            yield from Block(sum(map(len, lines)), partial(_read_texts, path, number, lines)).chunks(context)
            number += len(lines)


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
    if (text := find_text(record, context.text_field)) is None:
        keys = "" if context.text_field in record else quote(describe_fields(record))
        found = f"one with {keys} (--text-field chooses another)" if keys else quote(str(record), limit=80)
        return context.skip_record(f'{where}: wanted an object with a string "{context.text_field}", got {found}.')
    return encode_utf8(text, context, where=where)


def parse_object(line: bytes, *, where: str) -> dict[str, Any]:
    """Parse one JSON object; raises `UserError` for anything else."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON in UTF-8: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: wanted a JSON object, got {quote(str(value), limit=80)}.")
    return value


def iter_lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield (FILE:NUMBER, content) of every line that is not blank; numbers count from 1.

    The objects of a .json array and the rows of a table come as lines of JSON.
    """
    for path in paths:
        name = path.name.lower()
        if name.endswith(TABLE_SUFFIXES) or (name.endswith(JSON_SUFFIX) and is_json_array(path)):
            records = iter_rows(path) if name.endswith(TABLE_SUFFIXES) else iter_array(path)
            yield from ((where, json.dumps(record).encode()) for where, record in records)
            continue
        with open_file(path) as file:
            for number, content in enumerate(file, start=1):
                if content.strip():
                    yield f"{path}:{number}", content


def find_json_lines(spec: str) -> tuple[Path, ...]:
    """A file, the JSON lines files and tables in a directory, or the files of a pattern.

    Where names tell splits, only those of training are taken.
    """
    known = ".jsonl (also .gz, .zst), .csv or .tsv"
    is_known = lambda name: name.lower().endswith((*SUFFIXES, *TABLE_SUFFIXES))
    return find_files(spec, is_known, known=known, otherwise=f" Wanted {known}.")
