"""JSON lines as records that know where they stand, so that what is wrong with one is named by file and line."""

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz")


class Line(NamedTuple):
    """One line that is not blank; `where` is `FILE:NUMBER`, counted from 1."""

    where: str
    content: bytes

    def record(self) -> dict[str, Any]:
        """The JSON object on it; raises `UserError` if there is none."""
        try:
            value = json.loads(self.content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.where}: not a line of JSON in UTF-8: {error}.") from None
        if not isinstance(value, dict):
            raise UserError(f"{self.where}: wanted a JSON object, got {str(value)[:80]}.")
        return value


def json_lines(spec: str) -> Iterator[Line]:
    """All lines of a file, of the .jsonl(.gz) files in a directory or of the files of a pattern, in order of names."""
    for path in _paths(spec):
        try:
            with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
                for number, content in enumerate(file, start=1):
                    if content.strip():
                        yield Line(f"{path}:{number}", content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read: {error}.") from None


def _paths(spec: str) -> list[Path]:
    path = Path(spec)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file()]
    else:
        found = [path] if path.exists() else [Path(p) for p in glob.glob(spec, recursive=True) if os.path.isfile(p)]
    if not found:
        raise UserError(f"source {spec!r}: no {' or '.join(SUFFIXES)} file, directory with some, or pattern of some.")
    return sorted(found)
