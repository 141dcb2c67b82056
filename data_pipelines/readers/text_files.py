"""Text files, one document each; plain, gzipped or compressed by Zstandard.

Text is taken byte for byte: no line end is translated, no byte-order mark removed. A compressed file that ends too
early is an error in any mode, for nobody can say what is missing.
"""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import (
    BLOCK_BYTES,
    REPLACED,
    TEXT_FIELD,
    Chunk,
    Document,
    ReadContext,
    validate_utf8,
)
from data_pipelines.readers.extras import import_pyarrow
from gptjax.errors import UserError

COMPRESSED = ("", ".gz", ".zst")
"""What may stand behind the suffix of a file that `opened` reads."""
BUFFER_BYTES = 2**18
"""Python's own choice, 8 kB, makes reading lines several times slower."""
NO_FIELDS = "files read whole as text, which has no fields that --text-field could choose"


def read_text(path: Path, context: ReadContext) -> Iterator[Chunk]:
    """The whole file as one document, and a small one as a block.

    Bytes that are not UTF-8 are replaced and counted, or named in strict mode.
    """
    file = _TextFile(path, path.stat().st_size)
    if is_plain(path) and file.size <= BLOCK_BYTES:
        yield file
    else:
        yield from file.documents(context)


@dataclass(frozen=True)
class _TextFile:
    path: Path
    size: int

    def documents(self, context: ReadContext) -> Iterator[Document]:
        if context.text_field != TEXT_FIELD:
            context.notes[NO_FIELDS] += 1
        with naming(self.path), opened(self.path) as file:
            if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UserError(f"{self.path}: is UTF-16. Make it UTF-8 first: iconv -f UTF-16 -t UTF-8.")
            yield validate_utf8(file.read(), context, where=str(self.path), note=REPLACED)


def is_plain(path: Path) -> bool:
    """Whether `opened` gives the bytes of the file as they are."""
    return path.suffix.lower() not in COMPRESSED[1:]


def opened(path: Path) -> io.BufferedReader:
    """The bytes of a file as they were before a `.gz` or `.zst` was made of them."""
    if not is_plain(path) and path.stat().st_size == 0:
        raise UserError(f"{path}: is empty, which no packed file is, even of an empty text. Fetch or make it again.")
    ways: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".zst": _zstandard}
    raw = ways.get(path.suffix.lower(), io.FileIO)(path)
    return io.BufferedReader(raw, BUFFER_BYTES)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file while it is read into a `UserError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}.") from None


def _zstandard(path: Path) -> Any:
    """Decompressed by pyarrow, which, unlike the package zstandard, notices a file that is cut off."""
    pyarrow = import_pyarrow(what=f"{path}: reading .zst")
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
