"""Notices a run that diverges: many updates in a row that are not finite, or a loss far above its running median.

Such a run ends, or goes back to a checkpoint from before and reads other rows from there on (`gptjax.runs.rollback`).
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from gptjax.checkpoints.checkpoint import CheckpointManager
from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule

if TYPE_CHECKING:
    from gptjax.training import state as training_state
else:
    training_state = LazyModule("gptjax.training.state")  # imports flax, and a config needs `RollbackConfig` only

WINDOW = 100
"""Losses of which the median is taken."""
MIN_LOSSES = 20
"""Fewer say too little."""


@dataclass(frozen=True)
class RollbackConfig:
    """Whether a run that diverges goes back to its last good checkpoint, and passes over the rows that it read since.

    A checkpoint is good if the step after it was. Without any, the run goes back to its start.
    """

    limit: int = 0
    """Times that a run may go back. 0: never; `max_consecutive_skips` skipped updates in a row end it."""
    spike_factor: float | None = None
    """Go back also when a step's loss is above this multiple of the median of the 100 before. None: only for skips."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise UserError(f"rollback.limit is {self.limit}; it must not be negative.")
        if self.spike_factor is not None and not 1 < self.spike_factor < math.inf:
            raise UserError(f"rollback.spike_factor is {self.spike_factor}; it must be above 1, such as 2.")
        if self.spike_factor is not None and self.limit == 0:
            raise UserError("rollback.spike_factor has no effect at rollback.limit 0. Give --rollback.limit=3.")


class Diverged(Exception):
    """A run should go back. It ends nothing, and nothing of the steps after `last_good` is kept."""

    def __init__(self, *, step: int, last_good: int, reason: str, rollbacks: int) -> None:
        """`step` is the number of updates that have shown their metrics; checkpoints up to `last_good` are good.

        `rollbacks` is how often the run goes back, this time included.
        """
        super().__init__(reason)
        self.step, self.last_good, self.reason, self.rollbacks = step, last_good, reason, rollbacks


class DivergenceGuard:
    """Reads the metrics of each step one step late. All processes see the same numbers and decide alike."""

    def __init__(
        self,
        checkpoints: CheckpointManager,
        *,
        steps: int,
        limit: int,
        rollback: RollbackConfig | None = None,
        rollbacks: int = 0,
        losses: Iterable[float] = (),
    ) -> None:
        """`steps` is the length of the run, `limit` the number of skipped updates in a row that ends it.

        `rollbacks` is how often the run has gone back, `losses` are those of its steps so far.
        """
        self._limit, self._steps, self._checkpoints = limit, steps, checkpoints
        self._rollback, self._rollbacks = rollback or RollbackConfig(), rollbacks
        self._losses = deque((loss for loss in losses if math.isfinite(loss)), maxlen=WINDOW)
        self._previous: dict[str, jax.Array] | None = None

    def allows_save(self, step: int, *, state: "training_state.TrainState") -> bool:
        """False while updates are being skipped, except at the last step: the weights may be bad."""
        return step == self._steps or int(state.consecutive_skips) == 0

    def check(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics that follow `step`, and check those before.

        Raises `Diverged` where the run should go back, and a UserError at the limit of skipped updates.
        """
        previous, self._previous = self._previous, metrics
        if previous is None:
            return
        skips = int(previous["consecutive_skips"])
        if skips >= self._limit:
            reason = f"the last {skips} updates were skipped: not finite"
            self._roll_back(step, first_bad=step - skips + 1, reason=reason)
            self._fail(step)
        factor = self._rollback.spike_factor
        if factor is not None and (median := self._find_spike(loss := float(previous["loss"]), factor)) is not None:
            reason = f"loss {loss:.4f}, more than {factor:g} times its median {median:.4f}"
            self._roll_back(step, first_bad=step, reason=reason)

    def _find_spike(self, loss: float, factor: float) -> float | None:
        """The median of the losses before, if this one is far above it."""
        if not math.isfinite(loss):
            return None
        median = float(np.median(self._losses)) if len(self._losses) >= MIN_LOSSES else math.inf
        if loss > factor * median:
            return median
        self._losses.append(loss)
        return None

    def _roll_back(self, step: int, *, first_bad: int, reason: str) -> None:
        # The weights before the first bad step may be what is bad, so a checkpoint needs a good step after it.
        if self._rollbacks < self._rollback.limit and first_bad >= 2:
            raise Diverged(step=step, last_good=first_bad - 2, reason=reason, rollbacks=self._rollbacks + 1)

    def _fail(self, step: int) -> None:
        self._checkpoints.wait()  # a save may be pending
        latest = self._checkpoints.latest
        saved = "No checkpoint was saved" if latest is None else f"The last checkpoint is of step {latest}"
        before = f" after going back {self._rollbacks} times" if self._rollbacks else ""
        raise UserError(
            f"The last {self._limit} updates, up to step {step}, were skipped{before}: the loss, the gradient or the "
            f"update is not finite. {saved}. Lower the learning rate, clip gradients, or try "
            "--model.compute.dtype=float32."
        )
