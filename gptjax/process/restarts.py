"""Starts a command again that failed, a limited number of times: a parent process that does nothing else."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from gptjax.process.early_exit import REQUEUE_STATUS, REQUEUE_VARIABLE, STOP_VARIABLE, read_signals, stop_status

SUPERVISED_VARIABLE = "GPTJAX_SUPERVISED"
"""In the child: the time, by `time.monotonic`, at which its parent began."""
PAUSE_SECONDS, LONG_PAUSE_SECONDS = 5.0, 60.0
"""For one process, and for several: the others must have noticed that one is gone, and have ended."""
_PARENT = os.getppid()
"""As this process begins. After the parent's end it is another one."""
_LOOK_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def began_at() -> float | None:
    """The time, by `time.monotonic`, at which the first start of this command began; None without restarts."""
    with contextlib.suppress(ValueError):  # somebody else's value
        return float(os.environ.get(SUPERVISED_VARIABLE, ""))
    return None


def is_supervised() -> bool:
    """Whether this process is the child."""
    return began_at() is not None


def follow_parent() -> None:
    """In the child: be sent SIGTERM when the parent is killed. Linux only."""
    if is_supervised() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != _PARENT:  # it was killed before
            signal.raise_signal(signal.SIGTERM)


def should_restart(status: int, *, was_asked: bool) -> bool:
    """Whether a start that ended with this status failed in a way that another may not.

    Not restarted: success, what a person must correct (2), what a signal ended, in order or at once, and all that
    follows a signal to the parent. Restarted: a hang or a lost process (75), a bug (1), a crash, and a kill by the
    system (9, out of memory).
    """
    if was_asked or status in (0, 2):
        return False
    return status in (1, REQUEUE_STATUS) or (status < 0 and -status not in _ASKED_TO_END)


def run_with_restarts(
    words: Sequence[str],
    *,
    again: Sequence[str] | None = None,
    limit: int,
    find_step: Callable[[], int | None],
    is_over: Callable[[float], bool] = lambda seconds: False,
    pause: float = PAUSE_SECONDS,
) -> int:
    """Run a command, again after each failure, until it ends otherwise; return its last status.

    Args:
        words: the command.
        again: the command of restarts, if it is another.
        limit: restarts in a row that save no newer step. One that does resets the count.
        find_step: the newest step that is saved as a whole; None if there is none.
        is_over: whether the time of the run is up, given the seconds since the first start.
        pause: seconds before a restart.
    """
    parent = _Parent()
    began, failures = time.monotonic(), 0
    environment = os.environ | {SUPERVISED_VARIABLE: repr(began)}
    while True:
        before = find_step()
        status = parent.run(words, environment)
        if not should_restart(status, was_asked=parent.asked is not None) or is_over(time.monotonic() - began):
            return status if status >= 0 else 128 - status
        after = find_step()
        has_progress = after is not None and (before is None or after > before)
        failures = 1 if has_progress else failures + 1
        how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        saved = "nothing is saved yet" if after is None else f"step {after:,} is saved"
        if failures > limit:
            _print_line(
                f"ended {how}; {saved}. It is not restarted: {limit} restarts in a row have saved no newer step"
            )
            return status if status >= 0 else 128 - status
        _print_line(f"ended {how}; {saved}. Restart {failures} of {limit} in {pause:g} s")
        parent.wait(pause)
        if parent.asked is not None:
            return stop_status(parent.asked)
        words = again or words


def _list_signals() -> list[int]:
    """The signals that the child may hear, with those that the environment names."""
    found = [*_SIGNALS]
    for variable in (STOP_VARIABLE, REQUEUE_VARIABLE):
        with contextlib.suppress(ValueError):  # the child reports it
            found += read_signals(variable)
    return [*dict.fromkeys(found)]


class _Parent:
    """Passes signals on to the child."""

    def __init__(self) -> None:
        self.asked: int | None = None
        """The last signal that came."""
        self._child: subprocess.Popen | None = None
        self._unsent: int | None = None
        for number in _list_signals():
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._pass_on)

    def run(self, words: Sequence[str], environment: dict[str, str]) -> int:
        self._child = subprocess.Popen(words, env=environment)
        if self._unsent is not None:  # it came before the child had a name here
            self._child.send_signal(self._unsent)
        return self._child.wait()

    def wait(self, seconds: float) -> None:
        """Wait between two starts; a signal ends it."""
        end = time.monotonic() + seconds
        # In short pieces: Python resumes a sleep after a handler, and an Event set by a handler may lock itself out.
        while self.asked is None and (rest := end - time.monotonic()) > 0:
            time.sleep(min(rest, _LOOK_SECONDS))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
        else:
            self._unsent = number


def _print_line(text: str) -> None:
    print(f"restarts: the run {text}", file=sys.stderr, flush=True)
