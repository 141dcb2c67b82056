"""Counts the parts of long work, so that a watchdog can tell it from work that hangs, and says how far it is."""

import threading
import time
from collections.abc import Callable

from gptjax.process.console import print_once

SAY_SECONDS = 20.0
_count = 0


def note_progress() -> None:
    """Another part is done: some megabytes that were read, or a batch."""
    global _count
    _count += 1


def count_progress() -> int:
    """Parts done since this process began."""
    return _count


class ReadProgress:
    """Files that several threads read. After some seconds, and then as seldom, a line on stderr says how far they are.

    A disk may give some megabytes a second, and a file may have hundreds of gigabytes.
    """

    def __init__(self, what: object, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`what` is read; it has `total` bytes. `clock` returns seconds."""
        self._what, self._total, self._clock = what, total, clock
        self._done, self._said_at = 0, clock()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Some thread has read so many bytes."""
        note_progress()
        with self._lock:
            self._done += count
            if (now := self._clock()) - self._said_at < SAY_SECONDS:
                return
            self._said_at = now
            line = f"{self._what}: {self._done / 1e9:,.1f} of {self._total / 1e9:,.1f} GB read, to see that it is whole"
        print_once(line, to_stderr=True)
