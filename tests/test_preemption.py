"""Signals are handled between steps, and the previous handlers come back."""

import os
import signal
import threading
from typing import Any

import jax
import pytest

from gptjax.training.preemption import GracefulShutdown


def test_signal_is_kept_until_asked_for(capfd: pytest.CaptureFixture[str]):
    previous = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with GracefulShutdown() as shutdown:
        assert shutdown.get_signal(1) is None
        signal.raise_signal(signal.SIGTERM)
        assert shutdown.get_signal(2) == signal.SIGTERM
        assert "SIGTERM: saving after this step" in capfd.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == previous


def test_one_of_several_processes_passes_the_signal_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """It becomes a SIGTERM, on which JAX makes all processes agree. The second signal waits for no process."""
    raised: list[int] = []
    exits: list[int] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    monkeypatch.setattr(os, "_exit", exits.append)
    with GracefulShutdown():
        handler: Any = signal.getsignal(signal.SIGINT)
        handler(signal.SIGINT, None)
        assert "SIGINT: saving after this step" in capfd.readouterr().out
        assert (raised, exits) == ([signal.SIGTERM], [])
        with pytest.raises(KeyboardInterrupt):  # because os._exit returns here
            handler(signal.SIGINT, None)
        assert exits == [130]


def test_other_threads_leave_handlers_alone():
    previous, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with GracefulShutdown():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [previous]
