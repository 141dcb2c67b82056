"""Workers apply a function whatever dies, and when."""

import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from data_pipelines.encode import worker_pool as module
from data_pipelines.encode.worker_pool import WorkerDied, Workers

LARGE = 2**23
"""More than a pipe takes before somebody reads."""


@pytest.fixture(autouse=True)
def never_wait_for_ever():
    signal.alarm(120)
    yield
    signal.alarm(0)


class Odd(Exception):
    """Can be pickled, but not be made again."""

    def __init__(self, left, right):
        super().__init__(f"{left} and {right}")


class Work:
    """`size` is that of the function itself, as of a tokenizer."""

    def __init__(self, size=0):
        self.ballast = bytes(size)

    def __call__(self, argument):
        match argument:
            case "pid":
                return os.getpid()
            case "die":
                os._exit(9)
            case "raise":
                raise ValueError("no such thing")
            case "unpicklable result":
                return threading.Lock()
            case "unpicklable error":
                raise ValueError("held by", threading.Lock())
            case "odd":
                raise Odd("left", "right")
            case "panic":
                raise BaseException("what a library in Rust raises")
            case "sleep":
                time.sleep(600)
            case bytes():
                return argument[::-1]
        return 2 * argument


@pytest.mark.parametrize("size", [0, LARGE])
@pytest.mark.parametrize("processes", [1, 3])
def test_results_are_those_of_their_arguments(size, processes):
    with Workers(Work(size), processes) as workers:
        results = [workers.submit(i) for i in range(20)]
        assert [result() for result in reversed(results)] == [2 * i for i in reversed(range(20))]
        assert results[3]() == 6, "as often as one likes"
        pids = {result() for result in [workers.submit("pid") for _ in range(20)]}
        assert 0 < len(pids) <= processes
        assert os.getpid() not in pids


def test_large_arguments_and_results_meet_on_their_way():
    with Workers(Work(), 2) as workers:
        results = [workers.submit(bytes([i]) * LARGE) for i in range(8)]
        assert all(result() == bytes([i]) * LARGE for i, result in enumerate(results))


def test_what_the_function_raises_is_raised_with_its_place():
    with Workers(Work(), 2) as workers:
        results = [workers.submit(argument) for argument in (1, "raise", 2)]
        assert [results[0](), results[2]()] == [2, 4]
        with pytest.raises(ValueError, match="no such thing") as caught:
            results[1]()
        assert "in __call__" in "".join(caught.value.__notes__)
        assert workers.submit(3)() == 6, "and nothing else is wrong"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("unpicklable result", "cannot pickle"),
        ("unpicklable error", "ValueError: .*held by"),
        ("odd", "Odd: left and right"),
        ("panic", "BaseException: what a library in Rust raises"),
    ],
)
def test_what_cannot_be_sent_is_told_in_words(argument, message):
    with Workers(Work(), 1) as workers:
        with pytest.raises((RuntimeError, TypeError), match=message) as caught:
            workers.submit(argument)()
        assert "in __call__" in "".join(caught.value.__notes__) or argument == "unpicklable result"
        assert workers.submit(3)() == 6


class Unloadable:
    def __reduce__(self):
        return int, ("no number",)


def test_a_function_that_cannot_be_loaded_is_told():
    with Workers(Unloadable(), 1) as workers:
        for _ in range(2):
            with pytest.raises(ValueError, match="invalid literal"):
                workers.submit(1)()


def check_died(workers, submitted):
    with pytest.raises(WorkerDied):
        [result() for result in submitted()]
    with pytest.raises(WorkerDied):
        [workers.submit(i)() for i in range(20)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_that_dies_at_work_is_told(processes):
    with Workers(Work(), processes) as workers:
        check_died(workers, lambda: [workers.submit(argument) for argument in (1, 2, "die", 3, 4)])


@pytest.mark.parametrize("kill", [0, 1])
def test_a_worker_that_dies_while_it_sends_is_told(kill):
    """The other one lives on, and would hold the end of a queue that they share."""
    with Workers(Work(), 2) as workers:
        for result in [workers.submit(i) for i in range(4)]:
            result()
        both = list(workers._workers.values())
        while not all(worker.ready for worker in both):
            workers._attend(block=True)
        results = [workers.submit(bytes(LARGE)) for _ in range(4)]
        time.sleep(1)  # nobody reads
        assert all(worker.results for worker in both)
        os.kill(both[kill].process.pid, signal.SIGKILL)
        check_died(workers, lambda: results)


class NoRoom:
    """Stands for a pipe that brings more than there is memory for."""

    def recv_bytes(self):
        raise MemoryError


def test_a_worker_that_cannot_receive_ends(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with pytest.raises(MemoryError):
        module._receive(NoRoom(), queue.SimpleQueue())
    assert left == [1]


def test_a_worker_that_dies_while_it_waits_is_told():
    with Workers(Work(), 1) as workers:
        os.kill(workers.submit("pid")(), signal.SIGKILL)
        check_died(workers, lambda: [workers.submit(1)])


def test_workers_that_die_before_they_have_started_are_told():
    resource_tracker.ensure_running()  # it would be started by the same executable
    multiprocessing.set_executable(shutil.which("false"))
    try:
        with Workers(Work(LARGE), 2) as workers:
            check_died(workers, lambda: [workers.submit(i) for i in range(5)])
    finally:
        multiprocessing.set_executable(sys.executable)


def alive(pid):
    """Whether a process runs; one that has ended may wait for somebody to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids):
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes run")
def test_nobody_is_left_at_the_end_whatever_they_do():
    with Workers(Work(), 3) as workers:
        for _ in range(9):
            workers.submit("sleep")
        workers._attend(block=True)
        pids = [worker.process.pid for worker in workers._workers.values()]
        assert len(pids) == 3
        os.kill(pids[0], signal.SIGSTOP)
    assert gone(pids)


SCRIPT = """
import os, signal
from test_workers import Work, Workers
if __name__ == "__main__":
    with Workers(Work(), 2) as workers:
        [result() for result in [workers.submit(i) for i in range(20)]]
        pids = [worker.process.pid for worker in workers._workers.values()]
        for _ in range(6):
            workers.submit("sleep")
        print(*pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes run")
def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    places = os.pathsep.join(map(str, (Path(__file__).parent, Path(module.__file__).parents[1])))
    found = subprocess.run([sys.executable, script], env=os.environ | {"PYTHONPATH": places}, stdout=subprocess.PIPE)
    pids = [int(word) for word in found.stdout.split()]
    assert found.returncode == -signal.SIGKILL
    assert pids
    assert gone(pids)
