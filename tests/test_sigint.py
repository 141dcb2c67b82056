"""Ctrl-C: blocked for threads and processes that start inside the block, heard while no Python runs."""

import signal
import subprocess
import sys
import threading

import pytest

from data_pipelines.runtime.sigint import block_sigint, call_interruptibly

CHILD = """
import os, signal, sys, threading, time
import numpy  # starts threads that the system may interrupt instead
import regex
from data_pipelines.runtime.sigint import call_interruptibly
from gptjax.core.errors import exit_on_user_error
signal.signal(signal.SIGINT, signal.default_int_handler)  # as a shell leaves it
def interrupt_when_no_python_runs():
    begun = time.process_time()
    while time.process_time() < begun + 0.2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
def match():  # minutes in C without the interpreter's lock, as in the trainer of a tokenizer
    threading.Thread(target=interrupt_when_no_python_runs).start()
    regex.compile("(a|aa)+$").match("a" * 60 + "b", concurrent=True, timeout=3000)
with exit_on_user_error():
    call_interruptibly(match)
"""


def test_call_interruptibly_ends_while_no_python_runs():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=300, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "interrupted\n")


def test_call_interruptibly_returns_or_raises():
    assert call_interruptibly(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(ZeroDivisionError):
        call_interruptibly(lambda: 1 // 0)


def test_block_sigint_delays_the_signal():
    """Also where the system delivers it to another thread and the main thread runs the handler."""
    received = []
    before = signal.signal(signal.SIGINT, lambda *_: received.append("afterwards"))
    try:
        for send in (signal.raise_signal, lambda number: signal.getsignal(number)(number, None)):  # pyright: ignore[reportCallIssue]
            with block_sigint():
                send(signal.SIGINT)
                assert received == []
            assert received.pop() == "afterwards"
    finally:
        signal.signal(signal.SIGINT, before)


def test_block_sigint_is_inherited_by_threads():
    masks = []
    with block_sigint():
        thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, set())))
        thread.start()
    thread.join()
    assert signal.SIGINT in masks[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
