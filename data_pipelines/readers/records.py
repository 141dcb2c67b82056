"""Records, such as conversations, in blocks that another process can read: JSON, tables, Parquet and Arrow.

A record is a JSON value with its place: FILE:LINE, or FILE: item or row NUMBER. What is wrong with one stands in its
place as a `UserError`.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.readers.fields import plain_name
from data_pipelines.readers.files import suggest_source
from data_pipelines.readers.formats import array_records, arrow_files
from data_pipelines.readers.formats.arrow_values import iter_records
from data_pipelines.readers.formats.json_lines import JSON_SUFFIXES, SUFFIXES, check_lines, explain_line
from data_pipelines.readers.formats.parquet import choose_columns, open_parquet
from data_pipelines.readers.formats.tables import TABLE_SUFFIXES, is_json_array, iter_array, iter_rows
from data_pipelines.readers.formats.text_files import LOOKED_BYTES, open_file
from data_pipelines.readers.paths import BESIDE, DEAD, EXPLAIN_DEAD, FoundFiles, find_files, keep_data, tell_once
from gptjax.core.errors import UserError, count_of, quote
from gptjax.core.json_names import RepeatedName, explain_names, parse_fields, parse_record
from gptjax.tokenization.messages import SKIPPED, InvalidRecord

PARQUET_SUFFIX = ".parquet"
BLOCK_BYTES = 2**20
NOT_JSON = f"{SKIPPED}not JSON"
REPEATED = f"{SKIPPED}a name stands twice in one object, with different values"
ITEMS = 1000
"""Items of an array in a block at most, and rows of Parquet at least."""
RANGES = 16
"""Blocks of a row group at most. Each reads the group from its beginning."""
KNOWN = ".jsonl, .json, .csv, .tsv (also .gz, .zst), .parquet, .arrow or .array_record"

NamedRecord = tuple[str, Any]
"""A place and a JSON value, or the `UserError` that says what is wrong there."""


class RecordBlock(NamedTuple):
    """Neighbouring records of about `size` bytes. `read` can be pickled."""

    size: int
    read: Callable[[], Iterator[NamedRecord]]


def holds_records(name: str) -> bool:
    """Whether a file of that name holds records that are read."""
    endings = (*SUFFIXES, *JSON_SUFFIXES, *TABLE_SUFFIXES, PARQUET_SUFFIX, *arrow_files.SUFFIXES)
    return array_records.drop_number(name).endswith((*endings, *array_records.SUFFIXES))


def find_record_files(spec: str) -> FoundFiles:
    """A file, the files of known formats in a directory, or the files of a pattern."""
    is_known, _, beside = keep_data(spec, holds_records)
    if beside:
        tell_once(f"note: source {spec}: {count_of(len(beside), BESIDE)}; the first: {quote(beside[0])}")
    suggested = suggest_source(spec)
    otherwise = f" Wanted {KNOWN}, hf:OWNER/NAME or tfds:NAME.{f' Or use {suggested}.' if suggested else ''}"
    return find_files(spec, is_known, known=KNOWN, otherwise=otherwise)


def block_dead(links: Sequence[Path]) -> RecordBlock:
    """A block of links to nothing, each a record that is wrong."""
    wrong = [(str(path), InvalidRecord(f"{path}: {EXPLAIN_DEAD}", DEAD)) for path in links]
    return RecordBlock(0, partial(iter, wrong))


def iter_blocks(path: Path, *, fields: tuple[str, ...], block_bytes: int = BLOCK_BYTES) -> Iterator[RecordBlock]:
    """Yield the blocks of a file, the same ones each time. Only the fields, or columns, `fields` are read.

    Of JSON all fields are there, but for unread ones in which a name has several values.
    """
    name = path.name.lower()
    if name.endswith(PARQUET_SUFFIX):
        return _iter_row_groups(path, fields)
    if name.endswith(arrow_files.SUFFIXES):
        return _iter_given(arrow_files.iter_arrow_rows(path, fields), block_bytes)
    if array_records.drop_number(name).endswith(array_records.SUFFIXES):
        return _iter_array_records(path, fields, block_bytes)
    if name.endswith(TABLE_SUFFIXES):
        return _iter_given(_check_cells(iter_rows(path)), block_bytes)
    if name.endswith(JSON_SUFFIXES) and is_json_array(path):
        return _iter_given(_check_items(iter_array(path), fields), block_bytes)
    return _iter_lines(path, fields, block_bytes)


def _iter_lines(path: Path, fields: tuple[str, ...], block_bytes: int) -> Iterator[RecordBlock]:
    check_lines(path)
    with open_file(path) as file:
        if not path.name.lower().endswith(SUFFIXES) and not _begins_as_json(file.peek(LOOKED_BYTES)):
            wanted = f"wanted records: {KNOWN}, as --help shows"
            advice = _suggest_json(path) or "Text is for python -m data_pipelines.prepare."
            raise UserError(f"{path}: is plain text, {wanted}. {advice}")
        number = 1
        while lines := file.readlines(block_bytes):
            yield RecordBlock(sum(map(len, lines)), partial(_parse_lines, f"{path}:", number, lines, fields))
            number += len(lines)


def _begins_as_json(start: bytes) -> bool:
    """Whether a file of any name may hold records, by its first bytes.

    It is empty, or one of its first lines is JSON, or begins an array or an object. A log may begin with `[12:01]`.
    """
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    if text[:1] not in (b"{", b"[", b""):
        return False
    first, *others = text.splitlines() or [b""]
    begins = first.rstrip() in (b"", b"[", b"{", b"[{") or first.rstrip().endswith((b",", b"{", b"[", b"}"))
    return begins or not (others or start.endswith(b"\n")) or any(map(_is_container, [first, *others]))


def _is_container(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _suggest_json(path: Path) -> str:
    """The line for a shell that writes the records of a YAML file as JSON; empty for other files."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return ""
    code = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout, default=str)"
    given, written = (shlex.quote(str(name)) for name in (path, path.with_suffix(".json")))
    return f"This makes JSON of it: python -c '{code}' < {given} > {written}"


