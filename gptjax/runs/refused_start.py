"""A start that is refused leaves no half run behind."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from gptjax.checkpoints.integrity import list_passed_over, list_steps
from gptjax.core.directory_identity import LOCK
from gptjax.core.errors import LOST_SECONDS, UserError
from gptjax.core.file_sums import SUMS_FILE
from gptjax.core.files import read_text
from gptjax.process.console import drop_console_log
from gptjax.process.diagnosis import is_lost_peer
from gptjax.process.process_end import set_undo, undo_start, wait_for_failure_report
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
    or an `OSError` here, or a refusal of another process, removes the words of this start from the run's console log,
    which would be newer than its sums. It removes what gptjax has written in this start, and nothing else. So a stored
    reference stays, which took long.
    """
    is_over = False

    def end_start() -> None:
        nonlocal is_over
        is_over = True
        set_undo(None)

    wait_for_processes("opened")  # one that is refused alone ends the others before anything is written
    had_lock = (directory / LOCK).exists()
    with run_lock(directory) as made:
        before = {path.name for path in directory.iterdir()} - (set() if had_lock else {LOCK})

        def undo() -> None:
            set_undo(None)
            has_run = CONFIG_FILE in before
            if has_run or CONSOLE_LOG not in before:  # else it is of `tee` or a scheduler, which go on writing
                drop_console_log()
            names = [name for name in STARTED if name not in before]
            with contextlib.suppress(OSError):
                _remove_files(directory, names, made, has_lock=has_run and had_lock)

        if jax.process_index() == 0:
            set_undo(undo)
        try:
            yield end_start
        except (UserError, OSError):
            undo_start()
            raise
        except Exception as error:
            if is_lost_peer(error) and not is_over:  # it may be refused; then this process ends here, which undoes it
                wait_for_failure_report(LOST_SECONDS)
            raise
        finally:
            set_undo(None)


def check_place(directory: Path) -> None:
    """Raise a `UserError` for a directory without a run whose files a run would replace, as an export's config.json.

    The console log is only added to, and `tee` or a scheduler may have opened one.
    """
    checkpoints = directory / CHECKPOINTS
    if (
        (directory / LOCK).exists()
        or list_steps(checkpoints)
        or list_passed_over(checkpoints)
        or _has_config(directory)
    ):
        return
    names = (CONFIG_FILE, CONFIG_SOURCE, SUMS_FILE, METRICS, ENVIRONMENT, *SAVED_FILES)
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


def _remove_files(directory: Path, names: list[str], made: list[Path], *, has_lock: bool) -> None:
    """Remove these files, and empty directories of these names. The lock is the last file: it keeps others out.

    It stays if the run had one.
    """
    if REFERENCE in names:
        remove_unfinished(directory / REFERENCE)
    for path in (directory / name for name in names):
        if path.is_dir():
            _remove_empty(path)
        else:
            path.unlink(missing_ok=True)
    if not has_lock:
        (directory / LOCK).unlink()
    for path in made:
        path.rmdir()


def _remove_empty(directory: Path) -> None:
    """Remove a directory, and those in it, as far as they hold no file."""
    for folder, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
