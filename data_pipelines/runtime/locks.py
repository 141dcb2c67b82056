"""One process at a time writes an output."""

import contextlib
import errno
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def hold_lock(output: Path) -> Iterator[None]:
    """Hold the lock on `output`, a file `.NAME.lock` beside it; waits for the process that holds it now.

    The lock ends with its process. An existing output in a directory without write permission needs no lock.
    """
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
