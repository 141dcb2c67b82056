"""The moving line is for people at a terminal, and for nobody else."""

import io
import sys

from data_pipelines.progress import moving_line


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


def test_a_file_sees_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with moving_line("reading") as show:
        show("12 documents")
    assert sys.stderr.getvalue() == ""
