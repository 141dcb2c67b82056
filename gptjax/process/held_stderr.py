"""Keeps off the terminal what native code writes there while it fails."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()


def open_unnamed_file() -> Any:
    """A file without a name, in memory where the system can: temporary directories may be full or read-only."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b", buffering=0)
    return tempfile.TemporaryFile("w+b")


@contextlib.contextmanager
def hold_stderr() -> Iterator[None]:
    """Hold back what is written to file descriptor 2 inside the context; after an exception it is dropped.

    Rust prints a panic before Python gets an exception of it.
    """
    with _lock, open_unnamed_file() as file:
        if sys.stderr is not None:
            sys.stderr.flush()
        try:
            terminal = os.dup(2)
        except OSError:  # it is closed, as after `2>&-`
            yield
            return
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        file.seek(0)
        with contextlib.suppress(OSError):
            os.write(2, file.read())
