"""Tables with a header (.csv, .tsv) and JSON arrays of objects (.json): records, as JSON lines are."""

import csv
import io
import itertools
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Document, ReadContext, encode_utf8, validate_utf8
from data_pipelines.readers.fields import (
    LONGEST_NAME,
    describe_fields,
    find_text,
    is_message,
    list_fields,
    suggest_command,
    suggest_for_list,
)
from data_pipelines.readers.formats.text_files import COMPRESSED, is_before_object, open_file, write_edit, write_filter
from data_pipelines.readers.paths import tell_once
from gptjax.core.errors import UserError, count_of, quote
from gptjax.core.json_names import explain_names, parse_fields

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = tuple(kind + end for kind in DELIMITERS for end in COMPRESSED)
CELL_BYTES = 2**31 - 1
"""Largest cell; Python's default of 128 kB is less than many texts."""
LOOKED_BYTES = 2**18
"""How much of a table is looked at before it is read."""
TORN = "a cell with line ends is read only in quotes, from a table that has one near its start."
"""Why a line may be no row in a table whose first lines are all rows."""
LACKING = "records had not all fields of --text-field and were read without"
MARKS = (",", "\t", ";", "|")
"""What may stand between the cells of a table, whatever its name says."""


_EXCEL_MARK = re.compile(rb"(?:\xef\xbb\xbf)?sep=([,;|\t])\r?\n")
"""A line before the header, by which Excel knows the mark."""


def read_table(path: Path, context: ReadContext) -> Iterator[Document]:
    """Yield the text of each row, in the column that the context names."""
    field, problem = context.text_field, ""
    for where, row in iter_rows(path):
        if isinstance(row, UserError):
            context.skip_record(str(row))
            continue
        field = field if field in row else field.strip()  # of `id, text` the name has no blank
        if (text := find_text(row, field)) is not None:
            # Bytes that are not UTF-8 are still in the cell, as surrogates.
            yield validate_utf8(text.encode("utf-8", "surrogateescape"), context, where=where)
        else:
            problem = problem or _explain_no_column(path, row, field)  # the same for all rows
            context.skip_record(f"{where}: {problem}")


def _explain_no_column(path: Path, row: Mapping[str, Any], field: str) -> str:
    wanted = f'wanted the column "{field}"; its first line names {quote(describe_fields(row))}'
    return f"{wanted} (--text-field chooses one).{_suggest_header(path, row) or suggest_command(row)}"


def _suggest_header(path: Path, names: Mapping[str, Any]) -> str:
    """What to do where the first line does not seem to be a header: it holds numbers, or long texts."""
    if not any(len(name) > LONGEST_NAME or name.strip().isdigit() for name in names):
        return ""
    with open_file(path) as file:
        mark, start, line = _find_mark(file, path)
    first = _decode_line(start).rstrip("\r")
    has_blanks = _has_blanks(first, mark)
    cells = _unquote(first, mark, has_blanks=has_blanks) or [*names]  # with the empty ones, which have no name
    longest = max(range(len(cells)), key=lambda number: (len(cells[number]), number))
    header = ["text" if number == longest else f"column{number + 1}" for number in range(len(cells))]
    edit = _write_header(path, header, mark=mark, line=line, has_blanks=has_blanks)
    return f" If that line is data, write names above it: {edit}"


def write_header(path: Path, names: Sequence[str]) -> str:
    """The line for a shell that writes names above a table without them."""
    with open_file(path) as file:
        mark, start, line = _find_mark(file, path)
    return _write_header(path, names, mark=mark, line=line, has_blanks=_has_blanks(_decode_line(start), mark))


def _write_header(path: Path, names: Sequence[str], *, mark: str, line: int, has_blanks: bool) -> str:
    edit = f"sed -i '{line}i {(mark + ' ' * has_blanks).join(names)}'".replace("\t", "\\t")
    return write_edit(edit, path)


def read_json_array(path: Path, context: ReadContext) -> Iterator[Document]:
    """Yield the text of each object of an array."""
    for number, (where, record) in enumerate(iter_array(path)):
        if number == 0 and not isinstance(record, dict):
            found = quote(str(record), limit=40)
            as_text = " Make objects of them: " + write_filter("jq -c '.[] | {text: .}'", path)
            advice = suggest_for_list(record) or (as_text if isinstance(record, str) else " Wanted such as [{…}, {…}].")
            raise UserError(f"{path}: holds no array of objects; its first item is {found}.{advice}")
        absent: list[str] = []
        text = find_text(record, context.text_field, absent=absent) if isinstance(record, dict) else None
        if text is not None:
            if absent:
                report_absent(absent, record, context, where=where)
            yield encode_utf8(text, context, where=where)
        elif (repeated := explain_names(record)) is not None:
            context.skip_record(f"{where}: {repeated}")
        else:
            known = quote(describe_fields(record) if isinstance(record, dict) else str(record), limit=160)
            wanted = f'wanted an object with text in "{context.text_field}"'
            advice = f"(--text-field chooses one).{suggest_command(record if isinstance(record, dict) else ())}"
            context.skip_record(f"{where}: {wanted}; there is {known} {advice}")


