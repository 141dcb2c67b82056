"""Files that hold text but are no text: what they are, by their ending or first bytes, and what makes text of them."""

import shlex
from collections.abc import Mapping
from pathlib import Path

LFS = b"version https://git-lfs"
OFFICE = "libreoffice --headless --convert-to"
MAKE_TEXT = {
    **dict.fromkeys((".docx", ".odt", ".epub", ".rtf", ".html", ".htm", ".xhtml"), "pandoc -t plain {0} -o {1}.txt"),
    **dict.fromkeys((".doc", ".ppt", ".pptx", ".odp"), f"{OFFICE} txt:Text {{0}}"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), f"{OFFICE} csv {{0}}"),
    ".pdf": "pdftotext {0} {1}.txt",
    ".ipynb": "jupyter nbconvert --to markdown {0}",
}
"""By the ending, the command that makes text of a file, {0}, whose name without the ending is {1}.

LibreOffice writes into the working directory, the others beside the file.
"""
MARKUP = (".html", ".htm", ".xhtml", ".ipynb")
"""Endings of files that are text in themselves, with marks. They are read as they stand."""
_DATABASE = "a database of SQLite. This writes a table of it: sqlite3 -json {0} 'SELECT * FROM TABLE' > {1}.json"
_PICKLE = "a pickle, which is not opened, because it can run any code; save its texts as JSON lines"
MEANINGS: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip, so its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "Zstandard, so its name should end in .zst",
    b"BZh": "bzip2; unpack it first: bzip2 -dk {0}",
    b"\xfd7zXZ\x00": "xz; unpack it first: xz -dk {0}",
    b"7z\xbc\xaf\x27\x1c": "7z; unpack it first: 7z x {0}",
    b"Rar!\x1a": "RAR; unpack it first: unrar x {0}",
    b"\x04\x22\x4d\x18": "lz4; unpack it first: lz4 -dk {0}",
    b"PK\x03\x04": "a zip archive, or an office document; unpack it first (unzip {0}), or save it as text",
    b"\xd0\xcf\x11\xe0": "an office document; save it as text",
    b"{\\rtf": "RTF. This makes text of it: pandoc -f rtf -t plain {0} -o {1}.txt",
    b"PAR1": "Parquet, so its name should end in .parquet",
    b"ARROW1": "Arrow, so its name should end in .arrow",
    b"\xff\xff\xff\xff": "a stream of Arrow, so its name should end in .arrow",
    LFS: "a pointer of Git LFS in place of the file, which git lfs pull fetches",
    b"%PDF-": "PDF. This makes text of it: pdftotext {0} {1}.txt",
    b"SQLite format 3\x00": _DATABASE,
    b"\x93NUMPY": "an array of NumPy; if it holds tokens, see python -m data_pipelines.index_shards --help",
    b"\x7fELF": "a program; name its source text",
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF8"), "an image; name the text that was read from it"),
    b"\x89HDF": "HDF5; save its texts as JSON lines",
    b"Obj\x01": "Avro; save its records as JSON lines",
    **dict.fromkeys((bytes([0x80, version]) for version in range(2, 6)), _PICKLE),
}
"""What files are that begin in these ways, though their name says text."""
TAR_PLACE, TAR = 257, b"ustar"
CONTROLS = frozenset(range(1, 32)) - set(b"\b\t\n\v\f\r\x1b")
"""Characters that text seldom has. In random bytes there are all, together a tenth."""
MOST_CONTROLS, CONTROL_SHARE = 7, 1 / 20
"""A text has at most so many different ones, as marks between numbers, or so few: recordings of a terminal, CP437."""


def suggest_conversion(path: Path) -> str:
    """The command that makes text of a file whose ending is in `MAKE_TEXT`."""
    given, plain = (shlex.quote(str(name)) for name in (path, path.with_suffix("")))
    return MAKE_TEXT[path.suffix.lower()].format(given, plain)


def explain_foreign(path: Path, start: bytes) -> str | None:
    """What a file is that begins with these bytes and is no text, and what to do; None for others."""
    given, plain = (shlex.quote(str(name)) for name in (path, path.with_suffix("")))
    found = next((meaning for magic, meaning in MEANINGS.items() if start.startswith(magic)), None)
    if found is None and start[TAR_PLACE:].startswith(TAR):
        found = "a tar archive; unpack it first: tar xf {0}"
    if found is None:
        controls = [byte for byte in start if byte in CONTROLS]
        is_text = len({*controls}) <= MOST_CONTROLS or len(controls) <= CONTROL_SHARE * len(start)
        return None if is_text else "has many control characters, so it is no text. Name the text that it was made of."
    if (kind := path.suffix.lower()) in MAKE_TEXT and not start.startswith(LFS):
        return f"is a {kind} file, and no plain text. This makes text of it: {suggest_conversion(path)}"
    end = "" if "{0}" in found else "."  # behind a command there is none
    return f"by its first bytes it is {found.format(given, plain)}{end}"
