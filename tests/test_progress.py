"""The progress line is for a terminal; elsewhere a line is printed now and then."""

import io
import sys

from data_pipelines.runtime import progress
from data_pipelines.runtime.progress import print_notes, progress_line


class ConsoleProgress(io.StringIO):
    def isatty(self):
        return True


def test_progress_line_on_a_terminal_shows_text_without_markup(monkeypatch):
    monkeypatch.setattr(sys, "stderr", ConsoleProgress())
    monkeypatch.setenv("TERM", "xterm")
    with progress_line("reading [b]") as show:
        show("12 documents [/b]")
    assert "12 documents [/b]" in sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_progress_line_in_a_file_prints_every_30_seconds(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    times = iter([0, 20, 31, 31, 50, 70, 70])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with progress_line("reading") as show:
        for number in range(4):
            show(f"{number} documents")
    assert sys.stderr.getvalue() == "1 documents\n3 documents\n"  # pyright: ignore[reportAttributeAccessIssue]


def test_print_notes_replaces_unprintable_characters(capsys):
    print_notes(["a\x1b[31m", "b"])
    assert capsys.readouterr().out == "note: a\ufffd[31m\nnote: b\n"
