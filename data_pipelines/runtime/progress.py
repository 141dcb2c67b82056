"""Lines on the terminal: one that says how far the work is, and is gone when it is done; and what was wrong with it."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data_pipelines.runtime.sigint import deaf_to_ctrl_c

SECONDS_BETWEEN_LINES = 30


_outer: ContextVar[Progress | None] = ContextVar("_outer", default=None)


@contextlib.contextmanager
def moving_line(text: str) -> Iterator[Callable[[str], None]]:
    """Show `text` on stderr until the function given is called with another.

    Inside another moving line (a download while a source is encoded) both are seen, one below the other. Where there is
    no terminal, what is shown is printed now and then as a line of its own.
    """
    silent = not sys.stderr.isatty()
    printed = time.monotonic()
    with _lines(silent=silent) as lines:
        task = lines.add_task(text, total=None)

        def show(text: str) -> None:
            nonlocal printed
            lines.update(task, description=text)
            if silent and time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
                printed = time.monotonic()
                print(text, file=sys.stderr, flush=True)

        try:
            yield show
        finally:
            if len(lines.tasks) > 1:  # the last one goes with the display, having been shown as it was at the end
                lines.remove_task(task)


@contextlib.contextmanager
def _lines(*, silent: bool) -> Iterator[Progress]:
    """The lines that move already, or new ones: two that do not know of each other would overwrite each other."""
    if (outer := _outer.get()) is not None:
        yield outer
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    lines = Progress(*columns, console=Console(stderr=True), transient=True, disable=silent)
    with contextlib.ExitStack() as stack:
        with deaf_to_ctrl_c():  # or its thread would hear it where processes are started deaf
            stack.enter_context(lines)
        token = _outer.set(lines)
        try:
            yield lines
        finally:
            _outer.reset(token)


class Rate:
    """Millions a second since it was made, of a count that began with `before`.

    What an earlier run did (`before`) says nothing of this one's speed.
    """

    def __init__(self, before: int = 0) -> None:
        self._before, self._start = before, time.perf_counter()

    def __call__(self, count: int) -> float:
        return (count - self._before) / 1e6 / (time.perf_counter() - self._start)


def say_notes(notes: Iterable[str]) -> None:
    """A line for each thing that was wrong with a source; names and records that it quotes may hold anything."""
    for note in notes:
        print("note:", "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in note))
