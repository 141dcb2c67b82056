"""What errors of JAX and of the system mean, and where their tracebacks go."""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from gptjax.process.broken_import import explain_broken_import, explain_wrong_variable, report_broken_import
from gptjax.process.lost_signals import hear_again

SHOW_VARIABLE = "GPTJAX_TRACEBACK"
_directory: Path | None = None
_EXPLANATIONS = (
    (
        ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "CUDA_ERROR_OUT_OF_MEMORY"),
        "the device is out of memory. Raise --grad-accum, lower --batch-size, give --model.compute.remat=full, or "
        "divide the model: --mesh=fsdp",
    ),
    (
        ("Unable to initialize backend", "Unknown backend", "No visible GPU", "CUDA_ERROR_NO_DEVICE"),
        "JAX cannot use the device that JAX_PLATFORMS asks for. Unset JAX_PLATFORMS and JAX_DEFAULT_DEVICE, or install "
        "the device's plugin, such as 'gptjax[cuda12]', in the version of jaxlib",
    ),
    (
        ("Disallowed host-to-device", "Disallowed device-to-host", "Disallowed device-to-device"),
        "JAX_TRANSFER_GUARD forbids to move arrays between the devices and the host. Unset it",
    ),
    (
        (
            "Barrier timed out",
            "DEADLINE_EXCEEDED",
            "Connection closed by peer",
            "heartbeat",
            "UNAVAILABLE",
            "Connection re",
        ),
        "another process of this run has ended or does not answer. Look for the reason in its output, and give the "
        "same command again on all",
    ),
)


_WRONG_VALUES = ("for JAX flag", "default_device must be")
"""What JAX says of a variable."""
_OF_JAX = (RuntimeError, ValueError)
"""JaxRuntimeError is the first, as are the errors of a backend's start. A collective operation may raise the second."""
_NO_MEMORY_TO_LOAD = ("failed to map segment", "annot allocate memory")
"""What the dynamic loader says under `ulimit -v`."""


def explain_error(error: BaseException, *, alone: bool) -> str | None:
    """The cause of an error of JAX or of memory in one sentence, with what to do; None if it is not known.

    A process that runs `alone` has lost no other one.
    """
    if isinstance(error, MemoryError):
        return "the machine is out of memory. Lower --batch-size, or raise --grad-accum"
    if (meaning := explain_broken_import(error) or explain_wrong_variable(error)) is not None:
        return meaning
    if isinstance(error, ImportError) and any(sign in str(error) for sign in _NO_MEMORY_TO_LOAD):
        return f"a library cannot be loaded into memory. Raise the limit: ulimit -v unlimited. ({error})"
    places = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError) and places and places[-1].filename.endswith("xla_bridge.py"):
        return _EXPLANATIONS[1][1]  # jax 0.10.2 asserts that it has found a backend
    if isinstance(error, ValueError) and any(sign in str(error) for sign in _WRONG_VALUES):
        return (
            f"an environment variable of JAX (JAX_…) has a value that it does not take. Correct or unset it. ({error})"
        )
    if not isinstance(error, _OF_JAX):
        return None
    text = str(error)
    known = _EXPLANATIONS if isinstance(error, RuntimeError) else _EXPLANATIONS[-1:]
    for signs, meaning in known[: -1 if alone else None]:
        if any(sign in text for sign in signs):
            first = text.strip().splitlines()[0] if text.strip() else ""
            return f"{meaning}. ({first[:160]})"
    return None


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    return isinstance(error, _OF_JAX) and any(sign in str(error) for sign in _EXPLANATIONS[-1][0])


def shows_tracebacks() -> bool:
    """Whether tracebacks go to the terminal: `GPTJAX_TRACEBACK=1`."""
    return os.environ.get(SHOW_VARIABLE, "0") not in ("", "0")


def keep_reports_in(directory: Path | None) -> None:
    """Write tracebacks and stacks into this directory, that of the run; None: into the system's temporary one."""
    global _directory
    _directory = directory


def keep_traceback(error: BaseException) -> str:
    """Write the traceback into a file of the run directory, or else of the system's temporary directory; say where."""
    lines = "".join(traceback.format_exception(error))
    if shows_tracebacks():
        print(lines, file=sys.stderr)
        return "its traceback is above"
    file = write_report("traceback", lambda file: print(lines, file=file, end=""))
    return (
        f"{SHOW_VARIABLE}=1 shows its traceback"
        if file is None
        else f"traceback: {file} ({SHOW_VARIABLE}=1 shows it here)"
    )


def write_report(name: str, write: Callable[[TextIO], object]) -> Path | None:
    """Let `write` fill a file whose name begins with `name`; None where no directory takes it."""
    for find in (lambda: _directory, lambda: Path(tempfile.gettempdir())):
        try:
            if (directory := find()) is None:
                continue
            path = directory / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
                write(file)
        except OSError:
            continue
        return path
    return None


def report_bug(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    """A `sys.excepthook`: one line for an error that nobody expected, and its traceback in a file."""
    if explain_broken_import(error) is not None:  # numpy's C code calls the hook, and goes on to fail elsewhere
        report_broken_import(kind, error, place)
    if shows_tracebacks() or not isinstance(error, Exception):
        sys.__excepthook__(kind, error, place)
        return
    first = str(error).strip().splitlines()[:1] or [""]
    print(f"error: {kind.__name__}: {first[0][:300]}\n  {keep_traceback(error)}", file=sys.stderr)


def report_unraisable(found: Any) -> None:
    """A `sys.unraisablehook` that is silent about writes of a failed save that end after Orbax has left them.

    Nor does it speak of an event loop that could not be made, as without free file descriptors: the save has failed.
    A Ctrl-C in a callback is not lost.
    """
    if isinstance(found.exc_value, KeyboardInterrupt):
        hear_again(getattr(found.exc_value, "number", signal.SIGINT))
        return
    is_closed = isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"
    if is_closed or getattr(found.object, "__qualname__", None) == "BaseEventLoop.__del__":
        return
    sys.__unraisablehook__(found)
