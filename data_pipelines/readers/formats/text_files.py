"""Text files, one document each or several between separators; plain, gzipped or compressed by Zstandard.

Line ends and byte-order marks stay as they are. A compressed file that is cut off is an error in any mode.
"""

import codecs
import contextlib
import gzip
import io
import json
import shlex
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import REPLACED, Chunk, Document, DocumentBlock, ReadContext, validate_utf8
from data_pipelines.readers.foreign_files import LFS, explain_foreign
from data_pipelines.readers.zstandard import error_classes, open_zstandard
from gptjax.core.errors import UserError, quote_error
from gptjax.core.unicode import replace_surrogates

COMPRESSED = ("", ".gz", ".zst")
"""Endings that `open_file` understands."""
UNPACK = {".gz": "gzip -d", ".zst": "zstd -d --rm"}
"""The commands that replace a compressed file by its content; with `-dc`, their programs print it."""
NULS = "files have NUL bytes, which were kept, though text seldom has any"
AS_TEXT = "files have a JSON object first, read as text for the name; named .jsonl, it is records"
LOOKED_BYTES = 512
"""Of a file, how much is looked at for what it is."""
RECORD_BYTES = 2**20
"""Of a text, how much is looked at for a record."""
BUFFER_BYTES = 2**18
"""Python's default of 8 kB makes reading lines several times slower."""


def read_text(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the whole file as one document; a small file as a block."""
    size = path.stat().st_size
    if path.suffix.lower() not in COMPRESSED[1:] and size <= context.block_bytes:
        yield DocumentBlock(size, partial(_read_whole, path))
    else:
        yield from _read_whole(path, context)


def _read_whole(path: Path, context: ReadContext) -> Iterator[Document]:
    with open_file(path) as file:
        content = file.read()
    if b"\0" in content:
        context.notes[NULS] += 1
        context.notes.first.setdefault(NULS, replace_surrogates(str(path)))
    if is_json_object(content[:RECORD_BYTES].lstrip().partition(b"\n")[0]):
        context.notes[AS_TEXT] += 1
    document = validate_utf8(content, context, where=str(path), note=REPLACED)
    if context.separator is None:
        yield document
        return
    separator = context.separator.encode()
    if separator not in content:
        context.notes[f"files have no separator {context.separator!r}: a document each"] += 1
    yield from _cut(bytes(document), separator)


def is_json_object(line: bytes) -> bool:
    """Whether a line is a JSON object."""
    try:
        return line.lstrip().startswith(b"{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def is_before_object(error: Exception) -> bool:
    """Whether an error of parsing JSON is about an object behind the first one, which `jq` reads."""
    if not isinstance(error, json.JSONDecodeError) or error.msg != "Extra data":
        return False
    return error.doc.lstrip()[:1] == "{" == error.doc[error.pos]


def _cut(content: bytes, separator: bytes) -> Iterator[Document]:
    """The texts between separators, without the line ends around these; blank ones are left out."""
    begin = 0
    while begin <= len(content):
        end = content.find(separator, begin)
        end = len(content) if end < 0 else end
        if text := content[begin:end].strip(b"\r\n"):
            yield text
        begin = end + len(separator)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed if it ends in `.gz` or `.zst`; errors of reading become a `UserError`."""
    kind = path.suffix.lower()
    with explain_errors(path):
        if kind in COMPRESSED[1:] and path.stat().st_size == 0:
            raise EOFError("it is empty, so it is no compressed file")
        raw: Any = {".gz": gzip.open, ".zst": open_zstandard}.get(kind, io.FileIO)(path)
        with io.BufferedReader(raw, BUFFER_BYTES) as file:
            check_start(path, file.peek(LOOKED_BYTES)[:LOOKED_BYTES])
            yield file


def check_start(path: Path, start: bytes) -> None:
    """Raise `UserError`, with advice, for the first bytes of a file that is no UTF-8 text."""
    if (problem := explain_foreign(path, start)) is not None:
        raise UserError(f"{path}: {problem}")
    start = start[:64]
    convert = partial(_write_conversion, path)
    if start[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise UserError(f"{path}: is UTF-32, wanted UTF-8. {convert('UTF-32')}")
    halves = {start[::2].strip(b"\0") == b"", start[1::2].strip(b"\0") == b""}
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or (len(start) >= 16 and len(halves) == 2):
        raise UserError(f"{path}: is UTF-16, wanted UTF-8. {convert(f'UTF-16{_find_order(start)}')}")


def write_edit(command: str, path: Path) -> str:
    """The line for a shell that changes a file in place, by a command such as `sed -i`; it unpacks the file before."""
    unpack = UNPACK.get(path.suffix.lower())
    before = f"{unpack} {shlex.quote(str(path))} && " if unpack else ""
    return f"{before}{command} {shlex.quote(str(path.with_suffix('') if unpack else path))}"


def write_filter(command: str, path: Path) -> str:
    """The line for a shell that makes a .jsonl file beside a file, which it unpacks for a command such as `jq`."""
    pipe = _write_pipe(path)
    plain = path.with_suffix("") if pipe else path
    written = plain.with_suffix(".lines.jsonl" if plain.suffix == ".jsonl" else ".jsonl")
    given = "" if pipe else f" {shlex.quote(str(path))}"
    return f"{pipe}{command}{given} > {shlex.quote(str(written))}"


def _write_conversion(path: Path, encoding: str) -> str:
    """The line for a shell that writes a file in UTF-8 beside one in another encoding."""
    pipe = _write_pipe(path)
    plain = path.with_suffix("") if pipe else path
    given = "" if pipe else f" {shlex.quote(str(path))}"
    written = shlex.quote(str(plain.with_suffix(f".utf8{plain.suffix}")))
    return f"Convert it: {pipe}iconv -f {encoding} -t UTF-8{given} > {written}"


def _write_pipe(path: Path) -> str:
    """What unpacks a compressed file for the next command; empty for others."""
    unpack = UNPACK.get(path.suffix.lower())
    return f"{unpack.split()[0]} -dc {shlex.quote(str(path))} | " if unpack else ""


def check_no_pointer(path: Path) -> None:
    """Raise `UserError` for a file of Git LFS that was not fetched, whatever its name says."""
    with path.open("rb") as file:
        if (start := file.read(len(LFS))) == LFS:
            check_start(path, start)


def _find_order(start: bytes) -> str:
    """The order of bytes, which iconv sees by itself where there is a mark."""
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return ""
    return "BE" if start[:1] == b"\0" else "LE"


@contextlib.contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into a `UserError` that names it."""
    classes = error_classes()  # once an error is there, the interpreter may be ending, and imports nothing
    try:
        yield
    except (OSError, EOFError, zlib.error, *classes) as error:
        if "too much memory" in str(error):  # a later frame has a larger window than the first
            advice = f"Unpack it first: zstd -d --long=31 {path.name}"
            raise UserError(f"{path}: was compressed with a larger window than is read here. {advice}") from None
        reason = getattr(error, "strerror", None) or error  # without the number and the path
        raise UserError(f"{path}: cannot be read: {quote_error(reason)}.") from None
