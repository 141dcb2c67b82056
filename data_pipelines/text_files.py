"""Text files, one document each, and JSON lines, one document a line; plain, gzipped or compressed by Zstandard.

Text is taken byte for byte: no line end is translated, no byte-order mark removed. A compressed file that ends too
early is an error in any mode, for nobody can say what is missing.
"""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.documents import Notes, decoded, text_of_json
from data_pipelines.extras import needs_extra

BUFFER_BYTES = 2**16


def read_text(path: Path, notes: Notes, *, strict: bool) -> Iterator[str]:
    """The whole file as one document. Bytes that are not UTF-8 are replaced, also in strict mode, and counted."""
    with opened(path) as file:
        yield decoded(file.read(), notes)


def read_json_lines(path: Path, notes: Notes, *, strict: bool) -> Iterator[str]:
    """The string `text` of the object in every line; blank lines are no records."""
    with opened(path) as file:
        number = 0
        while file.peek(1):
            number += 1
            # No name here for the line: it may be large, and is let go of as soon as it is parsed.
            text = text_of_json(file.readline(), notes, strict=strict, where=f"{path}:{number}")
            if text is not None:
                yield text
            del text


def opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """The bytes of a file as they were before a `.gz` or `.zst` was made of them."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".zst":
        stream: Any = _zstandard(path)
        return io.BufferedReader(stream, BUFFER_BYTES)
    return path.open("rb")


def _zstandard(path: Path) -> Any:
    """Decompressed by pyarrow, which, unlike the package zstandard, notices a file that is cut off."""
    with needs_extra("data", what=f"{path}: reading .zst"):
        import pyarrow
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
