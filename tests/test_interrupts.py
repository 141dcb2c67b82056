"""Who hears Ctrl-C: no thread or process that is started where it is blocked, and the process itself at once."""

import signal
import subprocess
import sys
import threading

import pytest

from data_pipelines.interrupts import deaf_to_ctrl_c, ending_at_ctrl_c

CHILD = """
import os, signal, time
from data_pipelines.interrupts import ending_at_ctrl_c
with ending_at_ctrl_c():
    pass
try:
    with ending_at_ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
except KeyboardInterrupt:
    print("Python was asked")
"""


def test_where_no_python_runs_it_ends_the_process():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=50)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "interrupted\n")


def test_afterwards_it_is_heard_as_before():
    with ending_at_ctrl_c():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_threads_that_are_started_deaf_stay_so():
    masks = []
    with deaf_to_ctrl_c():
        thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, set())))
        thread.start()
    thread.join()
    assert signal.SIGINT in masks[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
