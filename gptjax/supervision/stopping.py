"""Reasons to end a run before its last step: a signal, a time that is up, a loss that no longer falls."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gptjax.checkpoints.saver import agree
from gptjax.metrics.metrics_file import Record, find_number
from gptjax.process.early_exit import REQUEUE_STATUS, stop_status
from gptjax.supervision.signals import GracefulShutdown


@dataclass(frozen=True)
class Stop:
    """Why a run ends early."""

    status: int
    """The exit status; 75 asks a scheduler to start the same command again."""
    reason: str
    signal: int | None = None

    @classmethod
    def by_signal(cls, number: int) -> "Stop":
        return cls(stop_status(number), f"signal {number}", number)


class StopRules:
    """Decides after each step whether a run ends. All processes must ask at the same steps."""

    def __init__(
        self,
        shutdown: GracefulShutdown,
        *,
        max_seconds: float | None = None,
        patience: int | None = None,
        history: Iterable[float] = (),
        began_at: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_seconds` count from `began_at` on the clock. `history` are the losses of earlier evaluations, in order.

        `patience` is a number of evaluations in a row without a lower loss.
        """
        self._shutdown, self._max_seconds, self._patience, self._clock = shutdown, max_seconds, patience, clock
        self._began_at = clock() if began_at is None else began_at
        self._best, self._since_best = math.inf, 0
        for loss in history:
            self._compare(loss)

    def check(self, step: int, *, is_first: bool = False) -> Stop | None:
        """Before an evaluation: a signal, or the time, which is never over before the first step of a start.

        A limit shorter than a start would make no progress, however often a scheduler started it again.
        """
        if (number := self._shutdown.get_signal(step)) is not None:
            return Stop.by_signal(number)
        if self._max_seconds is None or is_first:  # asking the other processes would wait for the devices
            return None
        is_over = self._clock() - self._began_at >= self._max_seconds
        return Stop(REQUEUE_STATUS, "max_time is over") if agree(step, is_over) else None

    def check_loss(self, loss: float | None) -> Stop | None:
        """After an evaluation: whether the loss has stopped falling. None where it was not measured."""
        if loss is None or self._patience is None:
            return None
        self._compare(loss)
        if self._since_best < self._patience:
            return None
        return Stop(0, f"{self._since_best} evaluations in a row without a loss below {self._best:.4f}")

    def _compare(self, loss: float) -> None:
        is_better = loss < self._best  # False for NaN
        self._best, self._since_best = (loss, 0) if is_better else (self._best, self._since_best + 1)


def list_losses(records: Iterable[Record], metric: str, *, before: int) -> list[float]:
    """The values of a metric in the records of a run, at steps before `before`; NaN for one that was not finite."""
    found = [find_number(record, metric) for record in records if metric in record and record["step"] < before]
    return [math.nan if value is None else value for value in found]
