"""A run ends after too many skipped updates in a row, and saves nothing meanwhile."""

import jax.numpy as jnp
import pytest

from gptjax.core.errors import UserError
from gptjax.training.checkpoint import CheckpointManager
from gptjax.training.nonfinite import NonFiniteGuard
from gptjax.training.state import TrainState


class FakeCheckpoints(CheckpointManager):
    """Stands in for the checkpoints of a run."""

    def __init__(self, latest: int | None):
        self._latest, self.waits = latest, 0

    @property
    def latest(self) -> int | None:
        return self._latest

    def wait(self) -> None:
        self.waits += 1


@pytest.mark.parametrize(("latest", "words"), [(7, "The last checkpoint is of step 7"), (None, "No checkpoint was")])
def test_guard_stops_one_step_after_the_limit(latest: int | None, words: str):
    checkpoints = FakeCheckpoints(latest)
    guard = NonFiniteGuard(checkpoints, steps=100, limit=2)
    for step, consecutive_skips in enumerate([0, 1, 0, 1, 2]):
        guard.check(step, {"consecutive_skips": jnp.int32(consecutive_skips)})
    assert checkpoints.waits == 0
    with pytest.raises(UserError, match=rf"The last 2 updates, up to step 5, .*{words}"):
        guard.check(5, {"consecutive_skips": jnp.int32(3)})
    assert checkpoints.waits == 1


@pytest.mark.parametrize(("step", "skips", "wanted"), [(4, 0, True), (4, 1, False), (10, 3, True)])
def test_guard_saves_during_skips_only_at_the_end(step: int, skips: int, wanted: bool):
    state = object.__new__(TrainState)
    object.__setattr__(state, "consecutive_skips", jnp.int32(skips))
    guard = NonFiniteGuard(FakeCheckpoints(None), steps=10, limit=5)
    assert guard.allows_save(step, state=state) == wanted
