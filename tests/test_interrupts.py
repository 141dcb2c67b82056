"""Who hears Ctrl-C: no thread or process that is started where it is blocked, and the process itself at once."""

import signal
import subprocess
import sys
import threading

from data_pipelines.interrupts import deaf_to_ctrl_c, ending_at_ctrl_c

CHILD = """
import signal
from data_pipelines.interrupts import ending_at_ctrl_c
try:
    with ending_at_ctrl_c():
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("Python was asked")
"""


def test_where_no_python_runs_it_ends_the_process():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout, child.stderr) == (-signal.SIGINT, "", "")


def test_afterwards_it_is_heard_as_before():
    before = signal.getsignal(signal.SIGINT)
    with ending_at_ctrl_c():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


def test_another_thread_leaves_it_alone():
    heard = []

    def work():
        with ending_at_ctrl_c():
            heard.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [signal.getsignal(signal.SIGINT)]


def test_threads_that_are_started_deaf_stay_so():
    masks = []
    with deaf_to_ctrl_c():
        thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, set())))
        thread.start()
    thread.join()
    assert signal.SIGINT in masks[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
