"""The cache directory, atomic writing of files and directories, locks and hashes."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gptjax.core.errors import UserError

AnyPath = str | os.PathLike[str]


def cache_directory() -> Path:
    """Where things made or fetched once are kept: `$GPTJAX_CACHE`, else `~/.cache/gptjax`."""
    return Path(os.environ.get("GPTJAX_CACHE") or Path.home() / ".cache" / "gptjax")


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


def hash_json(content: object) -> str:
    """SHA-256 of a value as JSON, in hexadecimal. The order of keys counts."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextlib.contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """A temporary directory that becomes `output` if the block succeeds, and is removed otherwise.

    Raises:
        UserError: `output` is taken, or the block raised an `OSError`.
    """
    check_free(output)
    output = output.absolute()
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(output)  # replaces an empty directory
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(output: Path) -> None:
    """Raise `UserError` unless the directory is empty or does not exist."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} exists and is not an empty directory. Choose another, or remove it.")


def lock_file(file: IO[str]) -> None:
    """Lock an open file until it is closed. Raises `BlockingIOError` if another process has locked it.

    On a file system without locks this does nothing.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass
