"""A run that makes no progress ends with a line, the stacks of all threads in a file, and status 75."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptjax.process import process_end
from gptjax.process.progress import note_progress
from gptjax.supervision.watchdog import COLLECTIVE_SECONDS, LONG_FACTOR, Watchdog


def count_looks(watchdog: Watchdog) -> int:
    """The look, one each second, that ends the run."""
    return next(n for n in range(1, 10_000) if watchdog.look(1.0))


@pytest.mark.parametrize(("activity", "factor"), [("data", 1), ("evaluate", LONG_FACTOR), ("checkpoint", LONG_FACTOR)])
def test_watchdog_waits_longer_for_what_is_long(activity: str, factor: int):
    watchdog = Watchdog(60.0, resume="command")
    assert count_looks(watchdog) == LONG_FACTOR * 60  # the start
    for step in (1, 2):
        watchdog.begin_step(step)
        assert count_looks(watchdog) == 1 + (LONG_FACTOR if step == 1 else 1) * 60
    with watchdog.doing(activity):
        assert count_looks(watchdog) == 1 + factor * 60
    assert count_looks(watchdog) == 1 + 60
    watchdog.finish()
    assert count_looks(watchdog) == 1 + LONG_FACTOR * 60


def test_watchdog_names_the_process_what_it_waits_for_and_the_command():
    watchdog = Watchdog(10.0, resume="gptjax train x", process="process 1 of 2", several=True)
    watchdog.begin_step(1)
    watchdog.begin_step(8)
    watchdog.look(1.0)
    for _ in range(10):
        assert watchdog.look(1.0) is None
    with watchdog.doing("data"):
        watchdog.look(1.0)
        said = [watchdog.look(1.0) for _ in range(10)]
    assert said[-1] == (
        "process 1 of 2 has made no progress for 10.0 s after step 8. It waits for data.\nResume with: gptjax train x"
    )
    # Whoever waits for others ends later than whoever keeps them waiting.
    assert count_looks(watchdog) == 1 + 10 + COLLECTIVE_SECONDS
    assert "for the devices or another process." in (watchdog.look(1.0) or "")


def test_watchdog_does_not_count_the_time_in_which_the_process_was_stopped():
    watchdog = Watchdog(60.0, resume="", poll=5.0)
    watchdog.begin_step(1)
    watchdog.begin_step(2)
    assert [watchdog.look(5.0), watchdog.look(3600.0), watchdog.look(5.0)] == [None] * 3


def test_parts_of_long_work_before_the_first_step_are_progress():
    watchdog = Watchdog(60.0, resume="command")
    for _ in range(3):
        assert not any(watchdog.look(1.0) for _ in range(200))
        note_progress()
    assert "raise --hang-timeout" in next(said for _ in range(1000) if (said := watchdog.look(1.0)))


def test_watchdog_without_a_limit_starts_no_thread():
    before, started = set(threading.enumerate()), lambda: set(threading.enumerate()) - before
    with Watchdog(None, resume=""):
        assert started() == set()
    with Watchdog(60.0, resume=""):
        assert [thread.name for thread in started()] == ["watchdog"]


HANGING = """
import sys
from pathlib import Path
from gptjax.process.diagnosis import keep_reports_in
from gptjax.supervision import signals
from gptjax.supervision.watchdog import Watchdog
directory = Path(sys.argv[1])
keep_reports_in(directory)
signals.REPEAT_SECONDS = 0.0
def read_forever():
    print("reading", flush=True)
    with watchdog.doing("data"):
        (directory / "pipe").open().read()
with signals.GracefulShutdown() as shutdown, Watchdog(float(sys.argv[2]), resume="the same command") as watchdog:
    shutdown.begin_training()
    watchdog.begin_step(1)
    read_forever()
"""


def start_hanging(directory: Path, seconds: float) -> subprocess.Popen:
    """A process whose main thread reads a pipe into which nobody writes."""
    os.mkfifo(directory / "pipe")
    words = [sys.executable, "-c", HANGING, str(directory), str(seconds)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "reading\n"
    return child


def test_read_that_never_returns_ends_with_stacks_in_a_file(tmp_path: Path):
    with start_hanging(tmp_path, 0.4) as child:
        assert child.stdout is not None
        said = child.stdout.read()  # `communicate` would pass over what came together with the first line
        assert child.wait(timeout=300) == 75, said
    (file,) = tmp_path.glob("stacks-*.txt")
    first, second, third = said.splitlines()
    assert first.startswith("error: this process has made no progress for 0.")
    assert first.endswith("after step 1. It waits for data.")
    assert second == "  Resume with: the same command"
    assert str(file) in third
    assert "in read_forever" in file.read_text()


def test_message_comes_before_a_disk_that_takes_no_stacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    said: list[str] = []
    monkeypatch.setattr(process_end, "write_report", lambda name, write: said.append(capsys.readouterr().err))
    process_end._print_error("no progress\nResume", has_stacks=True)
    assert said == ["error: no progress\n  Resume\n"]


@pytest.mark.parametrize(("status", "reports"), [(2, []), (75, ["stacks"])])
def test_mistake_of_a_person_leaves_no_stacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int, reports: list[str]
):
    written: list[str] = []
    monkeypatch.setattr(process_end, "_ending", threading.Lock())
    monkeypatch.setattr(process_end, "write_report", lambda name, write: written.append(name))
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        process_end.end_process("why", status=status)
    assert (written, capsys.readouterr().err) == (reports, "error: why\n")


@pytest.mark.slow
def test_two_signals_end_a_read_that_never_returns(tmp_path: Path):
    with start_hanging(tmp_path, 3600.0) as child:
        assert child.stdout is not None
        child.send_signal(signal.SIGTERM)
        assert "saving after this step" in child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=300) == 143
