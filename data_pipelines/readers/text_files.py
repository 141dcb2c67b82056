"""Text files, one document each or several between separators; plain, gzipped or compressed by Zstandard.

Line ends and byte-order marks stay as they are. A compressed file that is cut off is an error in any mode.
"""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import REPLACED, Block, Chunk, Document, ReadContext, validate_utf8
from data_pipelines.readers.extras import import_pyarrow
from gptjax.core.errors import UserError

COMPRESSED = ("", ".gz", ".zst")
"""Endings that `open_file` understands."""
SEPARATOR = "<|endoftext|>"
"""What many text files have between documents."""
BUFFER_BYTES = 2**18
"""Python's default of 8 kB makes reading lines several times slower."""


def read_text(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """Yield the whole file as one document; a small file as a block."""
    size = path.stat().st_size
    if path.suffix.lower() not in COMPRESSED[1:] and size <= context.block_bytes:
        yield Block(size, partial(_read_whole, path))
    else:
        yield from _read_whole(path, context)


def _read_whole(path: Path, context: ReadContext) -> Iterator[Document]:
    with open_file(path) as file:
        content = file.read()
    document = validate_utf8(content, context, where=str(path), note=REPLACED)
    if context.separator is not None:
        yield from _cut(bytes(document), context.separator.encode())
        return
    if count := content.count(SEPARATOR.encode()):
        context.notes[f"times {SEPARATOR} stands in text and is learnt as text; --separator='{SEPARATOR}' cuts"] += (
            count
        )
    yield document


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
        raw: Any = {".gz": gzip.open, ".zst": _open_zstandard}.get(kind, io.FileIO)(path)
        with io.BufferedReader(raw, BUFFER_BYTES) as file:
            if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UserError(f"{path}: is UTF-16, wanted UTF-8. Convert it: iconv -f UTF-16 -t UTF-8.")
            yield file


def _open_zstandard(path: Path) -> Any:
    # By pyarrow, which unlike the package zstandard notices a file that is cut off.
    pyarrow = import_pyarrow(what=f"{path}: reading .zst")
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


@contextlib.contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into a `UserError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if "too much memory" in str(error):  # the format allows windows of 2 GiB, as `zstd --long=31` makes them
            advice = f"Unpack it first: zstd -d --long=31 {path.name}"
            raise UserError(f"{path}: was compressed with a larger window than is read here. {advice}") from None
        raise UserError(f"{path}: cannot be read: {error}.") from None
