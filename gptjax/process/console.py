"""Printing in a run: by the first of several processes, and so that what cannot be printed ends nothing."""

import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptjax.process.native_output import open_held_terminal, release_native_output
from gptjax.process.process_end import has_peers

STDERR = 2
"""The number of the last of the three streams that every process has."""
MAX_PENDING = 2**20
"""Characters that are kept for the console log before its directory is known."""


def print_once(*lines: str, to_stderr: bool = False) -> None:
    """Print the lines, if any, on the first process only. `to_stderr` is for notes beside a result.

    Imports no JAX, and starts a JAX backend only where `jax.distributed` is initialized.
    """
    if not lines:
        return
    jax = sys.modules.get("jax")  # processes that only tokenize never import it
    if jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(*lines, sep="\n", file=sys.stderr if to_stderr else sys.stdout, flush=True)


@functools.cache
def warn_once(*lines: str) -> None:
    """Print warnings on stderr, unless this process has printed the same before: a command may open a run twice."""
    print_once(*(f"warning: {line}" for line in lines), to_stderr=True)


def prepare_streams() -> None:
    """Escape characters that the encoding of stdout lacks, and open the null device for missing streams, as by `>&-`.

    The next file would get the number of the missing one, and messages of libraries and signals would be written to it.
    Python has None in the place of such a stream, which nobody expects.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115, as long as Python


class ConsoleLog:
    """A file that receives what a run prints. Text that comes before the file is known is kept for it."""

    def __init__(self) -> None:
        self._file: Any = None
        self._begin, self._end, self._is_new = 0, 0, False
        self._pending: list[str] = []
        self._length = 0
        self._after_bar = False

    def open(self, path: Path) -> None:
        """Append to this file from now on. A file that cannot be written is left, and so is one that is stdout."""
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno())):
                return
        with contextlib.suppress(OSError):
            self._is_new = not path.exists()
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
            self._begin = self._end = self._file.tell()
        pending, self._pending = self._pending, []
        for text in pending:
            self.write(text)

    def write(self, text: str) -> None:
        is_bar = "\x1b" in text or (self._after_bar and text == "\n")  # print writes the line end by itself
        self._after_bar = "\x1b" in text
        if is_bar:
            return
        if self._file is None:
            self._length += len(text)
            if self._length <= MAX_PENDING:
                self._pending.append(text)
            return
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
            self._file.flush()
            self._end += len(text.encode(errors="backslashreplace"))

    def drop(self) -> None:
        """Remove from the file what was written to it, unless others have written to it as well; write no more."""
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                if os.fstat(self._file.fileno()).st_size == self._end:  # `tee -a` or a scheduler may add to it
                    self._file.truncate(self._begin)
                    if self._is_new:
                        Path(self._file.name).unlink()
            self.close()

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()


class SafeStream(io.TextIOBase):
    """A stream like another one, whose failures are not raised. A copy goes to the console log.

    A closed pipe or terminal is replaced by nothing. On a full disk what cannot be written is dropped. Characters that
    the encoding lacks are written as escapes.
    """

    def __init__(self, stream: Any, log: ConsoleLog) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeError:
            encoding = self._stream.encoding or "ascii"
            self._try(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self._give_up(error)
        self._log.write(text)  # on a disk that may hang
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Any, *arguments: str) -> None:
        try:
            act(*arguments)
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Send a stream whose reader has gone to nowhere: Python would fail again at its exit."""
        if getattr(error, "errno", None) in (errno.EPIPE, errno.EIO, errno.EBADF):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def redirect(self, stream: Any) -> None:
        """Write to another stream from now on."""
        self._stream = stream

    def release(self) -> Any:
        """The stream itself, with nothing left in its buffer that could fail later."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up(OSError(errno.EPIPE, ""))
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()
        return self._stream

    def isatty(self) -> bool:
        with contextlib.suppress(ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    @property
    def buffer(self) -> Any:
        return self._stream.buffer


_log: ConsoleLog | None = None


@contextlib.contextmanager
def safe_console() -> Iterator[None]:
    """Replace stdout and stderr by `SafeStream`s inside the block, and keep what is printed for `keep_console_log`."""
    global _log
    _log = ConsoleLog()
    streams = sys.stdout, sys.stderr
    # A service may have neither.
    safe = [SafeStream(stream or io.StringIO(), _log) for stream in streams]
    sys.stdout, sys.stderr = safe
    try:
        yield
    finally:
        terminal = None
        if has_peers():  # until it has left them, a library may abort this process, and a thread says why
            terminal = open_held_terminal()
        else:
            release_native_output()
        for stream in safe:
            stream.release()
        sys.stdout, sys.stderr = streams[0], terminal or streams[1]
        _log.close()
        _log = None


def keep_console_log(path: Path) -> None:
    """Append what is and was printed inside `safe_console` to this file; without that, do nothing."""
    if _log is not None:
        _log.open(path)


def drop_console_log() -> None:
    """Remove from the file of `keep_console_log` what this process has added, and add no more to it."""
    if _log is not None:
        _log.drop()
