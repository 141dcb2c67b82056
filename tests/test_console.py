"""Formatting of numbers and durations, and printing once. Progress lines are tested through the logger."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptjax.metrics.console import format_columns, format_duration
from gptjax.process.console import ConsoleLog, SafeStream, drop_console_log, keep_console_log, print_once, safe_console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (99.94, "99.9 s"), (100.0, "1 min 40 s"), (119.6, "2 min 00 s"), (6000.0, "1 h 40 min")],
)
def test_format_duration_chooses_units(seconds: float, text: str):
    assert format_duration(seconds) == text


def test_format_columns_pads_only_columns():
    values = {"loss": 2.5, "tokens_per_second": 1234.5, "new": 0.12345}
    assert format_columns(values) == "loss  2.5000        1,234 tokens/s  new 0.1235"
    assert format_columns(values, ", ") == "loss 2.5000, 1,234 tokens/s, new 0.1235"


@pytest.mark.parametrize(("process", "printed"), [(0, "one\ntwo\n"), (1, "")])
def test_print_once_prints_on_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], process: int, printed: str
):
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("jax.process_index", lambda: process)
    print_once("one", "two")
    assert capsys.readouterr().out == printed


def test_print_once_starts_no_jax_backend():
    """Before JAX is imported, and after."""
    program = (
        "import sys; from gptjax.process.console import print_once; print_once('one'); "
        "assert 'jax' not in sys.modules; "
        "import jax; print_once('two'); from jax._src import xla_bridge; assert not xla_bridge._backends"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n"), done.stderr


def test_safe_console_survives_what_cannot_be_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An encoding that lacks a character, and a disk that is full; the log has all of it."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    with safe_console():
        print("before the directory is known →")
        keep_console_log(tmp_path / "console.log")
        print("\x1b[2K a bar")
        print("ж")
    assert raw.getvalue() == b"before the directory is known \\u2192\n\x1b[2K a bar\n\\u0436\n"
    assert (tmp_path / "console.log").read_text() == "before the directory is known →\nж\n"
    for log, is_left in ((tmp_path / "console.log", True), (tmp_path / "new.log", False)):
        with safe_console():
            keep_console_log(log)
            print("of a refused start")
            drop_console_log()
            print("after it")
        assert log.exists() == is_left
    with safe_console():
        keep_console_log(shared := tmp_path / "shared.log")
        print("of a refused start →")
        with shared.open("a") as file:
            file.write("of a scheduler\n")
        drop_console_log()
    assert shared.read_text() == "of a refused start →\nof a scheduler\n"
    with (tmp_path / "console.log").open("a") as file, safe_console():  # as by `>> console.log`
        sys.stdout.redirect(file)  # pyright: ignore[reportAttributeAccessIssue]
        keep_console_log(tmp_path / "console.log")
        print("once")
    assert (tmp_path / "console.log").read_text() == "before the directory is known →\nж\nonce\n"


def test_safe_stream_writes_to_the_terminal_before_the_log(monkeypatch: pytest.MonkeyPatch):
    writes: list[str] = []
    log = ConsoleLog()
    monkeypatch.setattr(log, "write", lambda text: writes.append("log"))
    SafeStream(SimpleNamespace(write=lambda text: writes.append("terminal")), log).write("text")
    assert writes == ["terminal", "log"]


CHILD = """
import sys
from gptjax.process.console import safe_console
with safe_console():
    for line in range(20_000):
        print("a line that nobody reads", line, flush=line % 2 == 0)
    print("done", file=sys.stderr)
"""


def test_safe_console_survives_a_reader_that_leaves():
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=writer, stderr=subprocess.PIPE, text=True) as child:
        os.close(writer)
        os.close(reader)
        assert child.stderr is not None
        assert child.stderr.read() == "done\n"
        assert child.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full stands for a full disk")
def test_safe_console_survives_a_full_disk():
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [sys.executable, "-c", CHILD], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (child.returncode, child.stderr) == (0, "done\n")


def test_missing_streams_are_not_replaced_by_the_next_file(tmp_path: Path):
    code = (
        "import os, sys; from gptjax.core.errors import exit_on_user_error\n"
        "with exit_on_user_error():\n    file = open(sys.argv[1], 'w'); os.write(1, b'a message'); print('more')\n"
        "    assert not any(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))"
    )
    command = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command, sys.executable, code, str(tmp_path / "file")], check=True)
    assert (tmp_path / "file").read_text() == ""


def test_character_that_stdout_lacks_is_escaped():
    code = "from gptjax.core.errors import exit_on_user_error\nwith exit_on_user_error(): print('h\\xe9')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    assert printed == b"h\\xe9\n"
