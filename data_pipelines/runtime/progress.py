"""Lines on the terminal: progress on stderr, and notes about a source."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from gptjax.process.progress import note_progress

FIRST_SECONDS, SECONDS_BETWEEN_LINES = 5, 30
"""Until the first line, and between later ones at most: each interval is twice as long as the last."""


@contextlib.contextmanager
def progress_line(text: str) -> Iterator[Callable[[str], None]]:
    """Show `text` on stderr, until the function that it yields is called with another text.

    Without a terminal a text is printed after 5 seconds, then more seldom, at last every 30 seconds.
    """
    with _show_spinner(text) if sys.stderr.isatty() else _print_seldom() as update:

        def show(text: str) -> None:
            note_progress()  # a run that prepares its data does not hang
            update(text)

        yield show


@contextlib.contextmanager
def _show_spinner(text: str) -> Iterator[Callable[[str], None]]:
    from rich.console import Console  # slow to import
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(text, total=None)
        yield lambda text: display.update(task, description=text)


@contextlib.contextmanager
def _print_seldom() -> Iterator[Callable[[str], None]]:
    started = printed = time.monotonic()
    interval = FIRST_SECONDS

    def update(text: str) -> None:
        nonlocal printed, interval
        if (now := time.monotonic()) - printed >= interval:
            printed, interval = now, min(2 * interval, SECONDS_BETWEEN_LINES)
            print(f"{text} ({now - started:.0f} s)", file=sys.stderr, flush=True)

    yield update


def print_notes(notes: Iterable[str]) -> None:
    """Print a line for each note; characters that are not printable become U+FFFD."""
    for note in notes:
        print("note:", "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in note))
