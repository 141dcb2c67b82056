"""Holds back what libraries write to stderr by themselves, past Python, until the cause of an end is known.

When one of several processes dies, XLA writes pages about sockets into the output of all others, and aborts them. Here
such pages go to a file. They reach the terminal a few seconds late, unless this process ends before, with a line of its
own and these pages in the file that the line names.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import signal
import sys
import tempfile
from typing import Any

from gptjax.process.diagnosis import shows_tracebacks

HOLD_SECONDS = 4.0
"""So long output is held back. An abort is delayed by longer."""
_ABORT = re.compile(r"^(?:F\d{4} |terminate called).*", re.MULTILINE)
"""The last words of Abseil's LOG(FATAL) and of C++."""
_held: "NativeOutput | None" = None


class NativeOutput:
    """A file in the place of file descriptor 2. Python's own stderr goes to the terminal as before."""

    def __init__(self) -> None:
        sys.stderr.flush()
        self.terminal = os.dup(2)
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115, as long as the process
        os.dup2(self._file.fileno(), 2)
        self._shown, self._noticed, self._noticed_at = 0, 0, 0.0

    def open_terminal(self) -> Any:
        """A text stream to where file descriptor 2 led."""
        return os.fdopen(os.dup(self.terminal), "w", buffering=1, encoding="utf-8", errors="backslashreplace")

    def read(self, start: int = 0) -> bytes:
        """All that libraries have written, from this place on."""
        return os.pread(self._file.fileno(), 2**24, start)

    def pass_on(self, now: float) -> None:
        """Write to the terminal what has been held back for long enough; `now` is in seconds."""
        waits = self._noticed > self._shown
        if waits and (now - self._noticed_at >= HOLD_SECONDS or shows_tracebacks()):
            self._write(self._noticed)
        elif not waits and (end := os.fstat(self._file.fileno()).st_size) > self._shown:
            self._noticed, self._noticed_at = end, now

    def find_abort(self) -> str | None:
        """The line with which a library aborts this process; None if none does."""
        found = _ABORT.search(self.read().decode("utf-8", "replace"))
        return None if found is None else found[0]

    def close(self) -> None:
        """Write the rest to the terminal, and give file descriptor 2 back."""
        self._write(os.fstat(self._file.fileno()).st_size)
        os.dup2(self.terminal, 2)

    def _write(self, end: int) -> None:
        with contextlib.suppress(OSError):
            os.write(self.terminal, self.read(self._shown)[: end - self._shown])
        self._shown = end


def hold_native_output() -> NativeOutput:
    """Begin to hold back, until `release_native_output`. Aborts are delayed, so that a thread can say why before."""
    global _held
    _held = NativeOutput()
    terminal = _held.open_terminal()
    if hasattr(sys.stderr, "redirect"):  # a SafeStream
        sys.stderr.redirect(terminal)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        sys.stderr = terminal
    faulthandler.enable(find_terminal(), all_threads=False)  # a crash of native code says where it was
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    # The handler needs nothing from Python: it is sleep, called with the number of SIGABRT as seconds.
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    return _held


def find_terminal() -> int:
    """The file descriptor of stderr, also while that of libraries is a file."""
    return 2 if _held is None else _held.terminal


def read_native_output() -> str:
    """What libraries have written since `hold_native_output`."""
    return "" if _held is None else _held.read().decode("utf-8", "replace")


def release_native_output() -> None:
    """Give stderr back to the libraries, if it was taken from them."""
    global _held
    if _held is not None:
        _held.close()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        _held = None
