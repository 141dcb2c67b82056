"""What libraries write past Python is held back, and an abort leaves time to say why."""

import subprocess
import sys

import pytest

CHILD = """
import os, sys, threading, time
from gptjax.process.console import safe_console
from gptjax.process.native_output import hold_native_output, read_native_output
def library(text):
    os.write(2, text.encode())
with safe_console():
    native = hold_native_output()
"""


def run(body: str) -> tuple[int, list[str]]:
    """Status and stderr of a child with this body."""
    text = CHILD + "\n".join(f"    {line}" for line in body.strip().splitlines())
    child = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300, check=False)
    return child.returncode, child.stderr.splitlines()


def test_output_of_libraries_comes_later_than_pythons_own():
    body = """
library("first\\n")
native.pass_on(0.0)
library("second\\n")
native.pass_on(1.0)
print("python", file=sys.stderr)
native.pass_on(5.0)
print("python again", file=sys.stderr)
assert read_native_output() == "first\\nsecond\\n"
"""
    assert run(body) == (0, ["python", "first", "python again", "second"])


def test_file_of_shown_output_stays_small_and_an_abort_behind_it_is_found():
    body = """
from gptjax.process import native_output
native_output.MAX_BYTES = 2**16
for second in range(0, 40, 10):
    library("warning\\n" * 2**12)
    assert native.find_abort() is None
    native.pass_on(second)
    native.pass_on(second + 5)
    native.pass_on(second + 6)
    assert os.fstat(2).st_size <= 2**16
library("w\\n" * 2**21)
assert native.find_abort() is None
library("F11")
assert native.find_abort() is None
library("29 20:40 cli")
assert native.find_abort() == "F1129 20:40 cli"
native.close()
"""
    status, lines = run(body)
    assert (status, len(lines)) == (0, 4 * 2**12 + 2**21 + 1)


def test_process_that_ends_before_shows_its_own_line_only():
    assert run('library("pages\\n"); print("why", file=sys.stderr); os._exit(75)') == (75, ["why"])


def test_crash_and_requested_stacks_reach_the_terminal_while_libraries_write_to_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GPTJAX_TRACEBACK", "1")
    status, lines = run("""
from gptjax.process.process_end import _print_error
_print_error("no progress", has_stacks=True)
os.kill(os.getpid(), 11)
""")
    assert (status, lines[0]) == (-11, "error: no progress")
    assert "in _print_error" in lines[2]
    assert any("Segmentation fault" in line for line in lines)


def test_abort_by_a_library_leaves_time_to_say_why():
    body = """
def say():
    while native.find_abort() is None:
        time.sleep(0.05)
    print(native.find_abort(), file=sys.stderr)
    os._exit(75)
threading.Thread(target=say, daemon=True).start()
library("W1129 harmless\\nF1129 20:40 client.h:80] lost\\n    @ 0x7f\\n")
import ctypes
ctypes.CDLL(None).abort()  # without the interpreter's lock, as libraries do
"""
    assert run(body) == (75, ["F1129 20:40 client.h:80] lost"])


def test_abort_of_one_of_several_processes_is_held_back_until_it_has_left_the_others():
    body = """
    import atexit
    from gptjax.process.process_end import PeerProcesses, set_peers
    set_peers(type("Peers", (PeerProcesses,), {"announce_end": print, "wait_for_failure_report": print})())
    native.pass_on(0.0)

def leave():
    library("F1129 20:40 client.h:80] another task died\\n")
    assert native.find_abort() is not None
    print("process 0 is gone", file=sys.stderr)

from gptjax.process.early_exit import skip_python_end
with skip_python_end():
    atexit.register(leave)
    raise SystemExit(0)
"""
    child = subprocess.run(
        [sys.executable, "-c", CHILD + body], capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == 0
    assert child.stderr.splitlines() == ["process 0 is gone", "F1129 20:40 client.h:80] another task died"]
