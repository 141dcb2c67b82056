"""Signals are noticed between steps and put back; patience counts updates that were not made."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import pytest

from gptjax.checkpoint import Checkpoint, Checkpoints
from gptjax.errors import UserError
from gptjax.state import TrainState
from gptjax.stopping import Patience, Signals


class Saved(Checkpoints):
    """Stands for the checkpoints of a run."""

    latest = None

    def __init__(self, latest):
        self.latest, self.waited = latest, 0

    def wait(self):
        self.waited += 1


def test_a_signal_is_kept_until_it_is_asked_for_and_handlers_come_back(capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
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
    with Signals() as signals:
        signals._catch(signal.SIGINT, None)
        assert "SIGINT: saving after this step" in capfd.readouterr().out
        assert (told, left) == ([signal.SIGTERM], [])
        with pytest.raises(KeyboardInterrupt):  # had it not left before
            signals._catch(signal.SIGINT, None)
        assert left == [130]


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("latest", "said"), [(7, "The last checkpoint is of step 7"), (None, "No checkpoint was")])
def test_patience_ends_one_step_after_the_limit(latest, said):
    saved = Saved(latest)
    patience = Patience(saved, steps=100, limit=2)
    for step, streak in enumerate([0, 1, 0, 1, 2]):
        patience.check(step, {"streak": jnp.int32(streak)})
    assert saved.waited == 0
    with pytest.raises(UserError, match=rf"the last 2 updates, up to step 5, .*{said}"):
        patience.check(5, {"streak": jnp.int32(3)})
    assert saved.waited == 1


def test_nothing_is_saved_while_updates_are_skipped_except_at_the_end():
    def state(streak):
        made = object.__new__(TrainState)
        object.__setattr__(made, "streak", jnp.int32(streak))
        return made

    patience = Patience(Saved(None), steps=10, limit=5)
    due = lambda step, streak: patience.due(Checkpoint(every=2), step, state(streak))
    assert [due(4, 0), due(4, 1), due(5, 0), due(10, 3)] == [True, False, False, True]
