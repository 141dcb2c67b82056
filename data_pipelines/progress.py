"""A line on the terminal that says how far the work is, and is gone when it is done."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextlib.contextmanager
def moving_line(text: str) -> Iterator[Callable[[str], None]]:
    """Show `text` on stderr until the function given is called with another; silent where there is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    line = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    task = line.add_task(text, total=None)
    with line:
        yield lambda text: line.update(task, description=text)
