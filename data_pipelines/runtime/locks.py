"""The disk that several processes share: who may write, whether there is room, and what is surely written."""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from gptjax.errors import NO_ROOM


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the right to write `output`, waiting for whoever has it now; where nobody can write, nobody needs it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = output.with_name(f".{output.name}.lock").open("w")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not output.exists():
            raise
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that is writing {output}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_full(error: Exception) -> bool:
    """Whether something could not be written for want of room."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