def report_absent(absent: list[str], record: Mapping[str, Any], context: ReadContext, *, where: str) -> None:
    """Report fields that a record lacks beside one with text, for a name may be misspelled."""
    names = quote(list_fields([f'"{name}"' for name in absent]))
    context.report_problem(LACKING, f"{where}: has no {names}; it has {quote(describe_fields(record))}.")


def iter_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Yield (FILE: row NUMBER, cells by the names of the header); rows count from 1 behind the header.

    A row that is wrong is a `UserError` in its place. Bytes that are not UTF-8 are surrogates.
    """
    csv.field_size_limit(CELL_BYTES)
    with open_file(path) as file:
        delimiter, start, _ = _find_mark(file, path)
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        split = partial(_split_lines if delimiter == "\t" and _is_row_a_line(start) else _split_quoted, path)
        rows = split(text, start, delimiter)
        try:
            header = next(rows, None)
            names = header if isinstance(header, list) else []
            named = [name for name in names if name]
            if not named:
                raise UserError(f"{path}: is empty, or its first line is no header: wanted the names of its columns.")
            if twice := [name for name, times in Counter(named).items() if times > 1]:
                raise UserError(f"{path}: its header names {quote(list_fields(twice))} twice. Rename one of them.")
            for number, row in enumerate(rows, start=1):
                yield f"{path}: row {number}", _name_cells(f"{path}: row {number}", names, row, delimiter)
        finally:
            text.detach()


def _find_mark(file: io.BufferedReader, path: Path) -> tuple[str, bytes, int]:
    """(what separates the cells, the bytes from the header on, which line that is); moves the file to the header."""
    start = file.peek(LOOKED_BYTES)
    if named := _EXCEL_MARK.match(start):
        file.read(named.end())
        return named[1].decode(), start[named.end() :], 2
    return find_delimiter(path, start), start, 1


def _decode_line(start: bytes) -> str:
    """The first line, as far as it is looked at."""
    return start.partition(b"\n")[0].decode("utf-8", "replace")


def _has_blanks(header: str, mark: str) -> bool:
    """Whether a blank is behind every mark: `id, text`."""
    return 0 < header.count(mark) == header.count(f"{mark} ")


def _is_row_a_line(start: bytes) -> bool:
    """Whether no line has more tabs than the header, which has some, and no quoted cell has a line end."""
    lines = start.splitlines()
    header, *others = [line for line in (lines[:-1] or lines) if line] or [b""]
    width, counts = header.count(b"\t"), {line.count(b"\t") for line in others}
    if width == 0 or max(counts, default=0) > width:
        return False
    return counts <= {width} or all(_unquote(line.decode("utf-8", "replace"), "\t") for line in others if b'"' in line)


def _split_lines(path: Path, text: io.TextIOWrapper, start: bytes, mark: str) -> Iterator[list[str] | str]:
    """The cells of each line, or what is wrong with it: a cell may have line ends, which tear its row.

    A line with fewer cells than the header lacks the last ones. It is torn if it has a single one, or if a line beside
    it has too few, too.
    """
    width, before = 0, None  # the line before, if it has too few cells; and whether it is torn
    for number, cells in _iter_cells(text, start, mark):
        width = width or len(cells or ())
        is_short = cells is not None and len(cells) < width
        if before is not None:
            yield _judge_short(path, *before[:2], before[2] or is_short or cells is None, width=width)
        if is_short and cells is not None:
            before = number, cells, before is not None
            continue
        before = None
        yield f" (line {number}): its quotes do not fit: {TORN}" if cells is None else cells
    if before is not None:
        yield _judge_short(path, *before, width=width)


def _judge_short(path: Path, number: int, cells: list[str], is_torn: bool, *, width: int) -> list[str] | str:
    """The cells of a line with too few, or what is wrong with it."""
    if is_torn or len(cells) == 1:
        return f" (line {number}): has {count_of(len(cells), 'cells')}, the header {width}: {TORN}"
    tell_once(f"note: {path}: lines with fewer cells than the header's {width} are read with empty last cells")
    return cells


def _iter_cells(text: io.TextIOWrapper, start: bytes, mark: str) -> Iterator[tuple[int, list[str] | None]]:
    """(number, cells) of each line that is not empty; None for cells whose quotes do not fit.

    A quote is a letter like others, unless all cells that begin with one end with one.
    """
    looked = [line.decode("utf-8", "replace") for line in start.splitlines()[1:-1] if b'"' in line]
    quoted = all(_unquote(line, mark) for line in looked)
    has_quoted = quoted and any(cell.startswith('"') for line in looked for cell in line.split(mark))
    is_header = True
    for number, line in enumerate(text, start=1):
        if line := line.rstrip("\r\n"):
            cells = _unquote(line, mark) if '"' in line and (quoted or is_header) else line.split(mark)
            yield number, cells if cells or (has_quoted and not is_header) else line.split(mark)
            is_header = False


def _unquote(line: str, mark: str, *, has_blanks: bool = False) -> list[str] | None:
    """The cells of a line by the rules of .csv; None if its quotes do not fit."""
    try:
        return next(csv.reader([line], delimiter=mark, strict=True, skipinitialspace=has_blanks))
    except csv.Error:
        return None


def _split_quoted(path: Path, text: io.TextIOWrapper, start: bytes, mark: str) -> Iterator[list[str] | str]:
    """The cells of each row by the rules of .csv, or what is wrong with it. Cells in quotes may have line ends."""
    rows = csv.reader(text, delimiter=mark, strict=True, skipinitialspace=_has_blanks(_decode_line(start), mark))
    number, told = 0, mark != "\t"
    while True:
        before = rows.line_num
        try:
            row = next(rows, None)
        except csv.Error as error:
            lines = f"line {before + 1}" if rows.line_num <= before + 1 else f"lines {before + 1} to {rows.line_num}"
            row = f' ({lines}): its quotes do not fit: {error}. A quote inside of a cell is written twice, not as \\".'
        if row is None:
            return
        if row:
            if not told and number > 0 and rows.line_num > before + 1:
                lines = f"row {number} is lines {before + 1} to {rows.line_num}"
                tell_once(f"note: {path}: {lines}, for a quoted cell has line ends")
                told = True
            number += 1
            yield row


def _name_cells(where: str, names: list[str], row: list[str] | str, mark: str) -> dict[str, Any] | UserError:
    """The cells by name, empty ones where the row is shorter than the header."""
    if isinstance(row, str):
        return UserError(f"{where}{row}")
    if len(row) > len(names):
        header = f"{len(names)} ({quote(list_fields(names), limit=80)})"
        advice = f"A text with {mark!r} in it needs double quotes around it."
        return UserError(f"{where}: has {len(row)} cells, the header {header}. {advice}")
    cells = zip(names, row + [""] * (len(names) - len(row)), strict=True)
    return {name: cell for name, cell in cells if name}  # Excel and pandas leave columns without a name


def find_delimiter(path: Path, start: bytes) -> str:
    """What separates the cells: the mark of the file's kind or, if the header lacks it, another that the header has."""
    header = _decode_line(start)
    usual = next(mark for kind, mark in DELIMITERS.items() if kind in path.name.lower()[-len(".csv.zst") :])
    return usual if usual in header else max(MARKS, key=lambda mark: (header.count(mark), mark == usual))


