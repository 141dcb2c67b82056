"""Signals before a training has begun, and while a directory is written."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

EARLY = """
import hashlib, signal, sys
from gptjax.process.early_exit import exit_early
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so their children
with exit_early():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # no Python runs, as in a wait for other processes
"""
ANNOUNCING = """
import os, signal, sys, time
from gptjax.process.early_exit import exit_early, set_early_announcement
takes, may_take = map(float, sys.argv[1:])
def announce(status, message):
    time.sleep(takes)
    os.write(1, f"told {status} {message}\\n".encode())  # the signal may come within the print of "ready"
with exit_early():
    set_early_announcement(announce, seconds=may_take)
    print("ready", flush=True)
    time.sleep(300)
"""
WRITING = """
import sys, time
from pathlib import Path
from gptjax.core.errors import exit_on_user_error
from gptjax.core import files
with exit_on_user_error(), getattr(files, sys.argv[2])(Path(sys.argv[1])) as path:
    (path / "weights" if path.is_dir() else path).write_text("half")
    print("ready", flush=True)
    time.sleep(300)
"""

STOPPED = """
import atexit, sys
from gptjax.process.early_exit import skip_python_end
from gptjax.process.process_end import set_peers
class Global:
    def __del__(self):
        print("Python's own end")
kept = Global()
atexit.register(lambda: print("waited for the others"))
set_peers(object() if sys.argv[2] == "several" else None)
with skip_python_end():
    print("saved")
    raise SystemExit(int(sys.argv[1]))
"""


def send(code: str, number: signal.Signals, *words: str) -> tuple[int, str]:
    """(status, what is printed) of a process that gets a signal when it is ready."""
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        try:
            status = child.wait(timeout=250)
        finally:
            child.kill()  # else the end of the block waits for it forever
        return status, child.stdout.read() + child.stderr.read()


@pytest.mark.parametrize(
    ("number", "result"),
    [
        (signal.SIGUSR1, (75, "SIGUSR1\n")),
        (signal.SIGUSR2, (75, "SIGUSR2\n")),
        (signal.SIGINT, (130, "interrupted\n")),
        (signal.SIGTERM, (-15, "")),
    ],
)
def test_signal_before_training_ends_in_one_line(
    number: signal.Signals, result: tuple[int, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GPTJAX_STOP_SIGNALS", "USR2")
    assert send(EARLY, number) == result


@pytest.mark.parametrize(("takes", "may_take", "told"), [(0.2, 300, "told 143 SIGTERM\n"), (300, 0.2, "")])
def test_announcement_has_its_time_and_delays_the_end_no_longer(takes: float, may_take: float, told: str):
    assert send(ANNOUNCING, signal.SIGTERM, str(takes), str(may_take)) == (143, f"{told}SIGTERM\n")


@pytest.mark.parametrize("kind", ["atomic_directory", "atomic_file"])
def test_killed_export_leaves_nothing(tmp_path: Path, kind: str):
    assert send(WRITING, signal.SIGTERM, str(tmp_path / "export"), kind) == (143, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "processes", "said"),
    [
        (143, "one", []),
        (75, "several", []),
        (2, "one", ["waited for the others", "Python's own end"]),
        (0, "one", ["waited for the others", "Python's own end"]),
        (0, "several", ["waited for the others"]),
    ],
)
def test_run_ends_where_its_threads_cannot_crash_it(status: int, processes: str, said: list[str]):
    """At once after a signal; of several processes before Python stops threads that may be in a library."""
    command = [sys.executable, "-c", STOPPED, str(status), processes]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout.splitlines()) == (status, ["saved", *said])
