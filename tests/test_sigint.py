"""Who hears Ctrl-C: no thread or process that is started where it is blocked, and the process itself at once."""

import signal
import subprocess
import sys
import threading

import pytest

from data_pipelines.runtime.sigint import deaf_to_ctrl_c, ending_at_ctrl_c

CHILD = """
import os, signal, threading, time
import numpy  # starts threads of its own, which the system may interrupt instead
import regex
from data_pipelines.runtime.sigint import ending_at_ctrl_c
signal.signal(signal.SIGINT, signal.default_int_handler)  # as a person's shell leaves it
with ending_at_ctrl_c():
    pass
with ending_at_ctrl_c():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    # Minutes in C, which lets other threads of Python run as a tokenizer's trainer does.
    regex.compile("(a|aa)+$").match("a" * 60 + "b", concurrent=True, timeout=300)
"""


def test_where_no_python_runs_it_ends_the_process():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=50)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "interrupted\n")


def test_afterwards_it_is_heard_as_before():
    with ending_at_ctrl_c():
        pass
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's may be to ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.set_wakeup_fd(-1) == -1


def test_what_comes_meanwhile_is_heard_afterwards():
    """Also where the system gives it to another thread, for which the main one runs the handler."""
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("afterwards"))
    try:
        for how in (signal.raise_signal, lambda number: signal.getsignal(number)(number, None)):
            with deaf_to_ctrl_c():
                how(signal.SIGINT)
                assert heard == []
            assert heard.pop() == "afterwards"
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_that_are_started_deaf_stay_so():
    masks = []
    with deaf_to_ctrl_c():
        thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, set())))
        thread.start()
    thread.join()
    assert signal.SIGINT in masks[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
