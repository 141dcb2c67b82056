"""`UserError`, the exception for faults that a user can correct, and its exit code.

It is raised wherever outside input (a config, a file, a command line) is wrong. Entry points turn it into a short
message and exit code 2. Any other exception that escapes is a bug in gptjax. It is one line and a traceback in a file.
"""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from gptjax.process.broken_import import report_broken_import
from gptjax.process.console import prepare_streams
from gptjax.process.diagnosis import explain_error, is_lost_peer, keep_traceback, report_bug, report_unraisable
from gptjax.process.early_exit import Terminated, remove_early_handler, stop_status
from gptjax.process.lost_signals import unwrap
from gptjax.process.process_end import exit_process, has_peers, wait_for_failure_report

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for a full disk, an exhausted quota and a file that is too large."""
_FAULTY = (errno.EIO, errno.ESTALE)
"""What reading a file raises where a disk or a server fails."""
_LIMITS = {errno.EFBIG: "ulimit -f unlimited", errno.EMFILE: "ulimit -n 4096"}
"""Error numbers for a limit of the shell that is reached, and what raises it."""


BROKEN_PIPE_STATUS = 141
"""Exit code of a process whose output nobody reads any more, as a shell gives it: 128 + SIGPIPE."""
LOST_SECONDS, DOUBT_SECONDS = 60.0, 6.0
"""Time to learn which other process is gone, after an error that says so, and after one that may come of it."""
SHOWN_CHARACTERS = 200
"""Characters of a stranger's text that a message shows."""


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_SINGULAR = {"have": "has", "are": "is"}


class UserError(Exception):
    """Says in one or two sentences what was wrong, what was found, what was wanted and what to do."""


def describe_errno(number: int) -> str:
    """What an error number of the system means, for the inside of a sentence, and what raises a limit."""
    return os.strerror(number) + (f" ({_LIMITS[number]} raises the limit)" if number in _LIMITS else "")


def quote(text: str, *, limit: int = SHOWN_CHARACTERS) -> str:
    """Text from a file, as a message may show it: on one line, without control characters, and shortened.

    Strangers chose it. A line end or an escape sequence in it could imitate a message of this program.
    """
    shown = "".join(char if char.isprintable() else _escape(char) for char in text[:limit])
    return shown if len(text) <= limit else f"{shown}…"


def quote_error(error: object, *, limit: int = SHOWN_CHARACTERS) -> str:
    """What another library says, on one line and without a dot at the end."""
    return quote(" ".join(str(error).split()), limit=limit).rstrip(".")


def escape_controls(text: str) -> str:
    """What a model wrote, as a terminal may show it: escapes instead of control characters but line ends and tabs.

    If stdout is no terminal, the text is given out as it is.
    """
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def count_of(count: int, plural: str) -> str:
    """`2 documents`, `1 document`: a number before a text whose first noun is a plural."""
    if count == 1:
        plural = re.sub(r"^((?:\w+ )??\w+?)(?:(?:(?<=ss)|(?<=tch))es|s)\b", r"\1", plural, count=1)
        plural = re.sub(r"^(\w+) (have|are)\b", lambda found: f"{found[1]} {_SINGULAR[found[2]]}", plural, count=1)
    return f"{count:,} {plural}"


def format_message(text: str) -> str:
    """A message as it is printed: control characters escaped, and every line but the first indented."""
    lines = "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text).split("\n")
    return "\n".join([lines[0], *(f"  {line}" if line else line for line in lines[1:])])


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


