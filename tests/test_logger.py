"""What the record of a run holds and when it is written, with a clock that moves only when told to."""

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.metrics.logger import LogConfig, MetricLogger
from gptjax.metrics.metrics_file import read_metrics
from gptjax.metrics.throughput import RunCost


class ManualClock:
    """A clock whose time is set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


MakeLogger = Callable[..., MetricLogger]


@pytest.fixture
def make_logger(tmp_path: Path, clock: ManualClock) -> MakeLogger:
    """Makes loggers of a run of ten steps of 1,000 tokens; keywords replace these."""

    def make(config: LogConfig | None = None, **options: Any) -> MetricLogger:
        options = {"total_steps": 10, "cost": RunCost(lambda step: 1000 * step), "clock": clock} | options
        return MetricLogger(config or LogConfig(), tmp_path, **options)

    return make


class PendingScalar:
    """A scalar that is not computed yet when it is logged, and is when its value is needed."""

    def __init__(self, value: float):
        self.value = value

    def is_ready(self) -> bool:
        return False

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.value, np.float32)


def make_scalars(loss: float) -> dict[str, Any]:
    return {"loss": PendingScalar(loss), "learning_rate": jnp.float32(6e-4), "skipped": jnp.int32(0)}


def read_steps(directory: Path) -> list[int]:
    return [record["step"] for record in read_metrics(directory / "metrics.jsonl")]


# Records


def test_step_is_written_when_the_next_arrives(tmp_path: Path, make_logger: MakeLogger):
    with make_logger() as log:
        log.step(1, make_scalars(4.0))
        assert read_steps(tmp_path) == []
        log.step(2, make_scalars(3.0))
        assert read_steps(tmp_path) == [1]
        log.flush()
        assert read_steps(tmp_path) == [1, 2]
        log.step(3, make_scalars(2.0))
    assert read_steps(tmp_path) == [1, 2, 3]


def test_record_has_metrics_and_rates_in_short_numbers(tmp_path: Path, make_logger: MakeLogger, clock: ManualClock):
    with make_logger() as log:
        log.step(1, make_scalars(3.2845) | {"grad_norm": np.float64(0.25), "flag": jnp.bool_(True)})
        clock.now += 2
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {
        "step": 1,
        "tokens": 1000,
        "seconds": 2.0,
        "loss": 3.2845,
        "learning_rate": 6e-4,
        "skipped": 0,
        "grad_norm": 0.25,
        "flag": 1,
        "tokens_per_second": 500.0,
        "data_seconds": 0.0,
    }
    assert '"loss": 3.2845,' in text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_value_that_is_not_finite_is_null(
    tmp_path: Path, make_logger: MakeLogger, capsys: pytest.CaptureFixture[str], value: float
):
    with make_logger(LogConfig(every=1)) as log:
        log.step(1, make_scalars(value))
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] is None
    assert f"loss {value:7.4f}" in capsys.readouterr().out


def test_metric_that_is_an_array_is_refused(make_logger: MakeLogger):
    log = make_logger()
    log.step(1, {"loss": jnp.zeros(3)})
    with pytest.raises(TypeError, match="one number"):
        log.close()


def test_step_logged_twice_is_refused(make_logger: MakeLogger):
    with make_logger(start_step=4) as log:
        log.step(5, make_scalars(1.0))
        for again in (5, 4):
            with pytest.raises(ValueError, match=f"step {again} was logged after step 5"):
                log.step(again, make_scalars(1.0))


def test_evaluation_follows_its_step(tmp_path: Path, make_logger: MakeLogger):
    with make_logger() as log:
        log.write(0, {"val_loss": 10.5})
        log.step(1, make_scalars(4.0))
        log.write(1, {"val_loss": np.float32(3.9), "sample": "Once"})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[0] == {"step": 0, "tokens": 0, "val_loss": 10.5}
    assert records[1]["loss"] == 4.0
    assert records[2] == {"step": 1, "tokens": 1000, "val_loss": 3.9, "sample": "Once"}


# Time


def test_training_time_includes_only_waiting_for_data(tmp_path: Path, make_logger: MakeLogger, clock: ManualClock):
    cost = RunCost(
        lambda step: 1000 * step, flops=lambda step: 8e9 * step, flops_palm=lambda step: 9e9 * step, peak_flops=1e10
    )
    with make_logger(cost=cost) as log:
        clock.now += 50
        with log.measure("compile"):
            clock.now += 30
        log.step(1, make_scalars(4.0))
        clock.now += 2
        with log.measure("evaluate"):
            clock.now += 100
        clock.now += 1
        log.step(2, make_scalars(3.0))
        clock.now += 3
        log.step(3, make_scalars(2.0))
        with log.measure("data"):
            clock.now += 5
        log.step(4, make_scalars(1.0))
        clock.now += 1
    records = read_metrics(tmp_path / "metrics.jsonl")
    # Step 2 was dispatched 1 s after the evaluation and done 3 s later.
    assert [record["seconds"] for record in records] == [2.0, 6.0, 11.0, 12.0]
    assert [record["tokens_per_second"] for record in records] == [500.0, 250.0, 200.0, 1000.0]
    assert [record["mfu"] for record in records] == [0.4, 0.2, 0.16, 0.8]
    assert [record["mfu_palm"] for record in records] == [0.45, 0.225, 0.18, 0.9]
    assert [record["data_seconds"] for record in records] == [0.0, 0.0, 0.0, 5.0]


def test_steps_whose_end_is_seen_together_share_their_time(
    tmp_path: Path, make_logger: MakeLogger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    """A step that runs while it is dispatched waits for the one before: none of them took no time."""
    done = iter([False, True])
    monkeypatch.setattr("gptjax.metrics.logger._are_ready", lambda metrics: next(done))
    with make_logger(LogConfig(every=1)) as log:
        log.step(1, make_scalars(4.0))
        clock.now += 4
        log.step(2, make_scalars(3.0))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["seconds"] for record in records] == [2.0, 4.0]


def test_steps_of_unequal_size_are_counted_exactly(
    tmp_path: Path, make_logger: MakeLogger, clock: ManualClock, capsys: pytest.CaptureFixture[str]
):
    """From the fifth on a step has three times the tokens, and four times the FLOPs."""
    tokens = lambda step: 1000 * (step + 2 * max(0, step - 4))
    flops = lambda step: 1e9 * (step + 3 * max(0, step - 4))
    with make_logger(LogConfig(every=1), cost=RunCost(tokens, flops=flops, peak_flops=1e10)) as log:
        for step in range(1, 7):
            log.step(step, make_scalars(1.0))
            clock.now += 1 if step <= 4 else 3
        log.write(6, {"val_loss": 1.0})
    *records, evaluation = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["tokens"] for record in records] == [1000, 2000, 3000, 4000, 7000, 10000]
    assert {record["tokens_per_second"] for record in records} == {1000.0}
    assert [record["mfu"] for record in records] == [0.1] * 4 + [0.1333] * 2
    assert evaluation["tokens"] == 10000
    printed = capsys.readouterr().out
    left = [line.split()[-3] for line in printed.splitlines() if line.endswith("left")]
    assert left == ["21.0", "20.0", "19.0", "18.0", "15.0", "12.0"], "estimated by tokens, not by steps"
    assert "1,000 tokens/s, mfu 12.0%." in printed


def test_step_done_at_dispatch_is_timed_by_it(
    tmp_path: Path, make_logger: MakeLogger, clock: ManualClock, capsys: pytest.CaptureFixture[str]
):
    with make_logger() as log:
        for step, seconds in ((1, 9), (2, 2), (3, 4)):
            clock.now += seconds
            log.step(step, {"loss": 1.0})
        clock.now += 1
        with log.measure("evaluate"):
            clock.now += 50
        clock.now += 4
        log.step(4, {"loss": 1.0})
    # The first was done before its start was known, so it has no rate rather than a wrong one.
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record.get("tokens_per_second") for record in records] == [None, 500.0, 250.0, 200.0]
    assert [record["seconds"] for record in records] == [0.0, 2.0, 6.0, 11.0]
    assert f"{3000 / 11:,.0f} tokens/s" in capsys.readouterr().out


def test_without_peak_flops_there_is_no_mfu(tmp_path: Path, make_logger: MakeLogger, clock: ManualClock):
    with make_logger(cost=RunCost(lambda step: 1000 * step, flops=lambda step: 8e9 * step)) as log:
        log.step(1, make_scalars(4.0))
        clock.now += 1
    record = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert "mfu" not in record
    assert record["tokens_per_second"] == 1000.0


def test_timed_blocks_do_not_nest_and_end_on_errors(make_logger: MakeLogger):
    log = make_logger()
    with log.measure("compile"), pytest.raises(RuntimeError, match="inside another"), log.measure("data"):
        pass
    with pytest.raises(KeyError), log.measure("evaluate"):
        raise KeyError
    with log.measure("evaluate"):
        pass
    log.close()


def test_summary_accounts_for_all_time(make_logger: MakeLogger, clock: ManualClock, capsys: pytest.CaptureFixture[str]):
    with make_logger(start_step=2) as log:
        clock.now += 7
        with log.measure("compile"):
            clock.now += 40
        with log.measure("data"):
            clock.now += 1
        log.step(3, make_scalars(4.0))
        clock.now += 4
        with log.measure("data"):
            clock.now += 6
        log.write(3, {"val_loss": 3.5})
    summary = capsys.readouterr().out.splitlines()[-1]
    assert summary == (
        "1 step, up to step 3, in 58.0 s: training 10.0 s (including 6.0 s of waiting for data), compile 40.0 s, "
        "first data 1.0 s, other 7.0 s. While training: 100 tokens/s. Last values: loss 4.0000, val_loss 3.5000."
    )


# Resuming


def write_killed_run(directory: Path, make_logger: MakeLogger, clock: ManualClock, *, last_step: int) -> None:
    """Write the record of a run that evaluates every second step and is killed while it writes a line."""
    with make_logger() as log:
        for step in range(1, last_step + 1):
            log.step(step, make_scalars(float(10 - step)))
            clock.now += 1
            if step % 2 == 0:
                log.write(step, {"val_loss": float(step)})
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')


def test_resume_keeps_earlier_lines_byte_for_byte(tmp_path: Path, make_logger: MakeLogger, clock: ManualClock):
    write_killed_run(tmp_path, make_logger, clock, last_step=6)
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with make_logger(start_step=4) as log:
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:6])
        log.write(4, {"val_loss": 4.0})
        log.write(4, {"accuracy": 0.5})
        log.step(5, make_scalars(1.0))
        clock.now += 1
    assert read_steps(tmp_path) == [1, 2, 2, 3, 4, 4, 4, 5]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[-2] == {"step": 4, "tokens": 4000, "accuracy": 0.5}
    assert records[-1]["seconds"] == 5.0
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "goodput.jsonl"}


def test_restart_without_checkpoint_clears_the_record(tmp_path: Path, make_logger: MakeLogger, clock: ManualClock):
    write_killed_run(tmp_path, make_logger, clock, last_step=3)
    assert read_steps(tmp_path) == [1, 2, 2, 3]
    with make_logger() as log:
        log.step(1, make_scalars(9.0))
    assert read_steps(tmp_path) == [1]


def test_interrupt_writes_the_last_step(tmp_path: Path, make_logger: MakeLogger):
    log = make_logger()
    log.step(1, make_scalars(4.0))
    with pytest.raises(KeyboardInterrupt), log:
        raise KeyboardInterrupt
    assert read_steps(tmp_path) == [1]


def test_failed_step_does_not_hide_the_error(make_logger: MakeLogger):
    log = make_logger()
    log.step(1, {"loss": jnp.zeros(3)})
    with pytest.raises(ZeroDivisionError), log:
        raise ZeroDivisionError


# Terminal


def test_only_the_first_process_writes(
    tmp_path: Path, make_logger: MakeLogger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with make_logger(LogConfig(every=1, tensorboard=True)) as log, log.measure("evaluate"):
        log.write(0, {"val_loss": 3.0})
        log.step(1, make_scalars(4.0))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_plain_terminal_gets_fixed_columns(
    make_logger: MakeLogger, clock: ManualClock, capsys: pytest.CaptureFixture[str]
):
    with make_logger(LogConfig(every=4)) as log:
        for step in range(1, 11):
            log.step(step, make_scalars(10.0 / step) | {"grad_norm": jnp.float32(step), "inner": jnp.float32(1)})
            clock.now += 0.001 * step
        log.write(10, {"val_loss": 0.5, "samples": ["Once", "Twice"]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step  4/10  loss  2.5000  lr 6.00e-04  grad   4.000      400,000 tokens/s  0.0 s left"
    assert lines[1].startswith("step  8/10  loss  1.2500")
    assert lines[2].startswith("step 10/10  loss  1.0000")
    assert len({len(line.removesuffix("  0.0 s left")) for line in lines[:3]}) == 1
    assert not lines[2].endswith("left")
    assert lines[3] == "step 10/10  val_loss 0.5000"
    assert lines[4] == "  samples: ['Once', 'Twice']"


def test_skipped_step_is_shown(make_logger: MakeLogger, capsys: pytest.CaptureFixture[str]):
    with make_logger(LogConfig(every=1)) as log:
        log.step(1, make_scalars(1.0) | {"skipped": jnp.int32(1)})
    assert "skipped 1" in capsys.readouterr().out


def test_interactive_terminal_gets_a_bar(tmp_path: Path, make_logger: MakeLogger, monkeypatch: pytest.MonkeyPatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    with make_logger() as log:
        log.step(1, make_scalars(2.5))
        log.write(1, {"val_loss": 2.25})
    shown = screen.getvalue()
    assert "1/10" in shown
    assert "loss  2.5000" in shown
    assert "val_loss 2.2500" in shown
    assert read_steps(tmp_path) == [1, 1]


def test_log_config_refuses_every_zero():
    with pytest.raises(UserError, match=r"log\.every is 0"):
        LogConfig(every=0)
