"""Stops a run whose updates are not finite."""

import jax

from gptjax.core.errors import UserError
from gptjax.training.checkpoint import CheckpointManager
from gptjax.training.state import TrainState


class NonFiniteGuard:
    """Stops a run after too many skipped updates in a row. It reads the metrics of a step one step late."""

    def __init__(self, checkpoints: CheckpointManager, *, steps: int, limit: int) -> None:
        """`steps` is the length of the run, `limit` the number of skipped updates in a row that ends it."""
        self._limit, self._steps, self._checkpoints = limit, steps, checkpoints
        self._previous: dict[str, jax.Array] | None = None

    def allows_save(self, step: int, *, state: TrainState) -> bool:
        """False while updates are being skipped, except at the last step: the weights may be bad."""
        return step == self._steps or int(state.consecutive_skips) == 0

    def check(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics that follow `step`, and check those before. Raises a UserError at the limit."""
        previous, self._previous = self._previous, metrics
        if previous is None or int(previous["consecutive_skips"]) < self._limit:
            return
        self._checkpoints.wait()  # a save may be pending
        latest = self._checkpoints.latest
        saved = "No checkpoint was saved" if latest is None else f"The last checkpoint is of step {latest}"
        raise UserError(
            f"The last {self._limit} updates, up to step {step}, were skipped: the loss, the gradient or the update is "
            f"not finite. {saved}. Lower the learning rate, clip gradients, or try --model.compute.dtype=float32."
        )