@contextlib.contextmanager
def exit_on_user_error(*, keeps_early_handler: bool = False) -> Iterator[None]:
    """Turn a user's error into a message on stderr and exit code 2. Every entry point runs inside this context.

    A `UserError`, a full disk and a file that cannot be opened or written count as such. Ctrl-C exits with code 130.
    With `keeps_early_handler` it goes on to end the process at once, until another handler is set.
    """
    prepare_streams()
    if not keeps_early_handler:
        remove_early_handler()
    if sys.excepthook in (sys.__excepthook__, report_broken_import):
        sys.excepthook = report_bug
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = report_unraisable
    try:
        with _flush_output(), unwrap(KeyboardInterrupt):
            yield
    except UserError as error:
        print(format_message(f"error: {error}"), file=sys.stderr)
        _exit(2, str(error))
    except BrokenPipeError:  # `| head` has read enough
        _discard_output()
        _exit(BROKEN_PIPE_STATUS, "its output is not read")
    except OSError as error:
        where = "" if error.filename is None else f"{quote(os.fspath(error.filename))}: "
        if error.errno in (*DISK_FULL_ERRNOS, *_LIMITS):
            advice = f"Raise the limit ({_LIMITS[error.errno]})" if error.errno in _LIMITS else _advise_room(error)
            message = f"{where}{error.strerror}. {advice} and give the same command again."
        elif error.errno in _FAULTY:
            # What reads or writes an open file raises it without a name, as does a terminal that is gone.
            faulty = "The disk, or the connection to it, may be faulty" + ", or the terminal gone" * (not where)
            message = f"{where}{error.strerror}. {faulty}: dmesg tells more."
        elif error.filename is None:
            if not _is_directory_deleted():
                raise
            message = "The current directory was deleted. Change to one that exists, and give the same command again."
        else:
            message = f"{where}{error.strerror}. {_suggest_place(os.fspath(error.filename))}"
        print(f"error: {message}", file=sys.stderr)
        _exit(2, message)
    except Terminated as stop:
        _exit(stop_status(stop.number), signal.Signals(stop.number).name)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _exit(130, "interrupted")
    except Exception as error:
        _exit_on_unexpected(error)


@contextlib.contextmanager
def _flush_output() -> Iterator[None]:
    """Write what was printed while an error of it can still be told. Python would complain of it at its end."""
    try:
        yield
    except SystemExit:
        _flush()
        raise
    except BaseException:  # its message comes behind what was printed before
        with contextlib.suppress(OSError, ValueError):
            _flush()
        raise
    _flush()


def _flush() -> None:
    try:
        print(end="", flush=True)  # also without a stdout, as after `>&-`
    except OSError:
        _discard_output()
        raise


def _discard_output() -> None:
    """Let what is left go nowhere: Python tries to write it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_directory_deleted() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _advise_room(error: OSError) -> str:
    """What a full disk lacks. One with too many files has space left."""
    if error.filename is not None and error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            disk = os.statvfs(os.path.dirname(os.fspath(error.filename)) or ".")
            if disk.f_files and not disk.f_ffree and disk.f_bavail:
                return "The file system can hold no more files (df -i). Remove some"
    return "Free space"


def _suggest_place(path: str) -> str:
    """What to do about a path that cannot be used. One in the home directory's cache was chosen by nobody."""
    if os.path.exists(path) and not os.access(path, os.R_OK):
        return "Make it readable, or choose another path."
    cache = os.path.join(os.environ.get("HOME", ""), ".cache")
    is_cache = not os.environ.get("GPTJAX_CACHE") and (cache.startswith(path) or path.startswith(cache))
    return "Set GPTJAX_CACHE to a directory that can be written." if is_cache else "Choose another path."


def _exit_on_unexpected(error: Exception) -> NoReturn:
    """One line for what JAX and the system raise, with what to do. Anything else is raised again, and reported."""
    is_lost = has_peers() and is_lost_peer(error)
    wait_for_failure_report(LOST_SECONDS if is_lost else DOUBT_SECONDS)
    meaning = explain_error(error, alone=not has_peers())
    if meaning is None and not has_peers():
        raise error
    message = meaning or f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
    print(format_message(f"error: {message}\n{keep_traceback(error)}"), file=sys.stderr)
    _exit((75 if is_lost else 2) if meaning else 1, message)  # EX_TEMPFAIL: the same command resumes


def _exit(status: int, message: str) -> NoReturn:
    """Without the error's context: its traceback is nobody's business."""
    try:
        exit_process(status, message)
    except SystemExit as end:
        raise end from None
