"""Signals are handled between steps, or end the process where there is nothing to save."""

import ctypes
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from jax.experimental import multihost_utils

from gptjax.core.errors import UserError
from gptjax.process.early_exit import stop_status
from gptjax.process.lost_signals import unwrap
from gptjax.sharding.preemption import take_jax_handler
from gptjax.supervision import signals as stop_signals
from gptjax.supervision.signals import STOP_SIGNALS, GracefulShutdown, StopRequested, list_stop_signals


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch):
    """On a machine that stands still a thread has time to speak, none ends this process, and none speaks later."""
    monkeypatch.setattr(stop_signals, "ANNOUNCE_SECONDS", 600.0)
    monkeypatch.setattr(stop_signals, "GRACE_SECONDS", 3600.0)
    yield
    for thread in threading.enumerate():
        if thread.name == "signals":
            thread.join(timeout=300)


@pytest.fixture(autouse=True)
def _without_nohup():
    """Signals that whoever started pytest has ignored, as nohup does."""
    ignored = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def wait_for_output(capfd: pytest.CaptureFixture[str], words: str) -> None:
    """The thread that listens says it."""
    found = ""
    for _ in range(6000):
        found += capfd.readouterr().out
        if words in found:
            return
        time.sleep(0.01)
    raise AssertionError(found)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_signal_is_kept_until_the_step_ends(number: signal.Signals, capfd: pytest.CaptureFixture[str]):
    previous = [signal.getsignal(one) for one in STOP_SIGNALS]
    with GracefulShutdown() as shutdown:
        shutdown.begin_training()
        assert shutdown.get_signal(1) is None
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGHUP)  # a terminal that closes sends more than one
        assert shutdown.get_signal(2) == number
        wait_for_output(capfd, f"{number.name}: saving after this step")
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == previous


def test_signal_before_training_ends_the_run_where_it_is(capfd: pytest.CaptureFixture[str]):
    with GracefulShutdown() as shutdown:
        with pytest.raises(StopRequested) as stopped:
            signal.raise_signal(signal.SIGTERM)
        shutdown.wait_for_announcement()
        assert capfd.readouterr().out.startswith("SIGTERM: stopping before training"), "said before what follows"
    assert stopped.value.number == signal.SIGTERM


def test_stop_that_a_library_drops_or_wraps_is_a_stop(monkeypatch: pytest.MonkeyPatch):
    """Errors in callbacks of the garbage collector are dropped; native modules make an ImportError of them."""
    monkeypatch.setattr(stop_signals, "REPEAT_SECONDS", 0.0)  # a long collection: nobody asks twice by our own signal

    def stop(*_: object) -> None:
        gc.callbacks.remove(stop)
        signal.raise_signal(signal.SIGTERM)

    with GracefulShutdown(), pytest.raises(StopRequested):  # noqa: PT012
        gc.callbacks.append(stop)  # under the handlers: any collection, not only the one below, runs it
        gc.collect()
        time.sleep(60)
    with pytest.raises(StopRequested), unwrap(StopRequested):
        raise ImportError from StopRequested(signal.SIGTERM)
    lost = OSError("a save that fails on the way out")
    lost.__context__ = StopRequested(signal.SIGTERM)
    with pytest.raises(OSError, match="a save that fails"), unwrap(StopRequested):
        raise lost


def test_signal_cuts_an_evaluation_short_and_nothing_else():
    with GracefulShutdown() as shutdown:
        shutdown.begin_training()
        with pytest.raises(StopRequested), shutdown.interruptible():
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested), shutdown.interruptible():
            raise AssertionError("an evaluation begins after the signal")
        assert shutdown.get_signal(1) == signal.SIGUSR1


def test_status_tells_a_scheduler_what_to_do():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)
    assert [stop_status(number) for number in numbers] == [130, 143, 129, 152, 75, 75]


def test_stop_signals_of_the_environment_are_added(monkeypatch: pytest.MonkeyPatch):
    assert list_stop_signals() == STOP_SIGNALS
    monkeypatch.setenv("GPTJAX_STOP_SIGNALS", "usr2,SIGQUIT")
    assert list_stop_signals()[-2:] == (signal.SIGUSR2, signal.SIGQUIT)
    monkeypatch.setenv("GPTJAX_REQUEUE_SIGNALS", "TERM QUIT")
    assert list_stop_signals()[-2:] == (signal.SIGUSR2, signal.SIGQUIT)
    assert [stop_status(number) for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)] == [75, 75, 130]


