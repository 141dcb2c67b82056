"""A start that is refused leaves no half run behind."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from gptjax.checkpoints.integrity import list_passed_over, list_steps
from gptjax.core.directory_identity import LOCK
from gptjax.core.errors import UserError
from gptjax.core.file_sums import SUMS_FILE
from gptjax.core.files import read_text
from gptjax.process.console import drop_console_log
from gptjax.runs.reference import remove_unfinished
from gptjax.runs.run_dir import (
    CHECKPOINTS,
    CONFIG_FILE,
    CONFIG_SOURCE,
    CONSOLE_LOG,
    ENVIRONMENT,
    METRICS,
    REFERENCE,
    STARTED,
)
from gptjax.runs.run_lock import run_lock
from gptjax.sharding.distributed import wait_for_processes
from gptjax.tokenization.tokenizer import SAVED_FILES


@contextlib.contextmanager
def hold_run(directory: Path) -> Iterator[Callable[[], None]]:
    """Hold the right to write to a run directory, and leave it as it was if the start is refused.

    The block gets a function to call where the start is over: from then on nothing is removed. Until then a `UserError`
    removes the words of this start from the console log, which would be newer than the run's sums. It removes what
    gptjax has written into a directory that had no run, and nothing else. So a stored reference stays, which took long.
    """
    is_over = False

    def end_start() -> None:
        nonlocal is_over
        is_over = True

    wait_for_processes("opened")  # one that is refused alone ends the others before anything is written
    with run_lock(directory) as made:
        before = {path.name for path in directory.iterdir()}
        try:
            yield end_start
        except UserError:
            if jax.process_index() == 0 and not is_over:
                drop_console_log()
                if CONFIG_FILE not in before:
                    with contextlib.suppress(OSError):
                        _undo(directory, [name for name in STARTED if name not in before], made)
            raise


def check_place(directory: Path) -> None:
    """Raise a `UserError` for a directory without a run whose files a run would replace, as an export's config.json."""
    checkpoints = directory / CHECKPOINTS
    if (
        (directory / LOCK).exists()
        or list_steps(checkpoints)
        or list_passed_over(checkpoints)
        or _has_config(directory)
    ):
        return
    names = (CONFIG_FILE, CONFIG_SOURCE, SUMS_FILE, METRICS, CONSOLE_LOG, ENVIRONMENT, *SAVED_FILES)
    if found := [name for name in names if (directory / name).is_file()]:
        raise UserError(
            f"{directory} has no run, but {', '.join(found)}, which a run would replace. Choose another --name or "
            "--output-dir."
        )


def _has_config(directory: Path) -> bool:
    """Whether the config there is of a run; exports have one of that name, too."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_text(directory / CONFIG_FILE))
        return isinstance(content, dict) and {"output_dir", "batch_size"} <= content.keys()
    return False


def _undo(directory: Path, names: list[str], made: list[Path]) -> None:
    """Remove these files, and empty directories of these names. The lock is the last file: it keeps others out."""
    if REFERENCE in names:
        remove_unfinished(directory / REFERENCE)
    for path in (directory / name for name in names):
        if path.is_dir():
            _remove_empty(path)
        else:
            path.unlink(missing_ok=True)
    (directory / LOCK).unlink()
    for path in made:
        path.rmdir()


def _remove_empty(directory: Path) -> None:
    """Remove a directory, and those in it, as far as they hold no file."""
    for folder, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
