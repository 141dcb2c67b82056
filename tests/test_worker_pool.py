"""Results come in order, and the death of a worker is noticed whenever it comes."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.encode import worker_pool
from data_pipelines.encode.worker_pool import WorkerDied, Workers, map_in_processes
from gptjax.core.errors import UserError

LARGE = 2**23
"""Bytes: more than a pipe holds before it is read."""


@pytest.fixture(autouse=True)
def alarm():
    """Ends a test that waits for ever."""
    signal.alarm(600)
    yield
    signal.alarm(0)


class Work:
    """`size` is that of the function itself, as of a tokenizer."""

    def __init__(self, size=0):
        self.ballast = bytes(size)

    def __call__(self, argument):
        match argument:
            case "pid":
                return os.getpid()
            case "modules":
                return [*sys.modules]
            case "flags":
                return sys.flags.isolated, sys.flags.optimize, sys.warnoptions, sys._xoptions
            case "die":
                os._exit(9)
            case "user error":
                raise UserError("no such thing")
            case "bug":
                raise ZeroDivisionError("no such thing")
            case "unpicklable":
                return threading.Lock()
            case "panic":
                raise BaseException("a panic in Rust")
            case "sleep":
                time.sleep(600)
            case bytes():
                return argument[::-1]
        return 2 * argument


@pytest.mark.parametrize(("size", "processes"), [(0, 1), (LARGE, 3)])
def test_map_in_processes_keeps_the_order(size, processes):
    arguments = [*range(20), *["pid"] * 20]
    results = list(map_in_processes(Work(size), arguments, processes=processes))
    assert results[:20] == [2 * i for i in range(20)]
    assert len(set(results[20:])) == processes
    assert os.getpid() not in results


def test_workers_that_started_ahead_do_the_work():
    with Workers() as workers:
        workers.start_ahead(5, "no.such.module", "this", processes=2, pool_size=6)
        assert not workers._running, "little work needs none"
        workers.start_ahead(6, "no.such.module", "this", processes=2, pool_size=6)
        started = {process.pid for process, _ in workers._running}
        assert len(started) == 2
        found: list[Any] = list(map_in_processes(Work(), ["pid"] * 4 + ["modules"] * 4, processes=2, workers=workers))
        assert {*found[:4]} == started
        assert all("this" in modules for modules in found[4:])
        assert not workers._running, "they have ended with their work"


def test_workers_without_work_end_with_their_context():
    with Workers() as workers:
        workers.start(2)
        processes = [process for process, _ in workers._running]
    assert all(process.returncode is not None for process in processes)


def test_map_in_processes_takes_no_more_than_it_must():
    taken = []

    def arguments():
        for i in range(50):
            taken.append(i)
            yield i

    for finished, _ in enumerate(map_in_processes(Work(), arguments(), processes=2), start=1):
        assert len(taken) <= finished + 2 * worker_pool.ARGUMENTS_PER_WORKER


def test_large_arguments_and_results_pass_each_other():
    arguments = [bytes([i]) * LARGE for i in range(12)]
    assert list(map_in_processes(Work(), arguments, processes=2)) == arguments


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("user error", UserError, "^no such thing$"),
        ("bug", RuntimeError, "In a worker process:(.|\n)*in __call__(.|\n)*ZeroDivisionError: no such thing"),
        ("unpicklable", RuntimeError, "cannot pickle"),
        ("panic", RuntimeError, "BaseException: a panic in Rust"),
    ],
)
def test_errors_in_a_worker_are_raised_in_order(argument, error, message):
    results = map_in_processes(Work(), [1, argument, 2], processes=2)
    assert next(results) == 2
    with pytest.raises(error, match=message):
        next(results)


class Unloadable:
    def __reduce__(self):
        return int, ("no number",)


def test_a_function_that_cannot_be_loaded_is_an_error():
    with pytest.raises(RuntimeError, match="invalid literal"):
        list(map_in_processes(Unloadable(), [1], processes=1))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("processes", [1, 2])
def test_death_at_work_is_noticed(processes):
    with pytest.raises(WorkerDied):
        list(map_in_processes(Work(), [1, 2, "die", 3, *range(20)], processes=processes))


@pytest.mark.parametrize("moment", ["waiting", "sending"])
def test_death_while_waiting_or_sending_is_noticed(moment):
    def arguments():
        yield from ["pid", "pid"]
        if moment == "sending":
            yield from [bytes(LARGE)] * 6
        while len(pids) < 2:
            yield 0
        time.sleep(0.5)  # nobody reads what the workers send
        os.kill(pids[0], signal.SIGKILL)
        yield from range(40)

    pids = []
    results = map_in_processes(Work(), arguments(), processes=2)
    pids += [next(results), next(results)]
    with pytest.raises(WorkerDied):
        list(results)


def test_death_before_the_start_is_noticed(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(WorkerDied):
        list(map_in_processes(Work(LARGE), range(20), processes=2))


class FullMemory:
    """Stands for a pipe that brings more than there is memory for."""

    def recv_bytes(self):
        raise MemoryError


def test_a_worker_that_cannot_receive_exits(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(MemoryError):
        worker_pool._receive(FullMemory(), queue.SimpleQueue())  # pyright: ignore[reportArgumentType]
    assert codes == [1]


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes run")


def is_running(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pids):
    deadline = time.monotonic() + 300
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_running, pids))


@needs_proc
def test_workers_are_killed_when_the_iterator_is_closed():
    results = map_in_processes(Work(), ["pid", "pid", *["sleep"] * 6], processes=2)
    pids = [next(results), next(results)]
    os.kill(pids[0], signal.SIGSTOP)  # pyright: ignore[reportArgumentType]
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert wait_for_end(pids)


SCRIPT = """
import os, signal
from test_worker_pool import Work, map_in_processes
results = map_in_processes(Work(), ["pid", "pid", *["sleep"] * 6], processes=2)
print(next(results), next(results), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""It has no guard: workers do not run the script that prepares."""


@needs_proc
def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    places = os.pathsep.join(map(str, (Path(__file__).parent, Path(worker_pool.__file__).parents[2])))
    environment = os.environ | {"PYTHONPATH": places}
    done = subprocess.run([sys.executable, script], env=environment, stdout=subprocess.PIPE, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL
    assert len(pids) == 2
    assert wait_for_end(pids)


OPTIONS = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from test_worker_pool import Work, map_in_processes
flags = lambda: (sys.flags.isolated, sys.flags.optimize, sys.warnoptions, sys._xoptions)
here, (there,) = flags(), map_in_processes(Work(), ["flags"], processes=1)
print(here == there, there)
"""


@pytest.mark.parametrize("options", [[], ["-I", "-O", "-Werror", "-Xutf8", "-Xnodebugranges"]])
def test_workers_have_the_options_of_their_parent_and_import_nothing_of_the_working_directory(tmp_path, options):
    for name in ("json", "_json", "site", "threading"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(7)")
    script = tmp_path / "scripts" / "script.py"
    script.parent.mkdir()
    script.write_text(OPTIONS)
    places = ":".join(map(str, (Path(__file__).parent, Path(worker_pool.__file__).parents[2])))
    command = [sys.executable, *options, script, places]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("True"), done.stdout + done.stderr
