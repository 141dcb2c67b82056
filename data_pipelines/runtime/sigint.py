"""Ctrl-C is for one thread of one process: the one that a person started, which ends all others."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Threads and processes that are started meanwhile never hear it, though a terminal sends it to all processes.

    The signal is blocked, not ignored, so whoever starts them hears it afterwards; and it is the block that they
    inherit, a process before it runs a line of Python. The system may still give it to another thread, for which the
    main one would raise: that is put off, too.
    """
    in_main = threading.current_thread() is threading.main_thread()
    heard, handler = [], signal.getsignal(signal.SIGINT) if in_main else None
    if callable(handler):
        signal.signal(signal.SIGINT, lambda *signal_and_frame: heard.append(signal_and_frame))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
            if heard:
                handler(*heard[0])


@contextlib.contextmanager
def ending_at_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process at once: for minutes in which no line of Python runs in the main thread, which alone
    would hear of it, and nothing is made that a later run would not know for a leftover.

    Whichever thread the system interrupts, the number of the signal is written to a pipe, at which another waits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while number := os.read(reading, 1)[0]:
            if number == signal.SIGINT:
                print("interrupted", file=sys.stderr, flush=True)
                os._exit(130)

    before = signal.set_wakeup_fd(writing)
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, b"\0")
        waiting.join()
        os.close(reading)
        os.close(writing)
