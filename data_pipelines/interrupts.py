"""Ctrl-C is for one thread of one process: the one that a person started, which ends all others."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Threads and processes that are started meanwhile never hear it, though a terminal sends it to all processes.

    The signal is blocked, not ignored, so whoever starts them hears it afterwards; and it is the block that they
    inherit, a process before it runs a line of Python.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
