"""Ctrl-C while an entry point imports its libraries: one line and status 130, instead of an import's traceback."""

import os
import signal
import sys
import threading
from types import FrameType


def install_early_handler() -> None:
    """End the process at once on Ctrl-C. Nothing has been written yet, so nothing needs to be cleaned up."""
    if threading.current_thread() is threading.main_thread() and _is_default():
        signal.signal(signal.SIGINT, _exit_at_once)


def remove_early_handler() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, if `install_early_handler` has changed that."""
    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_module_run() -> bool:
    """Whether Python is importing the packages above a module that is run by `python -m`."""
    return sys.argv[:1] == ["-m"]


def _is_default() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)