def iter_array(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (FILE: item NUMBER, value) of a JSON array, as of `parse_fields`; items count from 1.

    Raises `UserError` for other JSON.
    """
    with open_file(path) as file:
        content = file.read()
    try:
        items = parse_fields(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        is_several = is_before_object(error)
        advice = f" One object a line is read: {write_filter('jq -c .', path)}" if is_several else ""
        if not is_several and re.search(rb",\s*[\]}]|^\s*(//|/\*|#)", content, re.MULTILINE):
            advice = " JSON has no comments, and no comma before ] or }: remove them."
        raise UserError(f"{path}: is neither JSON nor JSON lines: {quote(str(error))}.{advice}") from None
    if not isinstance(items, list):
        found = quote(list_fields(list(items)), limit=160) if isinstance(items, dict) else quote(str(items), limit=80)
        what = f"one object ({found})" if isinstance(items, dict) else found
        advice = _suggest_array(items, path) if isinstance(items, dict) else ""
        raise UserError(f"{path}: holds {what}; wanted an array of objects, or an object on each line.{advice}")
    for number, item in enumerate(items, start=1):
        yield f"{path}: item {number}", item


def _suggest_array(items: dict[str, Any], path: Path) -> str:
    """The command that takes records out of one object: an array in it, an object for each record, or columns."""
    lists = [key for key, value in items.items() if isinstance(value, list)]
    arrays = [key for key in lists if items[key] and isinstance(items[key][0], dict) and key.isidentifier()]
    if arrays and is_message(items[arrays[0]][0]):
        return f" One conversation a line is read: {write_filter('jq -c .', path)}"
    if arrays:
        return " Take the array out of it: " + write_filter(f"jq -c '.{arrays[0]}[]'", path)
    if lists or (items and all(isinstance(value, dict) and "0" in value for value in items.values())):
        written = path.with_name(f"{path.name[: path.name.lower().rindex('.json')]}.jsonl")
        names = [json.dumps(str(name), ensure_ascii=False) for name in (path, written)]
        write = f'import pandas; pandas.read_json({names[0]}).to_json({names[1]}, orient="records", lines=True)'
        return f" It holds columns; this writes rows: python -c {shlex.quote(write)}"
    if items and all(isinstance(value, dict) for value in items.values()):
        return " Write each object in a line: " + write_filter("jq -c '.[]'", path)
    return ""


def is_json_array(path: Path) -> bool:
    """Whether a .json file is read whole: it does not hold a JSON value on each of several lines."""
    with open_file(path) as file:
        lines = [line for line in itertools.islice(file, 1000) if line.strip()][:2]
    try:
        json.loads(lines[0].decode("utf-8-sig"))
    except (ValueError, RecursionError, IndexError):
        return True
    return len(lines) == 1
