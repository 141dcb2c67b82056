"""Errors of JAX and of the system are one line with what to do; a traceback goes to a file."""

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jax._src import config

from gptjax.core.errors import exit_on_user_error
from gptjax.process import process_end
from gptjax.process.broken_import import explain_wrong_variable
from gptjax.process.console import safe_console
from gptjax.process.diagnosis import explain_error, keep_reports_in, keep_traceback, report_unraisable


class Others:
    """The other processes of a run, all of which live."""

    def announce_end(self, status: int, message: str) -> None:
        raise SystemExit(status)

    def wait_for_failure_report(self, seconds: float) -> None:
        return


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Unable to initialize backend 'cuda': no plugin\nmore"), "Unset JAX_PLATFORMS"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), "Raise --grad-accum"),
        (RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE: no TPU"), "Unset JAX_PLATFORMS"),
        (RuntimeError("Unknown backend: 'gpu' requested, but Platforms present are: cpu"), "and JAX_DEFAULT_DEVICE"),
        (MemoryError(), "the machine is out of memory"),
        (ImportError("libjax_common.so: failed to map segment from shared object"), "ulimit -v unlimited"),
        (RuntimeError("INVALID_ARGUMENT: Disallowed host-to-device transfer: aval"), "JAX_TRANSFER_GUARD"),
        (ValueError('Invalid value "x" for JAX flag jax_num_cpu_devices'), "Correct or unset it"),
        (RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [1.2.3.4]"), "another process"),
    ],
)
def test_known_errors_are_explained_in_one_line(
    error: Exception, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("GPTJAX_TRACEBACK", raising=False)
    if words == "another process":
        monkeypatch.setattr(process_end, "_peers", Others())

    def fail() -> None:
        with safe_console(), exit_on_user_error():
            keep_reports_in(tmp_path)
            raise error

    with pytest.raises(SystemExit) as stopped:
        fail()
    assert stopped.value.code == (75 if words == "another process" else 2)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert words in first
    (file,) = tmp_path.glob("traceback-*.txt")
    assert str(file) in second
    assert type(error).__name__ in file.read_text()


def test_variable_that_jax_refuses_at_its_import_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "many")
    with pytest.raises(ValueError, match="many") as failed:
        config.int_env("JAX_NUM_CPU_DEVICES", 1)
    said = "JAX_NUM_CPU_DEVICES of JAX has a value that it does not take: many. Correct or unset it."
    assert said in str(explain_wrong_variable(failed.value))
    assert explain_wrong_variable(ValueError("another")) is None


NO_BACKEND = """
from gptjax.core.errors import exit_on_user_error
with exit_on_user_error():
    import jax
    jax.devices()
"""


def test_platform_without_a_device_is_one_line(tmp_path: Path):
    variables = {"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cuda"}
    child = subprocess.run(
        [sys.executable, "-c", NO_BACKEND], capture_output=True, text=True, check=False, env=variables
    )
    assert child.returncode == 2
    assert "Unset JAX_PLATFORMS" in child.stderr
    assert "Traceback" not in child.stderr


def test_unknown_errors_are_left():
    assert explain_error(ValueError("Out of memory"), alone=True) is None
    assert explain_error(RuntimeError("UNAVAILABLE"), alone=True) is None
    with pytest.raises(RuntimeError, match="a bug"), exit_on_user_error():
        raise RuntimeError("a bug")


BUG = """
from gptjax.core.errors import exit_on_user_error
with exit_on_user_error():
    raise ZeroDivisionError("nobody expected this")
"""


def test_bug_is_one_line_and_a_file(tmp_path: Path):
    run = lambda **variables: subprocess.run(
        [sys.executable, "-c", BUG],
        capture_output=True,
        text=True,
        check=False,
        env={"TMPDIR": str(tmp_path), **variables},
    )
    child = run(PYTHONPATH=":".join(sys.path))
    first, second = child.stderr.splitlines()
    assert (child.returncode, first) == (1, "error: ZeroDivisionError: nobody expected this")
    (file,) = tmp_path.glob("traceback-*.txt")
    assert str(file) in second
    assert "Traceback" in file.read_text()
    assert "Traceback" in run(PYTHONPATH=":".join(sys.path), GPTJAX_TRACEBACK="1").stderr


def test_traceback_goes_to_the_terminal_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("GPTJAX_TRACEBACK", "1")
    assert keep_traceback(ValueError("shown")) == "its traceback is above"
    assert "ValueError: shown" in capsys.readouterr().err


def test_late_callbacks_of_a_failed_save_are_silent(monkeypatch: pytest.MonkeyPatch):
    late, bug = (
        SimpleNamespace(exc_value=error, object=None) for error in (RuntimeError("Event loop is closed"), ValueError())
    )
    no_loop = SimpleNamespace(exc_value=AttributeError("_ssock"), object=asyncio.BaseEventLoop.__del__)
    shown: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    for found in (late, no_loop, bug):
        report_unraisable(found)
    assert shown == [bug]
