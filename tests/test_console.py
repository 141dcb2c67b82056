"""Formatting of numbers and durations, and printing once. Progress lines are tested through the logger."""

import subprocess
import sys

import pytest

from gptjax.core.console import print_once
from gptjax.metrics.console import format_columns, format_duration


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
        "import sys; from gptjax.core.console import print_once; print_once('one'); assert 'jax' not in sys.modules; "
        "import jax; print_once('two'); from jax._src import xla_bridge; assert not xla_bridge._backends"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n"), done.stderr
