"""Local files as a source: one file, a directory read recursively, or a pattern; each kind has its reader."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_pipelines.readers.array_records import read_array_records
from data_pipelines.readers.documents import Chunk, ReadContext
from data_pipelines.readers.json_lines import SUFFIXES as JSON_LINES
from data_pipelines.readers.json_lines import read_json_lines
from data_pipelines.readers.parquet import read_parquet
from data_pipelines.readers.paths import files_below, files_identity, find_files
from data_pipelines.readers.text_files import COMPRESSED, naming, read_text
from gptjax.errors import UserError

LEFT_OUT = "files of other kinds in the directory not read (a quoted pattern names them)"
AS_TEXT = "files of a kind that is not known read as plain text"


class Reader(Protocol):
    """Yields the documents of one file in their order, or blocks of them."""

    def __call__(self, path: Path, context: ReadContext) -> Iterator[Chunk]: ...


_TEXT = tuple(kind + end for kind in (".txt", ".md", ".markdown", ".rst") for end in COMPRESSED)
READERS: dict[tuple[str, ...], Reader] = {
    _TEXT: read_text,
    JSON_LINES: read_json_lines,
    (".parquet",): read_parquet,
    (".array_record", ".arrayrecord"): read_array_records,
}
# ArrayRecord's own tools number the files of a set behind the suffix.
_NUMBERED = re.compile(r"(\.array_?record)-\d+-of-\d+$")
_KNOWN = ".txt, .md, .rst, .jsonl (also .gz, .zst), .parquet or .array_record"


def reader_of(name: str) -> Reader | None:
    """How to read a file of that name; None for a kind that is not known."""
    plain = _NUMBERED.sub(r"\1", name.lower())
    for suffixes, reader in READERS.items():
        if plain.endswith(suffixes):
            return reader
    return None


def open_files(spec: str) -> "Files":
    """The files that `spec` names: a file of any name, the files of known kinds in a directory, or a pattern."""
    sets = "stdlib, shakespeare, hf:OWNER/NAME, tfds:NAME, or a recipe (python -m data_pipelines.recipes lists them)"
    paths = find_files(spec, reader_of, known=_KNOWN, otherwise=f" Or use {sets}.")
    folder = Path(spec).expanduser()
    others = sum(1 for _ in files_below(folder)) - len(paths) if folder.is_dir() else 0
    return Files(spec, paths, left_out=others)


@dataclass(frozen=True)
class Files:
    """Files in the order given; a kind that is not known is read as text.

    `left_out` is how many others lie in the directory.
    """

    spec: str
    paths: tuple[Path, ...]
    left_out: int = 0

    @property
    def name(self) -> str:
        return Path(self.spec.split("*")[0].rstrip("/") or "files").name.split(".")[0] or "files"

    def chunks(self, context: ReadContext) -> Iterator[Chunk]:
        if self.left_out:
            context.notes[LEFT_OUT] += self.left_out
        for path in self.paths:
            read = reader_of(path.name)
            with naming(path):
                if read is None:
                    _check_is_text(path)
                    read = read_text
                    context.notes[AS_TEXT] += 1
                yield from read(path, context)

    def identity(self) -> dict[str, Any]:
        """Names, sizes and times of change."""
        return files_identity(self.spec, self.paths)


def _check_is_text(path: Path) -> None:
    with path.open("rb") as file:
        if b"\0" in file.read(2**16):
            raise UserError(
                f"{path}: holds NUL bytes, so it is no text, and of no kind that can be read ({_KNOWN}). Shards of "
                "tokens need no preparing: see python -m data_pipelines.adopt --help."
            )
