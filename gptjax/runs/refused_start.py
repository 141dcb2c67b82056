"""A start that is refused leaves no half run behind."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from gptjax.checkpoints.integrity import list_steps
from gptjax.core.errors import UserError
from gptjax.runs.run_dir import CHECKPOINTS, METRICS, REFERENCE, list_references
from gptjax.runs.run_lock import run_lock
from gptjax.sharding.distributed import wait_for_processes


@contextlib.contextmanager
def hold_run(directory: Path) -> Iterator[None]:
    """Hold the right to write to a run directory, and leave it as it was if the start is refused."""
    wait_for_processes("opened")  # one that is refused alone ends the others before anything is written
    start = _Start(directory)
    with run_lock(directory), start.undo():
        yield


class _Start:
    """What was in a run directory before a start wrote to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._before = {path.name for path in directory.iterdir()} if directory.is_dir() else set[str]()
        self._missing = [path for path in (directory, *directory.parents) if not path.exists()]
        self._had_begun = self._has_begun()  # a new beginning may have moved its record

    @contextlib.contextmanager
    def undo(self) -> Iterator[None]:
        """Remove what the block has written, if it raises a `UserError` and the run has no record and no checkpoint.

        What was there before stays. So does a stored reference, which took long. Hold the run's lock.
        """
        try:
            yield
        except UserError:
            if jax.process_index() == 0 and not (self._had_begun or self._has_begun()):
                with contextlib.suppress(OSError):
                    self._remove()
            raise

    def _has_begun(self) -> bool:
        record = self._directory / METRICS
        return bool(list_steps(self._directory / CHECKPOINTS)) or (record.is_file() and record.stat().st_size > 0)

    def _remove(self) -> None:
        kept = self._before | ({REFERENCE} if list_references(self._directory) else set())
        for path in [path for path in self._directory.iterdir() if path.name not in kept]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for path in self._missing:  # from the run directory upwards, while they are empty
            path.rmdir()
