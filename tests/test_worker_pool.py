"""Results come in order, and the death of a worker is noticed."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from data_pipelines.encode import worker_pool
from data_pipelines.encode.worker_pool import map_in_processes
from gptjax.core.errors import UserError

LARGE = 2**22
"""Bytes: more than a pipe holds before it is read."""


@pytest.fixture(autouse=True)
def alarm():
    """Ends a test that waits for ever."""
    signal.alarm(120)
    yield
    signal.alarm(0)


def work(argument):
    match argument:
        case "pid":
            return os.getpid()
        case "die":
            os._exit(9)
        case "user error":
            raise UserError("no such thing")
        case "bug":
            raise ZeroDivisionError("no such thing")
        case "unpicklable":
            return threading.Lock()
        case "sleep":
            time.sleep(600)
        case bytes():
            return argument[::-1]
    return 2 * argument


def test_map_in_processes_keeps_the_order():
    arguments = [*range(20), *(bytes([i]) * LARGE for i in range(6)), "pid"]
    *results, pid = map_in_processes(work, arguments, processes=2)
    assert results == [2 * i for i in range(20)] + arguments[20:-1]
    assert pid != os.getpid()


def test_map_in_processes_takes_no_more_than_it_must():
    taken = []

    def arguments():
        for i in range(50):
            taken.append(i)
            yield i

    for finished, _ in enumerate(map_in_processes(work, arguments(), processes=1), start=1):
        assert len(taken) <= finished + worker_pool.ARGUMENTS_PER_WORKER


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("user error", UserError, "^no such thing$"),
        ("bug", ZeroDivisionError, "no such thing"),
        ("unpicklable", TypeError, "cannot pickle"),
        ("die", BrokenProcessPool, "terminated"),
    ],
)
def test_errors_in_a_worker_are_raised_in_order(argument, error, message):
    results = map_in_processes(work, [1, *[2] * 3, argument, 2], processes=1)
    assert next(results) == 2
    with pytest.raises(error, match=message):
        list(results)


def is_running(pid):
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SCRIPT = """
import os, signal
from test_worker_pool import map_in_processes, work
if __name__ == "__main__":
    results = map_in_processes(work, ["pid", "pid", *["sleep"] * 9], processes=2)
    print(next(results), next(results), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes run")
def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    places = os.pathsep.join(map(str, (Path(__file__).parent, Path(worker_pool.__file__).parents[2])))
    environment = os.environ | {"PYTHONPATH": places}
    done = subprocess.run([sys.executable, script], env=environment, stdout=subprocess.PIPE, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids))
