"""Saves a run when it is due. A save that fails is reported once and tried again, and training goes on meanwhile."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.core.errors import UserError
from gptjax.process.console import print_once
from gptjax.sharding.distributed import wait_for_processes
from gptjax.training.state import TrainState

RETRY_SECONDS = 60.0
"""After a save has failed, the next step after this time tries again, if none was due before."""
CLOCK_STEPS = 10
"""Several processes agree on what the clock of the first one says once in so many steps."""


class Saver:
    """Decides when to save, and saves. All processes of a run must call it at the same steps."""

    def __init__(
        self,
        checkpoints: CheckpointManager,
        config: CheckpointConfig,
        *,
        steps: int,
        metadata: dict[str, Any],
        check_data: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`steps` is the length of the run, `metadata` is saved with each checkpoint, `clock` returns seconds.

        `check_data` raises a UserError if the data has changed since the run began to read it.
        """
        self._checkpoints, self._config, self._steps, self._metadata = checkpoints, config, steps, metadata
        self._check_data, self._clock = check_data, clock
        self._saved_at = clock()
        self._saving: int | None = None
        self._failed_at: float | None = None
        self._error: UserError | None = None
        self._is_open = False
        """Whether the last save may have failed, as far as all processes know. It changes in all at the same step."""

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`: by number, by time, or because the save before has failed."""
        self._notice_failure()
        if self._config.should_save(step, steps=self._steps):
            return True
        if jax.process_count() == 1:
            return self._is_time()
        # Asking the first process waits for the devices. Without a clock it is asked only until a save has succeeded.
        if (self._config.every_minutes is None and not self._is_open) or step % CLOCK_STEPS:
            return False
        is_time, self._is_open = ask_first((self._is_time(), self._saving is not None or self._failed_at is not None))
        return is_time

    def _is_time(self) -> bool:
        minutes, now = self._config.every_minutes, self._clock()
        by_time = minutes is not None and now - self._saved_at >= 60 * minutes
        return by_time or (self._failed_at is not None and now - self._failed_at >= RETRY_SECONDS)

    def save(self, step: int, state: TrainState, *, loss: float | None) -> None:
        """Save in the background; `loss` is that of these weights by the config's `best_metric`, if it was measured.

        What cannot be written is reported, and training may go on. Raises a UserError for data that has changed.
        """
        self.wait()
        if self._check_data is not None:
            self._check_data()
        self._saved_at, self._saving, self._is_open = self._clock(), step, True
        try:
            self._checkpoints.save(step, state, metadata=self._metadata, best_value=loss)
        except UserError as error:
            self._report(error)

    def finish(self, step: int, state: TrainState, *, loss: float | None) -> None:
        """Wait until `step` is saved, trying once more if need be. Raises a UserError if it cannot be saved."""
        self.wait()
        if self._error is not None:  # in all processes
            self.save(step, state, loss=loss)
            self.wait()
        if self._error is not None:
            raise UserError(
                f"step {step} could not be saved. {self._error} {self._name_last()} Correct what is wrong, "
                "and give the same command again."
            ) from None
        # The first process makes the checkpoint complete by itself. It would end if another one left before.
        wait_for_processes(f"saved {step}")

    def _notice_failure(self) -> None:
        if self._checkpoints.has_finished:
            self.wait()

    def wait(self) -> None:
        """Wait until all saves have ended; a failure is reported, not raised."""
        try:
            self._checkpoints.wait()
        except UserError as error:
            self._report(error)
        else:
            if self._saving is not None:
                self._saving = self._failed_at = self._error = None

    def _report(self, error: UserError) -> None:
        is_first, self._error = self._error is None, error
        self._failed_at, step, self._saving = self._clock(), self._saving, None
        if is_first:
            print_once(
                f"warning: step {step} was not saved: {error} Training goes on, and the save is tried again. "
                f"If the run ends before, it loses what it learned since. {self._name_last()}"
            )

    def _name_last(self) -> str:
        latest = self._checkpoints.latest
        return "No checkpoint is complete." if latest is None else f"The last complete checkpoint is of step {latest}."


def agree(step: int, answer: bool) -> bool:
    """The first process's answer, on all processes; several of them ask once in `CLOCK_STEPS` steps."""
    if jax.process_count() == 1:
        return answer
    return not step % CLOCK_STEPS and ask_first((answer,))[0]


def ask_first(answers: tuple[bool, ...]) -> tuple[bool, ...]:
    """The first process's answers, on all processes."""
    return tuple(bool(answer) for answer in multihost_utils.broadcast_one_to_all(np.asarray(answers)))
