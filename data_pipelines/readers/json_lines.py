"""JSON lines, plain, gzipped or compressed by Zstandard: as documents of text, or as records that know their place.

The one idea: what is wrong with a line is named by file and number.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.readers.documents import BLOCK_BYTES, Chunk, Document, ReadContext, parse_json, parse_json_line
from data_pipelines.readers.long_lines import document_of_long_line
from data_pipelines.readers.paths import files_identity, find_files
from data_pipelines.readers.text_files import COMPRESSED, is_plain, naming, opened
from gptjax.errors import UserError

# C4 and others publish JSON lines as .json.gz; a plain .json is more often a single object of many lines.
SUFFIXES = (*(kind + end for kind in (".jsonl", ".ndjson") for end in COMPRESSED), ".json.gz", ".json.zst")


def read_json_lines(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """The text of the object in every line; blank lines are no records.

    Whole lines of at most `BLOCK_BYTES` are a block. One that is longer is read here, and is a document.
    """
    with opened(path) as file:
        offset, number = 0, 1
        buffer, rest = bytearray(BLOCK_BYTES), 0  # one for all, for new memory costs more than looking for line ends
        while size := rest + file.readinto(memoryview(buffer)[rest:]):
            whole = size if size < len(buffer) else buffer.rfind(b"\n") + 1
            if whole:
                yield _Lines(path, number, whole, offset if is_plain(path) else bytes(buffer[:whole]))
                offset, number = offset + whole, number + _line_ends(buffer, whole)
                rest = size - whole
                buffer[:rest] = buffer[whole:size]
            else:
                blocks = itertools.chain([bytes(buffer)], _rest_of_line(file))
                document = document_of_long_line(blocks, context, where=f"{path}:{number}")
                if document is not None:
                    yield document
                del document  # before the next one is read
                offset, number, rest = file.tell() if is_plain(path) else 0, number + 1, 0


@dataclass(frozen=True)
class _Lines:
    """Whole lines of a file, by the number of the first and their bytes: where they lie or, if packed, themselves."""

    path: Path
    number: int
    size: int
    place: int | bytes

    def documents(self, context: ReadContext) -> Iterator[Document]:
        content = self.place if isinstance(self.place, bytes) else _read_at(self.path, self.place, self.size)
        for number, line in enumerate(io.BytesIO(content), start=self.number):
            document = parse_json_line(line, context, where=f"{self.path}:{number}")
            if document is not None:
                yield document


def _line_ends(buffer: bytearray, size: int) -> int:
    """How many there are in so many bytes; bytearray.count takes five times as long."""
    return int(np.count_nonzero(np.frombuffer(buffer, np.uint8, size) == ord("\n")))


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with naming(path), path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _rest_of_line(file: io.BufferedReader) -> Iterator[bytes]:
    while block := file.readline(BLOCK_BYTES):
        yield block
        if block.endswith(b"\n"):
            return


class Line(NamedTuple):
    """One line that is not blank; `where` is `FILE:NUMBER`, counted from 1."""

    where: str
    content: bytes

    def record(self) -> dict[str, Any]:
        """The JSON object on it; raises `UserError` if there is none."""
        try:
            value = parse_json(self.content.decode("utf-8"))
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


def open_json_lines(spec: str) -> JsonLines:
    """The lines of a file, of the files of JSON lines in a directory, or of the files of a pattern."""
    known = ".jsonl (also .gz, .zst)"
    return JsonLines(spec, find_files(spec, is_json_lines, known=known, otherwise=f" Wanted {known}."))


def is_json_lines(name: str) -> bool:
    """Whether a file of that name holds JSON lines."""
    return name.lower().endswith(SUFFIXES)
