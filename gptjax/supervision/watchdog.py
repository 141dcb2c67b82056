"""Ends a run that makes no progress: a read that never returns, devices that hang, processes that wait for each other.

Every change of what the main thread does counts as progress, and every call of `note_progress`. After too long without
one, a thread writes the stacks of all threads into a file of the run directory and ends the process with status 75. The
same command resumes the run.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from gptjax.metrics.console import format_duration
from gptjax.process.early_exit import REQUEUE_STATUS
from gptjax.process.process_end import end_process
from gptjax.process.progress import count_progress

LONG_FACTOR = 4
"""What is long by itself may take so many times as long as a step."""
POLL_SECONDS = 5.0
COLLECTIVE_SECONDS = 15.0
"""Of several processes the one that waits for data or a file ends first, and the others name it."""
_ACTIVITIES = {
    "data": "data",
    "step": "the devices",
    "start": "what comes before the first step: files, devices, a restore",
    "compile": "a compilation",
    "first step": "the devices, in the first step",
    "evaluate": "an evaluation",
    "checkpoint": "a checkpoint",
    "end": "the end of the run",
}
_FACTORS = dict.fromkeys(_ACTIVITIES, LONG_FACTOR) | {"data": 1, "step": 1}


class Watchdog:
    """Watches one run of this process, inside a `with` block. Without a limit it does nothing."""

    def __init__(
        self,
        limit: float | None,
        *,
        resume: str,
        process: str = "this process",
        several: bool = False,
        poll: float = POLL_SECONDS,
        end: Callable[[str], object] = lambda message: end_process(message, status=REQUEUE_STATUS),
    ) -> None:
        """`limit` is in seconds, `resume` the command that resumes the run, `process` the name of this process.

        `several` says whether the run has others. `poll` are seconds between two looks. `end` ends the process, with a
        message.
        """
        self._limit, self._resume, self._process, self._several = limit, resume, process, several
        self._poll, self._end = poll, end
        self._activity, self._step = "start", 0
        self._progress, self._seen = 0, count_progress()
        self._waited = 0.0
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._limit is not None:
            pause = min(self._poll, self._limit / 4)
            threading.Thread(target=self._watch, args=(pause,), daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Inside the block the main thread does this: `compile`, `data`, `evaluate`, `checkpoint`."""
        before = self._activity
        self._change(activity)
        try:
            yield
        finally:
            self._change(before)

    def begin_step(self, step: int) -> None:
        """The main thread has handed step number `step` to the devices, and waits for the one before."""
        self._activity = "step" if self._step else "first step"
        self._step = step
        self._progress += 1

    def finish(self) -> None:
        """There is no step to come."""
        self._change("end")

    def _change(self, activity: str) -> None:
        self._activity = activity
        self._progress += 1

    def look(self, seconds: float) -> str | None:
        """Notice progress since the last look, so many seconds ago; the message, if there was none for too long."""
        progress = self._progress + count_progress()
        if progress != self._seen:
            self._seen, self._waited = progress, 0.0
            return None
        # A process that was stopped as a whole has not waited.
        self._waited += min(seconds, 2 * self._poll)
        activity = self._activity
        longer = COLLECTIVE_SECONDS if self._several and activity != "data" else 0.0
        is_over = self._limit is not None and self._waited >= self._limit * _FACTORS[activity] + longer
        return self._describe(activity) if is_over else None

    def _watch(self, pause: float) -> None:
        last = time.monotonic()
        while not self._closed.wait(pause):
            now = time.monotonic()
            message, last = self.look(now - last), now
            if message is not None:
                self._end(message)
                return

    def _describe(self, activity: str) -> str:
        what = _ACTIVITIES[activity]
        what += " or another process" if self._several and activity in ("step", "first step") else ""
        hint = "" if self._step else "\nIf it only takes long, raise --hang-timeout."
        after = f" after step {self._step}" if self._step else ""
        return (
            f"{self._process} has made no progress for {format_duration(self._waited)}{after}. It waits for {what}.\n"
            f"Resume with: {self._resume}{hint}"
        )
