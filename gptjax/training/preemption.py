"""Why a run may end before its last step: somebody asks, or its updates stay undefined."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from gptjax.core.errors import UserError
from gptjax.training.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.training.state import TrainState


class GracefulShutdown:
    """Ctrl-C and SIGTERM, noticed between two steps; a second one (of several processes, Ctrl-C) stops at once."""

    def __init__(self) -> None:
        self._caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._catch)
            if jax.process_count() == 1:  # several agree through JAX's own handler
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        several = jax.process_count() > 1
        if self._caught is not None and several:  # leaving in order would wait for the others
            os._exit(128 + number)
        if self._caught is not None:
            raise KeyboardInterrupt
        self._caught = number
        # By whichever process heard it, and past a print that it may have interrupted.
        os.write(1, f"{signal.Signals(number).name}: saving after this step; once more to stop at once\n".encode())
        if several:
            signal.raise_signal(signal.SIGTERM)

    def received(self, step: int) -> int | None:
        """The signal to stop for before this step, agreed on by all processes."""
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self._caught


class NonFiniteGuard:
    """Stops a run whose updates have not been finite for too long; reads each step's answer one step late."""

    def __init__(self, checkpoints: CheckpointManager, *, steps: int, limit: int) -> None:
        self._limit, self._steps, self._checkpoints = limit, steps, checkpoints
        self._before: dict[str, jax.Array] | None = None

    def should_run(self, checkpoint: CheckpointConfig, step: int, current: TrainState) -> bool:
        """Whether to save now: not while updates are being skipped, for the weights may be what is wrong."""
        return checkpoint.should_run(step, steps=self._steps) and (
            step == self._steps or int(current.consecutive_skips) == 0
        )

    def check(self, step: int, metrics: dict[str, jax.Array]) -> None:
        before, self._before = self._before, metrics
        if before is not None and int(before["consecutive_skips"]) >= self._limit:
            self._checkpoints.wait()  # one may be on its way to the disk
            latest = self._checkpoints.latest
            saved = "No checkpoint was saved" if latest is None else f"The last checkpoint is of step {latest}"
            raise UserError(
                f"the last {self._limit} updates, up to step {step}, were not made: their size, or the loss or "
                f"gradient behind them, is not finite. {saved}. Lower the learning rate, clip gradients, or try "
                "--model.compute.dtype=float32."
            )
