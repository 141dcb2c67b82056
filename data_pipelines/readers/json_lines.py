"""JSON lines, plain, gzipped or compressed by Zstandard: as documents of text, or as records that know their place.

The one idea: what is wrong with a line is named by file and number.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.readers.documents import BLOCK_BYTES, Document, Reading, document_of_json, read_json
from data_pipelines.readers.long_lines import document_of_long_line
from data_pipelines.readers.paths import files_identity, find_files
from data_pipelines.readers.text_files import COMPRESSED, naming, opened
from gptjax.errors import UserError

# C4 and others publish JSON lines as .json.gz; a plain .json is more often a single object of many lines.
SUFFIXES = (*(kind + end for kind in (".jsonl", ".ndjson") for end in COMPRESSED), ".json.gz", ".json.zst")


def read_json_lines(path: Path, reading: Reading) -> Iterator[Document]:
    """The text of the object in every line; blank lines are no records."""
    with opened(path) as file:
        number = 0
        while line := file.readline(BLOCK_BYTES):
            number += 1
            where = f"{path}:{number}"
            if len(line) < BLOCK_BYTES:
                document = document_of_json(line, reading, where=where)
            else:
                blocks = itertools.chain([line], _rest_of_line(line, file))
                document = document_of_long_line(blocks, reading, where=where)
            if document is not None:
                yield document
            del document  # before the next one is read


def _rest_of_line(beginning: bytes, file: io.BufferedReader) -> Iterator[bytes]:
    block = beginning
    while not block.endswith(b"\n") and (block := file.readline(BLOCK_BYTES)):
        yield block


class Line(NamedTuple):
    """One line that is not blank; `where` is `FILE:NUMBER`, counted from 1."""

    where: str
    content: bytes

    def record(self) -> dict[str, Any]:
        """The JSON object on it; raises `UserError` if there is none."""
        try:
            value = read_json(self.content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.where}: not a line of JSON in UTF-8: {error}.") from None
        if not isinstance(value, dict):
            raise UserError(f"{self.where}: wanted a JSON object, got {str(value)[:80]}.")
        return value


@dataclass(frozen=True)
class JsonLines:
    """All lines of some files, in the order given."""

    spec: str
    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[Line]:
        for path in self.paths:
            with naming(path), opened(path) as file:
                for number, content in enumerate(file, start=1):
                    if content.strip():
                        yield Line(f"{path}:{number}", content)

    def identity(self) -> dict[str, Any]:
        """What, in JSON, distinguishes these lines from others."""
        return files_identity(self.spec, self.paths)


def json_lines(spec: str) -> JsonLines:
    """The lines of a file, of the files of JSON lines in a directory, or of the files of a pattern."""
    known = ".jsonl (also .gz, .zst)"
    return JsonLines(spec, find_files(spec, is_json_lines, known=known, otherwise=f" Wanted {known}."))


def is_json_lines(name: str) -> bool:
    """Whether a file of that name holds JSON lines."""
    return name.lower().endswith(SUFFIXES)
