"""The progress line is for a terminal; elsewhere a line is printed now and then."""

import io
import sys
from types import SimpleNamespace

import pytest

from data_pipelines.runtime import progress
from data_pipelines.runtime.progress import print_notes, progress_line
from gptjax.process.progress import ReadProgress


class ConsoleProgress(io.StringIO):
    def isatty(self):
        return True


def test_progress_line_on_a_terminal_shows_text_without_markup(monkeypatch):
    monkeypatch.setattr(sys, "stderr", ConsoleProgress())
    monkeypatch.setenv("TERM", "xterm")
    with progress_line("reading [b]") as show:
        show("12 documents [/b]")
    assert "12 documents [/b]" in sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_progress_line_in_a_file_prints_soon_and_then_more_seldom(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    times = iter([0, 4, 5, 14, 15, 34, 36, 65, 67])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with progress_line("reading") as show:
        for number in range(8):
            show(f"{number} documents")
    lines = sys.stderr.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert lines == ["1 documents (5 s)", "3 documents (15 s)", "5 documents (36 s)", "7 documents (67 s)"]


def test_long_reads_say_how_far_they_are(capsys: pytest.CaptureFixture[str]):
    times = iter([0.0, 10.0, 21.0, 30.0, 45.0])
    progress = ReadProgress("data/books", 4 * 10**9, clock=lambda: next(times))
    for _ in range(4):
        progress.add(10**9)
    assert capsys.readouterr().err.splitlines() == [
        "data/books: 2.0 of 4.0 GB read, to see that it is whole",
        "data/books: 4.0 of 4.0 GB read, to see that it is whole",
    ]


def test_print_notes_replaces_unprintable_characters(capsys):
    print_notes(["a\x1b[31m", "b"])
    assert capsys.readouterr().out == "note: a\ufffd[31m\nnote: b\n"
