"""A run ends after too many skipped updates in a row, and saves nothing meanwhile."""

import math
from typing import Any

import jax.numpy as jnp
import pytest

from gptjax.checkpoints.checkpoint import CheckpointManager
from gptjax.core.errors import UserError
from gptjax.supervision.divergence import Diverged, DivergenceGuard, RollbackConfig
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
    guard = DivergenceGuard(checkpoints, steps=100, limit=2)
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
    guard = DivergenceGuard(FakeCheckpoints(None), steps=10, limit=5)
    assert guard.allows_save(step, state=state) == wanted


def watch(guard: DivergenceGuard, losses: list[float], skips: list[int] | None = None) -> Diverged | None:
    """The metrics of updates 1, 2, …, as the loop gives them to a guard."""
    for step, loss in enumerate([*losses, 0.0]):
        row = {"loss": jnp.float32(loss), "consecutive_skips": jnp.int32(skips[step] if skips and loss else 0)}
        try:
            guard.check(step, row)
        except Diverged as divergence:
            return divergence
    return None


def make_guard(**changes: Any) -> DivergenceGuard:
    wanted = {"steps": 1000, "limit": 3, "rollback": RollbackConfig(2, spike_factor=2.0)} | changes
    return DivergenceGuard(FakeCheckpoints(None), **wanted)


def test_spike_names_the_last_checkpoint_whose_next_step_was_good():
    divergence = watch(make_guard(), [2.0] * 30 + [3.9, 4.1])
    assert divergence is not None
    assert (divergence.step, divergence.last_good, divergence.rollbacks) == (32, 30, 1)
    assert divergence.reason == "loss 4.1000, more than 2 times its median 2.0000"


def test_spike_is_found_after_twenty_finite_losses_of_any_process():
    losses = [2.0] * 19 + [9.0]
    assert watch(make_guard(), losses) is None
    assert watch(make_guard(losses=[2.0, math.nan]), losses) is not None
    assert watch(make_guard(), [2.0] * 30 + [math.nan, math.inf]) is None, "the count of skips is for these"


def test_skipped_updates_go_back_to_before_the_first_of_them():
    divergence = watch(make_guard(), [2.0] * 9, [0, 0, 0, 0, 1, 2, 3, 4, 5])
    assert divergence is not None
    assert (divergence.step, divergence.last_good) == (7, 3)


def test_run_ends_when_it_went_back_often_enough_or_never_learned():
    with pytest.raises(UserError, match=r"were skipped after going back 2 times: "):
        watch(make_guard(rollbacks=2), [2.0] * 9, [0, 0, 0, 0, 1, 2, 3, 4, 5])
    with pytest.raises(UserError, match="were skipped: "):
        watch(make_guard(), [2.0] * 4, [1, 2, 3, 4])


@pytest.mark.parametrize("words", [{"limit": -1}, {"limit": 1, "spike_factor": 1.0}, {"spike_factor": 2.0}])
def test_impossible_rollbacks_are_refused(words: dict):
    with pytest.raises(UserError, match=r"rollback\."):
        RollbackConfig(**words)
