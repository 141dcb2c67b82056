"""A command that fails is started again, a limited number of times without progress."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from gptjax.process import restarts
from gptjax.process.restarts import should_restart


@pytest.mark.parametrize("status", [1, 75, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS])
def test_failure_is_restarted_unless_a_signal_asked_for_the_end(status: int):
    assert should_restart(status, was_asked=False)
    assert not should_restart(status, was_asked=True)


@pytest.mark.parametrize("status", [0, 2, 130, 143, 129, 152, -signal.SIGTERM, -signal.SIGINT])
def test_success_a_users_error_and_an_end_by_signal_are_not_restarted(status: int):
    assert not should_restart(status, was_asked=False)


PARENT = """
import sys
from pathlib import Path
from gptjax.process.restarts import run_with_restarts
steps = Path(sys.argv[1])
read = lambda: int(steps.read_text()) if steps.exists() else None
words, pause = [sys.executable, "-c", sys.argv[2], sys.argv[1]], float(sys.argv[3])
again = [*words, "again"]
sys.exit(run_with_restarts(words, again=again, limit=2, find_step=read, pause=pause))
"""
CRASH = "import os; print('start', flush=True); os.abort()"
"""Without any progress."""
LEARN = """
import os, sys
from pathlib import Path
steps = Path(sys.argv[1])
step = int(steps.read_text()) + 1 if steps.exists() else 1
steps.write_text(str(step))
print("start", flush=True)
sys.exit(0 if step == 7 else 75)
"""
"""A step each time, and complete after seven."""
FALL = """
import sys
from pathlib import Path
steps = Path(sys.argv[1])
step = int(steps.read_text()) - 1 if steps.exists() else 9
steps.write_text(str(step))
print("start", *sys.argv[2:], flush=True)
sys.exit(1)
"""
"""Each time the newest checkpoint is damaged."""
WAIT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("start", flush=True)
time.sleep(300)
"""


def start_parent(child: str, directory: Path, *, pause: float = 0.0) -> subprocess.Popen:
    words = [sys.executable, "-c", PARENT, str(directory / "steps"), child, str(pause)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_crash_loop_ends_after_the_limit(tmp_path: Path):
    said, errors = start_parent(CRASH, tmp_path).communicate(timeout=300)
    assert said.count("start") == 3
    assert "restarts: the run ended by SIGABRT; nothing is saved yet. Restart 1 of 2" in errors
    assert "It is not restarted: 2 restarts in a row have saved no newer step" in errors


def test_progress_resets_the_count(tmp_path: Path):
    parent = start_parent(LEARN, tmp_path)
    said, errors = parent.communicate(timeout=300)
    assert (parent.returncode, said.count("start")) == (0, 7)
    assert errors.count("Restart 1 of 2") == 6


def test_signal_reaches_the_child_and_ends_the_restarts(tmp_path: Path):
    with start_parent(WAIT, tmp_path) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "start\n"
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=300) == 75
        assert parent.stdout.read() == ""


def test_older_step_is_no_progress_and_restarts_have_their_own_words(tmp_path: Path):
    said, errors = start_parent(FALL, tmp_path).communicate(timeout=300)
    assert said.splitlines() == ["start", "start again", "start again"]
    assert "step 7 is saved. It is not restarted" in errors


def test_signal_ends_the_pause_between_two_starts(tmp_path: Path):
    with start_parent(CRASH, tmp_path, pause=300.0) as parent:
        assert parent.stderr is not None
        assert "Restart 1 of 2 in 300 s" in parent.stderr.readline()
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=300) == 143


def test_signal_during_the_start_of_a_child_reaches_it(monkeypatch: pytest.MonkeyPatch):
    previous = {number: signal.getsignal(number) for number in restarts._SIGNALS}
    start = subprocess.Popen

    def start_late(*words: Any, **options: Any) -> subprocess.Popen:
        child = start(*words, **options)
        signal.raise_signal(signal.SIGTERM)  # the parent does not know the child yet
        return child

    monkeypatch.setattr(subprocess, "Popen", start_late)
    try:
        words = [sys.executable, "-S", "-c", "import time; time.sleep(300)"]
        assert restarts.run_with_restarts(words, limit=2, find_step=lambda: None) == 143
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def test_signals_of_the_environment_reach_the_child(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GPTJAX_STOP_SIGNALS", "XFSZ")
    monkeypatch.setenv("GPTJAX_REQUEUE_SIGNALS", "QUIT TERM")
    assert restarts._list_signals() == [*restarts._SIGNALS, signal.SIGXFSZ, signal.SIGQUIT]
    monkeypatch.setenv("GPTJAX_STOP_SIGNALS", "NONE")  # the child reports it
    assert restarts._list_signals() == [*restarts._SIGNALS, signal.SIGQUIT]


def test_child_whose_parent_was_killed_during_its_imports_ends(monkeypatch: pytest.MonkeyPatch):
    sent: list[int] = []
    monkeypatch.setenv(restarts.SUPERVISED_VARIABLE, "1.0")
    monkeypatch.setattr(restarts, "ctypes", MagicMock())  # this process keeps its own parent
    monkeypatch.setattr(restarts.signal, "raise_signal", sent.append)
    restarts.follow_parent()
    assert sent == []
    monkeypatch.setattr(restarts, "_PARENT", -1)
    restarts.follow_parent()
    assert sent == ([signal.SIGTERM] if sys.platform == "linux" else [])


@pytest.mark.slow
def test_child_ends_with_a_parent_that_is_killed(tmp_path: Path):
    begin = "from gptjax.process.restarts import follow_parent; follow_parent(); print(os.getpid(), "
    follower = WAIT.replace("print(", begin)
    with start_parent(f"import os\n{follower}", tmp_path) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline().split()[0])
        parent.kill()
    for _ in range(3000):
        try:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    raise AssertionError("the child goes on")
