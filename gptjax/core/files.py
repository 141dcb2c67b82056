"""Files and directories that appear whole or not at all, locks and hashes."""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gptjax.core.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file, or create it in an existing directory; text as UTF-8. A failure or power cut keeps the old one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """A temporary directory that becomes `output` if the block succeeds, and is removed otherwise."""
    check_free(output)
    output = output.absolute()
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if output.exists():
            output.rmdir()
        temporary.rename(output)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(output: Path) -> None:
    """Raise unless the directory does not exist or is empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} exists and is not an empty directory. Choose another, or remove it.")


def lock_file(file: IO[str]) -> None:
    """Lock an open file for this process; raises `BlockingIOError` if another has it. Does nothing without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass
