"""How a signal ends a process that trains nothing yet: in one line, instead of a traceback of what it was doing.

Training has handlers of its own as soon as it is set up (`gptjax.supervision.signals`).
"""

import atexit
import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

REQUEUE_STATUS = 75
"""The exit status (EX_TEMPFAIL) after which a scheduler should start the same command again."""
SIGNALLED_STATUS = 128
"""The exit status of a process that a signal has stopped is the signal's number above this."""
STOP_VARIABLE, REQUEUE_VARIABLE = "GPTJAX_STOP_SIGNALS", "GPTJAX_REQUEUE_SIGNALS"
"""Further signals that end a run in order, and signals after which it ends with `REQUEUE_STATUS`: `USR2`, `TERM`."""
_WANTED = "names such as USR2 or TERM"
_NO_REQUESTS = ("KILL", "STOP", "SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS", "CHLD", "CONT", "PIPE")
"""Signals that no program can catch, that report a fault, or that the system sends for other reasons."""


_announcement: Callable[[int, str], object] | None = None
_announce_seconds = 0.0
_exiting = threading.Lock()


class Terminated(KeyboardInterrupt):
    """A signal asks for the end. What cleans up after Ctrl-C does so after it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def read_signals(variable: str) -> tuple[signal.Signals, ...]:
    """The signals that an environment variable names, such as `USR2,SIGQUIT`.

    Raises:
        ValueError: one does not exist, or cannot ask for the end of a run.
    """
    return _parse_signals(variable, os.environ.get(variable, ""))


@functools.cache
def _parse_signals(variable: str, text: str) -> tuple[signal.Signals, ...]:
    names = [name.upper().removeprefix("SIG") for name in text.replace(",", " ").split()]
    for name in names:
        if f"SIG{name}" not in signal.Signals.__members__:
            raise ValueError(f"{variable} names the signal {name[:20]!r}, which does not exist. Wanted: {_WANTED}.")
        if name in _NO_REQUESTS:
            raise ValueError(f"{variable} names SIG{name}, which cannot end a run in order. Wanted: {_WANTED}.")
    return tuple(signal.Signals[f"SIG{name}"] for name in names)


def stop_status(number: int) -> int:
    """The exit status after a signal: 75 where it asks to be started again later, else 128 + its number.

    That are SIGUSR1, SIGUSR2 and those that `GPTJAX_REQUEUE_SIGNALS` names.
    """
    requeues = {signal.SIGUSR1, signal.SIGUSR2}
    with contextlib.suppress(ValueError):  # it is reported where training sets its handlers
        requeues |= {*read_signals(REQUEUE_VARIABLE)}
    return REQUEUE_STATUS if number in requeues else 128 + number


def _find_defaults() -> dict[signal.Signals, object]:
    """The signals of the early handler, with the handler that each has at Python's start."""
    found: dict[signal.Signals, object] = {signal.SIGINT: signal.default_int_handler, signal.SIGUSR1: signal.SIG_DFL}
    with contextlib.suppress(ValueError):
        asked = (*read_signals(STOP_VARIABLE), *read_signals(REQUEUE_VARIABLE))
        found = dict.fromkeys(asked, signal.SIG_DFL) | found
    return found


def install_early_handler() -> None:
    """End the process at once on Ctrl-C, SIGUSR1 and the signals of the two variables.

    Nothing has been written, so nothing needs to be cleaned up.
    """
    if threading.current_thread() is threading.main_thread():
        for number, default in _find_defaults().items():
            if signal.getsignal(number) is default:
                signal.signal(number, _exit_at_once)


def remove_early_handler() -> None:
    """Undo `install_early_handler`."""
    for number, default in _find_defaults().items():
        if signal.getsignal(number) is _exit_at_once:
            signal.signal(number, default)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def exit_early() -> Iterator[None]:
    """Inside the block the early handler holds, also while the main thread runs no Python, as when it waits for peers.

    Handlers that are set inside the block are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    install_early_handler()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader,), daemon=True, name="early exit").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()  # ends the thread


def _listen(reader: socket.socket) -> None:
    with reader:
        while numbers := reader.recv(1):
            if signal.getsignal(numbers[0]) is _exit_at_once:
                _exit_at_once(numbers[0], None)


@contextlib.contextmanager
def skip_python_end() -> Iterator[None]:
    """End the process of a run where it exits, if Python's own end may crash among threads. All is saved and closed.

    A signal can leave a compilation half way, whose threads Python would wait for. A thread of one of several processes
    may be in a call of JAX's store, where Python's way to stop it aborts the process.
    """
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        if end.code != REQUEUE_STATUS and end.code <= SIGNALLED_STATUS:
            from gptjax.process.process_end import has_peers  # this module is imported before all others

            if not has_peers():
                raise
            with contextlib.suppress(Exception):
                atexit._run_exitfuncs()  # JAX waits for the others
        if (held := sys.modules.get("gptjax.process.native_output")) is not None:  # not imported here: it is large
            held.release_native_output()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(end.code)


@contextlib.contextmanager
def raise_terminated() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise `Terminated`, so that unfinished files are removed."""
    changed = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _raise_terminated)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def set_early_announcement(announce: Callable[[int, str], object] | None, *, seconds: float = 0.0) -> None:
    """Let the early handler tell the end to others; it then holds for SIGTERM and SIGHUP, too. None undoes it.

    `announce` gets the status and why, and takes about so many `seconds`. After twice as many the process ends.
    """
    global _announcement, _announce_seconds
    _announcement, _announce_seconds = announce, seconds
    if threading.current_thread() is threading.main_thread():
        old, new = (signal.SIG_DFL, _exit_at_once) if announce else (_exit_at_once, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if number not in _find_defaults() and signal.getsignal(number) is old:
                signal.signal(number, new)


def is_module_run() -> bool:
    """Whether Python is importing the packages above a module that is run by `python -m`."""
    return sys.argv[:1] == ["-m"]


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    status, name = stop_status(number), "interrupted" if number == signal.SIGINT else signal.Signals(number).name
    try:
        # Both the main thread and the one that listens come here after one signal.
        is_first = _exiting.acquire(timeout=max(0.1, 2 * _announce_seconds))
        if is_first:
            held = sys.modules.get("gptjax.process.native_output")
            os.write(2 if held is None else held.find_terminal(), f"{name}\n".encode())
            if _announcement is not None:
                _announcement(status, name)
    finally:
        os._exit(status)
