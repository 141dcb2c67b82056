"""Reading and writing whole files."""

import hashlib
import os
from pathlib import Path

AnyPath = str | os.PathLike[str]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace or create a file; text is written as UTF-8. The directory must exist.

    Readers see the old file or the new one, never a part of it, even after a crash.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: AnyPath) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
