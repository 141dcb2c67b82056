"""Ends a process from any of its threads, whatever its main thread does: one line, stacks in a file, a status."""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol, TextIO, runtime_checkable

from gptjax.process.diagnosis import SHOW_VARIABLE, shows_tracebacks, write_report
from gptjax.process.native_output import NativeOutput, find_terminal, read_native_output

PRINT_SECONDS = 10.0
"""A disk or a terminal that hangs delays the end by no more than this."""
ANNOUNCE_SECONDS = 30.0
"""The same for the other processes. To tell 256 of them, the first one takes 18 s."""


@runtime_checkable
class PeerProcesses(Protocol):
    """The other processes of a run."""

    def announce_end(self, status: int, message: str) -> None:
        """Tell them that this process ends too early."""
        ...

    def wait_for_failure_report(self, seconds: float) -> None:
        """Wait until it is known which of them is gone. Then this process has ended; otherwise return."""
        ...


_peers: PeerProcesses | None = None
_ending = threading.Lock()
_undo: Callable[[], None] | None = None


def set_peers(peers: PeerProcesses | None) -> None:
    """From now on this process is one of several."""
    global _peers
    _peers = peers


def has_peers() -> bool:
    return _peers is not None


def set_undo(undo: Callable[[], None] | None) -> None:
    """From now on `undo` is called where this process is refused, also from another thread, as for another process."""
    global _undo
    _undo = undo


def undo_start() -> None:
    """Call the function of `set_undo`, if there is one."""
    if (undo := _undo) is not None:
        undo()


def wait_for_failure_report(seconds: float) -> None:
    """After an error that another process may have caused: end with its name, or return."""
    if _peers is not None:
        _peers.wait_for_failure_report(seconds)


def exit_process(status: int, message: str) -> NoReturn:
    """End with this status, after a message that was printed. The other processes of the run learn of it.

    With others there is no orderly exit: JAX would wait for all of them.
    """
    if _peers is None:
        raise SystemExit(status)
    _flush()
    _peers.announce_end(status, message)
    os._exit(status)


def end_process(message: str, *, status: int) -> NoReturn:
    """Print the message, write the stacks of all threads into a file that it names, and end at once.

    There are no stacks at status 2: a person made a mistake, and the start is undone. Of several threads that call it,
    one prints.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait(2 * PRINT_SECONDS + ANNOUNCE_SECONDS)
        os._exit(status)
    announce = lambda: None if _peers is None else _peers.announce_end(status, message)
    undo = undo_start if status == 2 else lambda: None
    say = lambda: _print_error(message, has_stacks=status != 2)
    for act, seconds in ((say, PRINT_SECONDS), (undo, PRINT_SECONDS), (announce, ANNOUNCE_SECONDS)):
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(seconds)
    os._exit(status)


@contextlib.contextmanager
def end_at_abort(native: NativeOutput, explain: Callable[[], tuple[str, int]]) -> Iterator[None]:
    """Inside the block an abort by a library ends the process with the message and the status that `explain` returns.

    The main thread runs no Python there.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if native.find_abort() is not None:
                message, status = explain()
                end_process(message, status=status)

    threading.Thread(target=watch, daemon=True, name="abort").start()
    try:
        yield
    finally:
        done.set()


def _print_error(message: str, *, has_stacks: bool) -> None:
    """The message comes first, and in one piece: the disk that is to take the stacks or the log may hang."""
    sys.stderr.write(f"error: {message}".replace("\n", "\n  ") + "\n")
    _flush()
    if not has_stacks:
        return
    if shows_tracebacks():
        faulthandler.dump_traceback(find_terminal())
    file = write_report("stacks", lambda file: _dump_stacks(file, message))
    if file is not None:
        sys.stderr.write(f"  stacks of all threads: {file} ({SHOW_VARIABLE}=1 shows them here)\n")
    _flush()


def _dump_stacks(file: TextIO, message: str) -> None:
    main = threading.main_thread().ident or 0
    if native := read_native_output():
        print(f"{native}\n", file=file)
    print(f"{message}\n\nThe main thread is 0x{main:016x}.\n", file=file, flush=True)
    faulthandler.dump_traceback(file)


def _flush() -> None:
    for stream in (sys.stderr, sys.stdout):
        stream.flush()
