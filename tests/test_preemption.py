"""Signals are noticed between steps and put back; patience counts updates that were not made."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import pytest

from gptjax.core.errors import UserError
from gptjax.training.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.training.preemption import GracefulShutdown, NonFiniteGuard
from gptjax.training.state import TrainState


class Saved(CheckpointManager):
    """Stands for the checkpoints of a run."""

    latest = None

    def __init__(self, latest):
        self.latest, self.waited = latest, 0

    def wait(self):
        self.waited += 1


def test_a_signal_is_kept_until_it_is_asked_for_and_handlers_come_back(capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with GracefulShutdown() as signals:
        assert signals.received(1) is None
        signal.raise_signal(signal.SIGTERM)
        assert signals.received(2) == signal.SIGTERM
        assert "SIGTERM: saving after this step" in capfd.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_of_several_processes_the_one_that_hears_it_tells_the_others(capfd, monkeypatch):
    """As SIGTERM, on which they agree; the second time it waits for nobody."""
    told, left = [], []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(signal, "raise_signal", told.append)
    monkeypatch.setattr(os, "_exit", left.append)
    with GracefulShutdown() as signals:
        signals._catch(signal.SIGINT, None)
        assert "SIGINT: saving after this step" in capfd.readouterr().out
        assert (told, left) == ([signal.SIGTERM], [])
        with pytest.raises(KeyboardInterrupt):  # had it not left before
            signals._catch(signal.SIGINT, None)
        assert left == [130]


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with GracefulShutdown():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("latest", "said"), [(7, "The last checkpoint is of step 7"), (None, "No checkpoint was")])
def test_patience_ends_one_step_after_the_limit(latest, said):
    saved = Saved(latest)
    patience = NonFiniteGuard(saved, steps=100, limit=2)
    for step, consecutive_skips in enumerate([0, 1, 0, 1, 2]):
        patience.check(step, {"consecutive_skips": jnp.int32(consecutive_skips)})
    assert saved.waited == 0
    with pytest.raises(UserError, match=rf"the last 2 updates, up to step 5, .*{said}"):
        patience.check(5, {"consecutive_skips": jnp.int32(3)})
    assert saved.waited == 1


def test_nothing_is_saved_while_updates_are_skipped_except_at_the_end():
    def state(consecutive_skips):
        made = object.__new__(TrainState)
        object.__setattr__(made, "consecutive_skips", jnp.int32(consecutive_skips))
        return made

    patience = NonFiniteGuard(Saved(None), steps=10, limit=5)
    due = lambda step, consecutive_skips: patience.should_run(CheckpointConfig(every=2), step, state(consecutive_skips))
    assert [due(4, 0), due(4, 1), due(5, 0), due(10, 3)] == [True, False, False, True]
