"""Records, such as conversations, in blocks that another process can read: JSON lines, arrays, tables and Parquet.

A record is a JSON value with its place: FILE:LINE, or FILE: item or row NUMBER. What is wrong with one stands in its
place as a `UserError`.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.readers.json_lines import SUFFIXES
from data_pipelines.readers.parquet import open_parquet
from data_pipelines.readers.paths import find_files
from data_pipelines.readers.tables import TABLE_SUFFIXES, is_json_array, iter_rows
from data_pipelines.readers.text_files import COMPRESSED, open_file
from gptjax.core.errors import UserError
from gptjax.tokenization.messages import SKIPPED, InvalidRecord

ARRAY_SUFFIXES = tuple(".json" + end for end in COMPRESSED)
PARQUET_SUFFIX = ".parquet"
BLOCK_BYTES = 2**20
NOT_JSON = f"{SKIPPED}not JSON"
ITEMS = 1000
"""Items of an array in a block, and at least as many rows of Parquet."""
RANGES = 16
"""Blocks of a row group at most. Each reads the group from its beginning."""
_KNOWN = ".jsonl, .json, .csv, .tsv (also .gz, .zst) or .parquet"

Record = tuple[str, Any]
"""A place and a JSON value, or the `UserError` that says what is wrong there."""


class RecordBlock(NamedTuple):
    """Neighbouring records of about `size` bytes. `read` can be pickled."""

    size: int
    read: Callable[[], Iterator[Record]]


def find_record_files(spec: str) -> tuple[Path, ...]:
    """A file, the files of known formats in a directory, or the files of a pattern."""
    is_known = lambda name: name.lower().endswith((*SUFFIXES, *ARRAY_SUFFIXES, *TABLE_SUFFIXES, PARQUET_SUFFIX))
    return find_files(spec, is_known, known=_KNOWN, otherwise=f" Wanted {_KNOWN}.")


def iter_blocks(path: Path, *, fields: tuple[str, ...], block_bytes: int = BLOCK_BYTES) -> Iterator[RecordBlock]:
    """Yield the blocks of a file, the same ones each time. Of Parquet only the columns `fields` are read."""
    name = path.name.lower()
    if name.endswith(PARQUET_SUFFIX):
        return _iter_row_groups(path, fields)
    if name.endswith(TABLE_SUFFIXES):
        return _iter_table(path)
    if name.endswith(ARRAY_SUFFIXES) and is_json_array(path):
        return _iter_items(path)
    return _iter_lines(path, block_bytes)


def _iter_lines(path: Path, block_bytes: int) -> Iterator[RecordBlock]:
    with open_file(path) as file:
        number = 1
        while lines := file.readlines(block_bytes):
            yield RecordBlock(sum(map(len, lines)), partial(_parse_lines, path, number, lines))
            number += len(lines)


def _parse_lines(path: Path, first: int, lines: list[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=first):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield where, InvalidRecord(f"{where}: not a line of JSON in UTF-8: {error}.", NOT_JSON)


def _iter_table(path: Path) -> Iterator[RecordBlock]:
    rows = iter_rows(path)
    while block := list(itertools.islice(rows, ITEMS)):
        yield RecordBlock(sum(len(cell or "") for _, row in block for cell in row.values()), partial(iter, block))


def _iter_items(path: Path) -> Iterator[RecordBlock]:
    with open_file(path) as file:
        content = file.read()
    try:
        items = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is neither JSON nor JSON lines: {error}.") from None
    if not isinstance(items, list):
        keys = ", ".join(map(repr, list(items)[:5])) if isinstance(items, dict) else str(items)[:80]
        raise UserError(f"{path}: holds one object ({keys}), wanted an array of records. Take the array out of it.")
    size = len(content) // max(1, len(items))
    for first in range(0, len(items), ITEMS):
        block = items[first : first + ITEMS]
        yield RecordBlock(size * len(block), partial(_number_items, path, first, block))


def _number_items(path: Path, first: int, items: list[Any]) -> Iterator[Record]:
    for number, item in enumerate(items, start=first + 1):
        yield f"{path}: item {number}", item


def _iter_row_groups(path: Path, fields: tuple[str, ...]) -> Iterator[RecordBlock]:
    row = 0
    with open_parquet(path) as file:
        columns = tuple(name for name in file.schema_arrow.names if name in fields)
        if not columns:
            found = ", ".join(map(repr, file.schema_arrow.names))
            raise UserError(f"{path}: has the columns {found}; wanted some of {', '.join(fields)}.")
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            step = max(ITEMS, -(-group.num_rows // RANGES))
            for begin in range(0, group.num_rows, step):
                end = min(begin + step, group.num_rows)
                size = group.total_byte_size * (end - begin) // group.num_rows
                yield RecordBlock(size, partial(_read_rows, path, number, row, begin, end, columns))
            row += group.num_rows


def _read_rows(path: Path, group: int, row: int, begin: int, end: int, columns: tuple[str, ...]) -> Iterator[Record]:
    """Rows begin to end of a group, before which the file has `row` rows."""
    with open_parquet(path) as file:
        place = 0
        for batch in file.iter_batches(64, row_groups=[group], columns=list(columns), use_threads=False):
            wanted = batch.slice(max(0, begin - place), max(0, end - max(begin, place)))
            for number, record in enumerate(wanted.to_pylist(), start=row + max(begin, place) + 1):
                yield f"{path}: row {number}", record
            place += len(batch)
            if place >= end:
                return