def _iter_array_records(path: Path, fields: tuple[str, ...], block_bytes: int) -> Iterator[RecordBlock]:
    for number, contents in array_records.iter_contents(path, block_bytes=block_bytes):
        read = partial(_parse_lines, f"{path}: record ", number, contents, fields)
        yield RecordBlock(sum(map(len, contents)), read)


def _parse_lines(place: str, first: int, lines: list[bytes], fields: tuple[str, ...]) -> Iterator[NamedRecord]:
    for number, line in enumerate(lines, start=first):
        if line.strip():
            where = f"{place}{number}"
            try:
                yield where, parse_record(line.decode("utf-8-sig"))
            except RepeatedName:
                yield where, _check_names(where, parse_fields(line.decode("utf-8-sig")), fields)
            except (ValueError, RecursionError) as error:
                yield where, InvalidRecord(f"{where}: {explain_line(line, error, where=where)}", NOT_JSON)


def _check_names(where: str, record: Any, fields: tuple[str, ...]) -> Any:
    """The record without fields in which a name has several values; an `InvalidRecord` if such a field is read."""
    if (repeated := explain_names(record)) is None:
        return record
    if isinstance(record, dict):
        found = {name: explain_names({name: value}) for name, value in record.items()}
        repeated = next((found[name] for name in found if found[name] and {name, plain_name(name)} & {*fields}), None)
        record = {name: value for name, value in record.items() if found[name] is None}
    return record if repeated is None else InvalidRecord(f"{where}: {repeated}", REPEATED)


def _iter_given(records: Iterator[NamedRecord], block_bytes: int) -> Iterator[RecordBlock]:
    """Blocks of records that this process has parsed."""
    block, size = list[NamedRecord](), 0
    for named in records:
        block.append(named)
        size += len(str(named[1]))
        if size >= block_bytes or len(block) == ITEMS:
            yield RecordBlock(size, partial(iter, block))
            block, size = [], 0
    if block:
        yield RecordBlock(size, partial(iter, block))


def _check_items(items: Iterator[NamedRecord], fields: tuple[str, ...]) -> Iterator[NamedRecord]:
    """Items of an array, with a `UserError` for one in which a name that is read has several values."""
    for where, item in items:
        yield where, _check_names(where, item, fields)


def _check_cells(rows: Iterator[NamedRecord]) -> Iterator[NamedRecord]:
    """Rows of a table, with a `UserError` for one that is not UTF-8."""
    for where, row in rows:
        try:
            "".join(row.values() if isinstance(row, dict) else ()).encode()
        except UnicodeEncodeError:
            advice = "A file of Windows is converted by iconv -f WINDOWS-1252 -t UTF-8"
            yield where, InvalidRecord(f"{where}: is not UTF-8. {advice}.", f"{SKIPPED}not UTF-8")
        else:
            yield where, row


def _iter_row_groups(path: Path, fields: tuple[str, ...]) -> Iterator[RecordBlock]:
    row = 0
    with open_parquet(path) as file:
        columns = tuple(choose_columns(path, file.schema_arrow.names, fields, batches=partial(file.iter_batches, 1)))
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            step = max(ITEMS, -(-group.num_rows // RANGES))
            for begin in range(0, group.num_rows, step):
                end = min(begin + step, group.num_rows)
                size = group.total_byte_size * (end - begin) // group.num_rows
                yield RecordBlock(size, partial(_read_rows, path, number, row, begin, end, columns))
            row += group.num_rows


def _read_rows(
    path: Path, group: int, row: int, begin: int, end: int, columns: tuple[str, ...]
) -> Iterator[NamedRecord]:
    """Rows begin to end of a group, before which the file has `row` rows."""
    with open_parquet(path) as file:
        place = 0
        for batch in file.iter_batches(64, row_groups=[group], columns=list(columns), use_threads=False):
            wanted = batch.slice(max(0, begin - place), max(0, end - max(begin, place)))
            yield from iter_records(wanted, str(path), row + max(begin, place) + 1)
            place += len(batch)
            if place >= end:
                return
