"""Local files as a source: one file, a directory read recursively, or a pattern; each kind has its reader."""

import glob
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_pipelines.array_records import read_array_records
from data_pipelines.documents import Notes
from data_pipelines.parquet import read_parquet
from data_pipelines.text_files import read_json_lines, read_text
from gptjax.errors import UserError


class Reader(Protocol):
    """Yields the documents of one file in their order."""

    def __call__(self, path: Path, notes: Notes, *, strict: bool) -> Iterator[str]: ...


_COMPRESSED = ("", ".gz", ".zst")
_TEXT = tuple(kind + end for kind in (".txt", ".md", ".markdown", ".rst") for end in _COMPRESSED)
# C4 and others publish JSON lines as .json.gz; a plain .json is more often a single object of many lines.
_JSON_LINES = (*(kind + end for kind in (".jsonl", ".ndjson") for end in _COMPRESSED), ".json.gz", ".json.zst")
READERS: dict[tuple[str, ...], Reader] = {
    _TEXT: read_text,
    _JSON_LINES: read_json_lines,
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


def open_files(spec: str, *, strict: bool) -> "Files":
    """The files that `spec` names: a file of any name, the files of known kinds in a directory, or a pattern."""
    path = Path(spec)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if reader_of(p.name) and p.is_file())
        if not found:
            raise UserError(f"source {spec}: the directory holds no {_KNOWN} files.")
        return Files(spec, tuple(found), strict=strict)
    if path.exists():
        return Files(spec, (path,), strict=strict)
    matches = sorted(Path(match) for match in glob.glob(spec, recursive=True) if os.path.isfile(match))
    if not matches:
        raise UserError(
            f"source {spec!r}: no such file, directory or pattern. Or use stdlib, shakespeare, hf:OWNER/NAME, "
            "tfds:NAME, or a recipe (python -m data_pipelines.recipes lists them)."
        )
    return Files(spec, tuple(matches), strict=strict)


@dataclass(frozen=True)
class Files:
    """Files in the order given; a kind that is not known is read as text. One document is in memory at a time."""

    spec: str
    paths: tuple[Path, ...]
    strict: bool = False

    @property
    def name(self) -> str:
        return Path(self.spec.split("*")[0].rstrip("/") or "files").name.split(".")[0] or "files"

    def documents(self, notes: Notes) -> Iterator[str]:
        for path in self.paths:
            read = reader_of(path.name) or read_text
            try:
                yield from read(path, notes, strict=self.strict)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path}: cannot be read: {error}.") from None

    def identity(self) -> dict[str, Any]:
        """Names, sizes and times of change: cheap, and enough to notice a change."""
        files = [[path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return {"source": self.spec, "files": len(files), "names_sizes_times": digest}
