"""Local files as a source: one file, a directory read recursively, or a pattern; each format has its reader."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Chunk, ReadContext
from data_pipelines.readers.foreign_files import MARKUP
from data_pipelines.readers.formats import array_records, arrow_files, json_lines
from data_pipelines.readers.formats.parquet import read_parquet
from data_pipelines.readers.formats.tables import TABLE_SUFFIXES, read_table
from data_pipelines.readers.formats.text_files import COMPRESSED, open_file, read_text
from data_pipelines.readers.paths import BESIDE, DEAD, EXPLAIN_DEAD, find_files, identify_files, keep_data
from data_pipelines.recipes import RECIPES
from gptjax.core.errors import UserError
from gptjax.core.unicode import replace_surrogates

LEFT_OUT = "files of other formats in the directory not read (a quoted pattern reads those that are text)"
UNCUT = "files of records are not cut by --separator, which is for text files"
AS_TEXT = "files of an unknown format read as plain text"
AS_MARKUP = "files of HTML or notebooks read as they stand, with their marks; pandoc or nbconvert makes plain text"
AS_LINES = "files of an unknown format read as JSON lines, as their first lines are"
SHORTEST = 4
"""Letters of a word that is taken for the beginning of a source's name."""

DocumentReader = Callable[[Path, ReadContext], Iterator[Chunk]]
"""Yields the documents of one file in order, or blocks of them. A new one is added to `READERS` with its suffixes."""
_TEXT = tuple(kind + end for kind in (".txt", ".md", ".markdown", ".rst") for end in COMPRESSED)
READERS: tuple[tuple[tuple[str, ...], DocumentReader], ...] = (
    (_TEXT, read_text),
    (json_lines.SUFFIXES, json_lines.read_json_lines),
    (json_lines.JSON_SUFFIXES, json_lines.read_json),
    (TABLE_SUFFIXES, read_table),
    ((".parquet",), read_parquet),
    (arrow_files.SUFFIXES, arrow_files.read_arrow),
    (array_records.SUFFIXES, array_records.read_array_records),
)
READERS_VERSION = 4
"""Increase it when files of `_CHANGED` are read differently: data that were prepared from them are made again."""
_CHANGED = (read_table, read_parquet, arrow_files.read_arrow, None)
"""The readers that have changed; None reads files of an unknown format, as text or as records."""
_KNOWN = ".txt, .md, .rst, .jsonl, .csv, .tsv (also .gz, .zst), .parquet, .arrow or .array_record"


def find_reader(name: str) -> DocumentReader | None:
    """The reader of a file of that name; None for an unknown format."""
    plain = array_records.drop_number(name)
    return next((reader for suffixes, reader in READERS if plain.endswith(suffixes)), None)


def identify_readers(names: Iterable[str]) -> dict[str, int]:
    """What makes data of the named files others than those of earlier readers; nothing for most formats."""
    return {"readers": READERS_VERSION} if any(find_reader(name) in _CHANGED for name in names) else {}


def is_text_file(name: str) -> bool:
    """Whether a file of that name is read as text, not as records."""
    return find_reader(name) in (read_text, None)


def open_files(spec: str) -> "Files":
    """Open the files that `spec` names: a file of any name, those of known formats in a directory, or a pattern."""
    others = (
        "stdlib, shakespeare, hf:OWNER/NAME, tfds:NAME, FILE.py:NAME (a class of yours), or a recipe "
        "(python -m data_pipelines.recipes lists them)"
    )
    others = suggest_source(spec) or others
    is_known, left_out, beside = keep_data(spec, find_reader, is_text=lambda name: find_reader(name) is read_text)
    paths, dead = find_files(spec, is_known, known=_KNOWN, otherwise=f" Or use {others}.")
    return Files(spec, paths, left_out, beside, dead)


def suggest_source(spec: str) -> str:
    """What was probably meant by a spec that names nothing; empty if nothing is known."""
    names = [name for name in re.split(r"[, ]+", spec) if name]
    plain = re.sub(r"[^a-z0-9]", "", spec.lower().removeprefix("tiny"))
    is_beginning = lambda name: len(plain) >= SHORTEST and re.sub(r"[^a-z0-9]", "", name).startswith(plain)
    alike = list(filter(is_beginning, (*RECIPES, "stdlib")))
    alike = alike or difflib.get_close_matches(spec.lower(), (*RECIPES, "stdlib"))
    if len(names) > 1 and all(map(os.path.exists, names)):
        return "a directory that holds these files, or a quoted pattern such as '*.txt'"
    if "\\" in spec:
        return f"slashes: --source={spec.replace(chr(92), '/')}"
    if re.fullmatch(r"[\w-]+/[\w.-]+", spec) and not os.path.splitext(spec)[1]:
        return f"--source=hf:{spec}, if it is a data set of the hub"
    if alike:
        return " or ".join(f"--source={name}" for name in alike)
    return ""


@dataclass(frozen=True)
class Files:
    """Files in the order given; `left_out` counts those of other formats, `beside` names what stands beside data.

    `dead` are links to nothing.
    """

    spec: str
    paths: tuple[Path, ...]
    left_out: int = 0
    beside: tuple[str, ...] = ()
    dead: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.spec.split("*")[0]).name.split(".")[0] or "files"

    def chunks(self, context: ReadContext) -> Iterator[Chunk]:
        if self.left_out:
            context.notes[LEFT_OUT] += self.left_out
        if self.beside:
            context.notes[BESIDE] += len(self.beside)
            context.notes.first.setdefault(BESIDE, replace_surrogates(self.beside[0]))
        for path in self.dead:
            context.report_problem(DEAD, f"{path}: {EXPLAIN_DEAD}")
        for path in self.paths:
            reader = find_reader(path.name) or _read_unknown
            if context.separator is not None and reader not in (read_text, _read_unknown):
                context.notes[UNCUT] += 1
            yield from reader(path, context)

    def identity(self) -> dict[str, Any]:
        return identify_files(self.spec, self.paths) | identify_readers(path.name for path in self.paths)


def _read_unknown(path: Path, context: ReadContext) -> Iterator[Chunk]:
    with open_file(path) as file:
        if b"\0" in file.peek(2**16):
            raise UserError(
                f"{path}: holds NUL bytes, so it is not text; wanted text, or {_KNOWN}. "
                "Token shards need no preparation: see python -m data_pipelines.index_shards --help."
            )
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSED[1:] else path
    is_markup = plain.suffix.lower() in MARKUP
    are_lines = not is_markup and json_lines.begins_with_records(path)
    context.notes[AS_LINES if are_lines else AS_MARKUP if is_markup else AS_TEXT] += 1
    yield from (json_lines.read_json_lines if are_lines else read_text)(path, context)
