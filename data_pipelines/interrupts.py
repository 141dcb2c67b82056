"""Ctrl-C is for one thread of one process: the one that a person started, which ends all others."""

import contextlib
import signal
import threading
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


@contextlib.contextmanager
def ending_at_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process at once, as it would end any other program: for minutes in which no line of Python runs,
    and nothing is made that a later run would not know for a leftover."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
