"""Ends a process from any of its threads, whatever its main thread does: one line, stacks in a file, a status."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, TextIO

from gptjax.core.diagnosis import SHOW_VARIABLE, shows_tracebacks, write_report

SAY_SECONDS = 10.0
"""A disk or a terminal that hangs delays the end by no more than this."""
Announcer = Callable[[int, str], None]
_announcer: Announcer | None = None
_ending = threading.Lock()


def announce_ends_by(announcer: Announcer | None) -> None:
    """Let `announcer(status, message)` tell the other processes of the run when this one ends too early."""
    global _announcer
    _announcer = announcer


def announce_end(status: int, message: str) -> bool:
    """Tell the other processes that this one ends too early; False if there are none."""
    if _announcer is None:
        return False
    _announcer(status, message)
    return True


def leave(status: int, message: str) -> NoReturn:
    """End with this status, after a message that was printed. The other processes of the run learn of it.

    With others there is no orderly exit: JAX would wait for all of them.
    """
    if announce_end(status, message):
        _flush()
        os._exit(status)
    raise SystemExit(status)


def end_process(message: str, *, status: int) -> NoReturn:
    """Print the message, write the stacks of all threads into a file that it names, and end at once.

    Of several threads that call it, one speaks.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait(3 * SAY_SECONDS)
        os._exit(status)
    for act in (lambda: announce_end(status, message), lambda: _say(message)):
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(SAY_SECONDS)
    os._exit(status)


def _say(message: str) -> None:
    if shows_tracebacks():
        faulthandler.dump_traceback(sys.__stderr__ or 2)
    file = write_report("stacks", lambda file: _dump_stacks(file, message))
    where = "" if file is None else f"\nstacks of all threads: {file} ({SHOW_VARIABLE}=1 shows them here)"
    print(f"error: {message}{where}".replace("\n", "\n  "), file=sys.stderr)
    _flush()


def _dump_stacks(file: TextIO, message: str) -> None:
    main = threading.main_thread().ident or 0
    print(f"{message}\n\nThe main thread is 0x{main:016x}.\n", file=file, flush=True)
    faulthandler.dump_traceback(file)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
