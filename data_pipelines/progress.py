"""A line on the terminal that says how far the work is, and is gone when it is done."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 30


@contextlib.contextmanager
def moving_line(text: str) -> Iterator[Callable[[str], None]]:
    """Show `text` on stderr until the function given is called with another.

    Where there is no terminal, what is shown is printed now and then as a line of its own.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    silent = not sys.stderr.isatty()
    line = Progress(*columns, console=Console(stderr=True), transient=True, disable=silent)
    task = line.add_task(text, total=None)
    printed = time.monotonic()

    def show(text: str) -> None:
        nonlocal printed
        line.update(task, description=text)
        if silent and time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    with line:
        yield show


class Rate:
    """Millions a second since it was made, of a count that began with `before`.

    What an earlier run did (`before`) says nothing of this one's speed.
    """

    def __init__(self, before: int = 0) -> None:
        self._before, self._start = before, time.perf_counter()

    def __call__(self, count: int) -> float:
        return (count - self._before) / 1e6 / (time.perf_counter() - self._start)