@pytest.mark.parametrize(
    ("name", "problem"), [("NONE", "which does not exist"), ("KILL", "cannot end a run in order"), ("STOP", "SIGSTOP")]
)
def test_stop_signal_that_cannot_be_is_refused_by_its_variable(
    name: str, problem: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GPTJAX_STOP_SIGNALS", f"USR2 {name}")
    with pytest.raises(UserError, match=f"GPTJAX_STOP_SIGNALS names .*{problem}"), GracefulShutdown():
        pass


CHILD = """
import hashlib, sys, threading, time
from gptjax.supervision import signals
signals.REPEAT_SECONDS, signals.GRACE_SECONDS = 0.0, 0.1
def tell_when_no_python_runs():
    begun = time.process_time()
    while time.process_time() < begun + 0.2:
        time.sleep(0.01)
    print("ready", flush=True)
with signals.GracefulShutdown() as shutdown:
    if sys.argv[1] == "training":
        shutdown.begin_training()
    threading.Thread(target=tell_when_no_python_runs).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in which no Python runs, as in a compilation
"""


def start_child(phase: str) -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", CHILD, phase], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize(
    ("phase", "number", "said", "status"),
    [
        ("training", signal.SIGINT, ("saving after this step; send it again", "SIGINT again: stopped at once"), 130),
        ("starting", signal.SIGUSR1, ("there is nothing to save",), 75),
    ],
)
def test_process_that_runs_no_python_ends_within_seconds(
    phase: str, number: signal.Signals, said: tuple[str, ...], status: int
):
    """At a second Ctrl-C in a long step, and at the first signal where there is nothing to save."""
    with start_child(phase) as child:
        assert child.stdout is not None
        for words in said:
            assert child.poll() is None
            child.send_signal(number)
            assert words in child.stdout.readline()
        assert child.wait(timeout=300) == status


def wait_until_heard(shutdown: GracefulShutdown) -> None:
    """The thread takes another signal once it has done with the one before."""
    assert shutdown._wakeup is not None
    signal.raise_signal(signal.SIGHUP)
    while select.select([shutdown._wakeup[0]], [], [], 0)[0]:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("names", "requeued", "status"), [("TERM TERM", "TERM", 75), ("USR1 TERM TERM", "", 143), ("INT INT", "", 130)]
)
def test_second_request_ends_the_process_at_once(
    names: str, requeued: str, status: int, monkeypatch: pytest.MonkeyPatch
):
    """A scheduler's SIGTERM that follows its warning leaves the time to save."""
    monkeypatch.setenv("GPTJAX_REQUEUE_SIGNALS", requeued)
    monkeypatch.setattr(stop_signals, "REPEAT_SECONDS", 0.0)
    ended, statuses = threading.Event(), []
    monkeypatch.setattr(os, "_exit", lambda status: (statuses.append(status), ended.set()))
    with GracefulShutdown() as shutdown:
        shutdown.begin_training()
        *first, last = (signal.Signals[f"SIG{name}"] for name in names.split())
        for number in first:
            signal.raise_signal(number)
            wait_until_heard(shutdown)
            assert statuses == []
        signal.raise_signal(last)
        assert ended.wait(timeout=300)
    assert statuses == [status]


def test_signal_ends_a_run_that_goes_back(capfd: pytest.CaptureFixture[str]):
    with GracefulShutdown() as shutdown:
        shutdown.begin_training()
        signal.raise_signal(signal.SIGUSR1)  # it waits for the end of the step
        with pytest.raises(StopRequested):
            shutdown.pause_training("while going back")
    with GracefulShutdown() as shutdown:
        shutdown.begin_training()
        shutdown.pause_training("while going back")
        with pytest.raises(StopRequested):
            signal.raise_signal(signal.SIGUSR1)
        shutdown.wait_for_announcement()
    assert "SIGUSR1: stopping while going back; there is nothing to save" in capfd.readouterr().out


def test_sighup_under_nohup_stays_ignored(monkeypatch: pytest.MonkeyPatch):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulShutdown():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_one_of_several_processes_passes_the_signal_on(monkeypatch: pytest.MonkeyPatch):
    """JAX is told of a SIGTERM, on which it makes all processes agree on a step."""
    told: list[int] = []
    monkeypatch.setattr(stop_signals, "count_processes", lambda: 2)
    monkeypatch.setattr(stop_signals, "take_jax_handler", lambda: told.append)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: step == 5)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda value: np.stack([value, value * 0]))
    with GracefulShutdown() as shutdown:
        shutdown.begin_training()
        assert shutdown.get_signal(5) == signal.SIGUSR1  # only JAX knows of it: to be started again
        signal.raise_signal(signal.SIGUSR1)
        assert (shutdown.get_signal(4), shutdown.get_signal(5)) == (None, signal.SIGUSR1)
        assert told == [signal.SIGTERM]


def test_handler_of_jax_is_taken_once():
    """Python does not know it. Its own handlers hold afterwards."""
    libc, told = ctypes.CDLL(None), list[int]()
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    of_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(told.append)
    take_jax_handler.cache_clear()
    before = libc.signal(signal.SIGTERM, ctypes.cast(of_jax, ctypes.c_void_p).value)
    try:
        tell = take_jax_handler()
        assert tell is not None
        tell(signal.SIGTERM)
        assert told == [signal.SIGTERM]
        assert take_jax_handler() is tell
        assert libc.signal(signal.SIGTERM, before) is None
    finally:
        libc.signal(signal.SIGTERM, before)
        take_jax_handler.cache_clear()


def test_other_threads_leave_handlers_alone():
    previous, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with GracefulShutdown():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [previous]
