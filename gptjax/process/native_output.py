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
from typing import Any

from gptjax.process.diagnosis import shows_tracebacks
from gptjax.process.held_stderr import open_unnamed_file

HOLD_SECONDS = 4.0
"""So long output is held back. An abort is delayed by longer."""
MAX_BYTES = 2**22
"""A file of more, all of which was shown, is replaced by an empty one."""
_OVERLAP = 2**12
"""A line of an abort may be written in two pieces; so far back a search begins."""
_CHUNK = 2**20
_ABORT = re.compile(r"^(?:F\d{4} |terminate called).*", re.MULTILINE)
"""The last words of Abseil's LOG(FATAL) and of C++."""
_held: "NativeOutput | None" = None


class NativeOutput:
    """A file in the place of file descriptor 2. Python's own stderr goes to the terminal as before."""

    def __init__(self) -> None:
        sys.stderr.flush()
        self.terminal = os.dup(2)
        self._begin_file()
        self._abort: str | None = None

    def _begin_file(self) -> None:
        self._file = open_unnamed_file()
        os.dup2(self._file.fileno(), 2)
        self._shown, self._noticed, self._searched, self._noticed_at = 0, 0, 0, 0.0

    def open_terminal(self) -> Any:
        """A text stream to where file descriptor 2 led."""
        return os.fdopen(os.dup(self.terminal), "w", buffering=1, encoding="utf-8", errors="backslashreplace")

    @property
    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read_last(self) -> bytes:
        """The end of what libraries have written: at most 1 MiB."""
        return os.pread(self._file.fileno(), _CHUNK, max(0, self._size - _CHUNK))

    def pass_on(self, now: float) -> None:
        """Write to the terminal what has been held back for long enough; `now` is in seconds."""
        end, waits = self._size, self._noticed > self._shown
        if waits and (now - self._noticed_at >= HOLD_SECONDS or shows_tracebacks()):
            self._write(self._noticed)
        elif not waits and end > self._shown:
            self._noticed, self._noticed_at = end, now
        elif not waits and end > MAX_BYTES:
            self._replace_file()

    def find_abort(self) -> str | None:
        """The line with which a library aborts this process; None if none does."""
        while self._abort is None and self._searched < (end := self._size):
            start = max(0, self._searched - _OVERLAP)
            text = os.pread(self._file.fileno(), _OVERLAP + _CHUNK, start)
            if found := _ABORT.search(text.decode("utf-8", "replace")):
                self._abort = found[0]
            self._searched = min(end, start + len(text))
        return self._abort

    def close(self) -> None:
        """Write the rest to the terminal, and give file descriptor 2 back."""
        self._write(self._size)
        os.dup2(self.terminal, 2)

    def _replace_file(self) -> None:
        """Let libraries write into an empty file. What they have written in between is shown."""
        full, shown, searched = self._file, self._shown, self._searched
        self._begin_file()
        new, self._file, self._shown, self._searched = self._file, full, shown, searched
        self.find_abort()
        self._write(self._size)
        full.close()
        self._file, self._shown, self._searched = new, 0, 0

    def _write(self, end: int) -> None:
        with contextlib.suppress(OSError):
            while text := os.pread(self._file.fileno(), min(_CHUNK, end - self._shown), self._shown):
                self._shown += os.write(self.terminal, text)
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


def open_held_terminal() -> Any:
    """A text stream to the terminal while libraries write to a file; None while they do not."""
    return None if _held is None else _held.open_terminal()


def read_native_output() -> str:
    """The end of what libraries have written since `hold_native_output`."""
    return "" if _held is None else _held.read_last().decode("utf-8", "replace")


def release_native_output() -> None:
    """Give stderr back to the libraries, if it was taken from them."""
    global _held
    if _held is not None:
        _held.close()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        _held = None
