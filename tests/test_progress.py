"""The moving line is for people at a terminal; elsewhere a line is printed now and then."""

import io
import sys

from data_pipelines.runtime import progress
from data_pipelines.runtime.progress import Rate, moving_line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_the_line(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with moving_line("reading [b]") as show:
        show("12 documents [/b]")
    written = sys.stderr.getvalue()
    assert "12 documents [/b]" in written, "as it stands: nothing in it is taken for markup"


def test_a_line_within_another_leaves_it_be(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with moving_line("encoding") as outer:
        with moving_line("fetching") as inner:
            inner("fetching a.parquet")
            lines = progress._outer.get()
            assert [task.description for task in lines.tasks] == ["encoding", "fetching a.parquet"]
        assert [task.description for task in lines.tasks] == ["encoding"]
        outer("12 MB")
    assert progress._outer.get() is None
    assert "12 MB" in sys.stderr.getvalue()


def test_a_file_sees_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with moving_line("reading") as show:
        show("12 documents")
    assert sys.stderr.getvalue() == ""


def test_a_file_sees_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock = iter([0, 20, 31, 31, 50, 70, 70])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with moving_line("reading") as show:
        for number in range(4):
            show(f"{number} documents")
    assert sys.stderr.getvalue() == "1 documents\n3 documents\n"


def test_a_rate_is_that_of_this_run(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    assert Rate(5_000_000)(7_000_000) == 0.5
