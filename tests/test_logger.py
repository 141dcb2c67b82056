"""What is written where and when, by a clock that only moves when told to."""

import io
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.metrics.logger import LogConfig, MetricLogger
from gptjax.metrics.metrics_file import read_metrics


class Clock:
    """Seconds that pass by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(tmp_path, clock):
    """Makes logbooks of a ten-step run of 1,000 tokens a step."""

    def make(log: LogConfig | None = None, **words) -> MetricLogger:
        words = {"total_steps": 10, "tokens": lambda step: 1000 * step, "clock": clock} | words
        return MetricLogger(log or LogConfig(), tmp_path, **words)

    return make


class Busy:
    """A scalar that the device has not finished when it is handed over, and has when it is asked for."""

    def __init__(self, value: float):
        self.value = value

    def is_ready(self) -> bool:
        return False

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.value, np.float32)


def scalars(loss: float) -> dict:
    return {"loss": Busy(loss), "learning_rate": jnp.float32(6e-4), "skipped": jnp.int32(0)}


def lines(tmp_path) -> list[dict]:
    return read_metrics(tmp_path / "metrics.jsonl")


def steps(tmp_path) -> list[int]:
    return [record["step"] for record in lines(tmp_path)]


# Lines


def test_each_step_is_written_when_the_next_arrives(tmp_path, book):
    with book() as log:
        log.step(1, scalars(4.0))
        assert steps(tmp_path) == []
        log.step(2, scalars(3.0))
        assert steps(tmp_path) == [1]
        log.flush()
        assert steps(tmp_path) == [1, 2]
        log.step(3, scalars(2.0))
    assert steps(tmp_path) == [1, 2, 3]


def test_the_record_holds_what_the_step_returned_in_short_numbers(tmp_path, book, clock):
    with book() as log:
        log.step(1, scalars(3.2845) | {"grad_norm": np.float64(0.25), "hot": jnp.bool_(True)})
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
        "hot": 1,
        "tokens_per_second": 500.0,
        "data_seconds": 0.0,
    }
    assert '"loss": 3.2845,' in text


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_number_that_is_lost_is_null_so_that_every_line_is_json(tmp_path, book, capsys, lost):
    with book(LogConfig(every=1)) as log:
        log.step(1, scalars(lost))
    assert lines(tmp_path)[0]["loss"] is None
    assert f"loss {lost:7.4f}" in capsys.readouterr().out


def test_a_metric_is_one_number(book):
    log = book()
    log.step(1, {"loss": jnp.zeros(3)})
    with pytest.raises(TypeError, match="one number"):
        log.close()


def test_a_step_has_one_line(book):
    with book(start_step=4) as log:
        log.step(5, scalars(1.0))
        for again in (5, 4):
            with pytest.raises(ValueError, match=f"step {again} was logged after step 5"):
                log.step(again, scalars(1.0))


def test_evaluations_stand_after_the_step_they_judge(tmp_path, book):
    with book() as log:
        log.write(0, {"val_loss": 10.5})
        log.step(1, scalars(4.0))
        log.write(1, {"val_loss": np.float32(3.9), "sample": "Once"})
    assert lines(tmp_path)[0] == {"step": 0, "tokens": 0, "val_loss": 10.5}
    assert lines(tmp_path)[1]["loss"] == 4.0
    assert lines(tmp_path)[2] == {"step": 1, "tokens": 1000, "val_loss": 3.9, "sample": "Once"}


# Time


def test_rates_leave_out_everything_but_training(tmp_path, book, clock):
    flops = {"flops": lambda step: 8e9 * step, "flops_palm": lambda step: 9e9 * step, "peak_flops_total": 1e10}
    with book(**flops) as log:
        clock.now += 50
        with log.timed("compile"):
            clock.now += 30
        log.step(1, scalars(4.0))
        clock.now += 2
        with log.timed("evaluate"):
            clock.now += 100
        clock.now += 1
        log.step(2, scalars(3.0))
        clock.now += 3
        log.step(3, scalars(2.0))
        with log.timed("data"):
            clock.now += 5
        log.step(4, scalars(1.0))
        clock.now += 1
    found = lines(tmp_path)
    # Step 2 was dispatched 1 s after the evaluation and done 3 s later.
    assert [record["seconds"] for record in found] == [2.0, 6.0, 11.0, 12.0]
    assert [record["tokens_per_second"] for record in found] == [500.0, 250.0, 200.0, 1000.0]
    assert [record["mfu"] for record in found] == [0.4, 0.2, 0.16, 0.8]
    assert [record["mfu_palm"] for record in found] == [0.45, 0.225, 0.18, 0.9]
    assert [record["data_seconds"] for record in found] == [0.0, 0.0, 0.0, 5.0]


def test_steps_that_are_not_alike_are_counted_each_as_it_is(tmp_path, book, clock, capsys):
    """From the fifth on a step has three times the tokens, and four times the FLOPs."""
    tokens = lambda step: 1000 * (step + 2 * max(0, step - 4))
    flops = lambda step: 1e9 * (step + 3 * max(0, step - 4))
    with book(LogConfig(every=1), tokens=tokens, flops=flops, peak_flops_total=1e10) as log:
        for step in range(1, 7):
            log.step(step, scalars(1.0))
            clock.now += 1 if step <= 4 else 3
        log.write(6, {"val_loss": 1.0})
    found = [record for record in lines(tmp_path) if "loss" in record]
    assert [record["tokens"] for record in found] == [1000, 2000, 3000, 4000, 7000, 10000]
    assert {record["tokens_per_second"] for record in found} == {1000.0}
    assert [record["mfu"] for record in found] == [0.1] * 4 + [0.1333] * 2
    assert lines(tmp_path)[-1]["tokens"] == 10000
    said = capsys.readouterr().out
    assert "step  4/10  " in said
    left = [line.split()[-3] for line in said.splitlines() if line.endswith("left")]
    assert left == ["21.0", "20.0", "19.0", "18.0", "15.0", "12.0"], "by tokens, not by steps"
    assert "1,000 tokens/s, mfu 12.0%." in said


def test_steps_that_are_done_when_their_dispatch_returns_are_timed_by_it(tmp_path, book, clock, capsys):
    with book() as log:
        for step, took in ((1, 9), (2, 2), (3, 4)):
            clock.now += took
            log.step(step, {"loss": 1.0})
        clock.now += 1
        with log.timed("evaluate"):
            clock.now += 50
        clock.now += 4
        log.step(4, {"loss": 1.0})
    # The first was over before anything was known of it, so it has no rate rather than a wrong one.
    lr_scales = [record.get("tokens_per_second") for record in lines(tmp_path)]
    assert lr_scales == [None, 500.0, 250.0, 200.0]
    assert [record["seconds"] for record in lines(tmp_path)] == [0.0, 2.0, 6.0, 11.0]
    assert f"{3000 / 11:,.0f} tokens/s" in capsys.readouterr().out


def test_without_a_peak_there_is_no_mfu(tmp_path, book, clock):
    with book(flops=lambda step: 8e9 * step) as log:
        log.step(1, scalars(4.0))
        clock.now += 1
    assert "mfu" not in lines(tmp_path)[0]
    assert lines(tmp_path)[0]["tokens_per_second"] == 1000.0


def test_pauses_do_not_nest_and_survive_an_error(book, clock):
    log = book()
    with log.timed("compile"), pytest.raises(RuntimeError, match="inside another"), log.timed("data"):
        pass
    with pytest.raises(KeyError), log.timed("evaluate"):
        raise KeyError
    with log.timed("evaluate"):
        clock.now += 1
    log.close()


def test_the_summary_says_where_the_time_went(book, clock, capsys):
    with book(start_step=2) as log:
        clock.now += 7
        with log.timed("compile"):
            clock.now += 40
        log.step(3, scalars(4.0))
        clock.now += 4
        with log.timed("data"):
            clock.now += 6
        log.write(3, {"val_loss": 3.5})
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("1 steps, up to step 3, in 57.0 s: training 10.0 s (of which waiting for data 6.0 s), ")
    assert "compile 40.0 s, other 7.0 s." in said
    assert "While training: 100 tokens/s. " in said
    assert "Last values: loss 4.0000, val_loss 3.5000." in said


# Resuming


def written(tmp_path, book, clock, *, last: int) -> None:
    """A run that got to `last`, judged every second step, and died in the middle of a line."""
    with book() as log:
        for step in range(1, last + 1):
            log.step(step, scalars(float(10 - step)))
            clock.now += 1
            if step % 2 == 0:
                log.write(step, {"val_loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')


def test_half_a_last_line_is_not_a_record(tmp_path, book, clock):
    written(tmp_path, book, clock, last=2)
    assert steps(tmp_path) == [1, 2, 2]


def test_resuming_keeps_lines_up_to_its_step_byte_for_byte(tmp_path, book, clock):
    written(tmp_path, book, clock, last=6)
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with book(start_step=4) as log:
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:6])
        log.write(4, {"val_loss": 4.0})
        log.write(4, {"accuracy": 0.5})
        log.step(5, scalars(1.0))
        clock.now += 1
    assert steps(tmp_path) == [1, 2, 2, 3, 4, 4, 4, 5]
    assert lines(tmp_path)[-2] == {"step": 4, "tokens": 4000, "accuracy": 0.5}
    assert lines(tmp_path)[-1]["seconds"] == 5.0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_without_a_checkpoint_starts_its_record_again(tmp_path, book, clock):
    written(tmp_path, book, clock, last=3)
    with book() as log:
        log.step(1, scalars(9.0))
    assert steps(tmp_path) == [1]


def test_an_interrupted_run_has_its_last_step(tmp_path, book):
    log = book()
    log.step(1, scalars(4.0))
    log.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert steps(tmp_path) == [1]


def test_a_step_that_failed_does_not_hide_the_error_on_its_way_out(book):
    log = book()
    log.step(1, {"loss": jnp.zeros(3)})
    log.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    log.close()


# Places


def test_only_process_zero_writes(tmp_path, book, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with book(LogConfig(every=1, tensorboard=True)) as log, log.timed("evaluate"):
        log.write(0, {"val_loss": 3.0})
        log.step(1, scalars(4.0))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_plain_terminal_lines_have_fixed_columns(book, clock, capsys):
    with book(LogConfig(every=4)) as log:
        for step in range(1, 11):
            log.step(step, scalars(10.0 / step) | {"grad_norm": jnp.float32(step), "inner": jnp.float32(1)})
            clock.now += 0.001 * step
        log.write(10, {"val_loss": 0.5, "samples": ["Once", "Twice"]})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "step  4/10  loss  2.5000  lr 6.00e-04  grad   4.000      250,000 tokens/s  0.0 s left"
    assert said[1].startswith("step  8/10  loss  1.2500")
    assert said[2].startswith("step 10/10  loss  1.0000")
    assert len({len(line.removesuffix("  0.0 s left")) for line in said[:3]}) == 1
    assert not said[2].endswith("left"), "at the end nothing is"
    assert said[3] == "step 10/10  val_loss 0.5000"
    assert said[4] == "  samples: ['Once', 'Twice']"


def test_a_skipped_step_is_shown(book, capsys):
    with book(LogConfig(every=1)) as log:
        log.step(1, scalars(1.0) | {"skipped": jnp.int32(1)})
    assert "skipped 1" in capsys.readouterr().out


def test_an_interactive_terminal_gets_a_bar(tmp_path, book, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    with book() as log:
        log.step(1, scalars(2.5))
        log.write(1, {"val_loss": 2.25})
    shown = screen.getvalue()
    assert "1/10" in shown
    assert "loss  2.5000" in shown
    assert "val_loss 2.2500" in shown
    assert steps(tmp_path) == [1, 1]


def events(directory) -> dict[tuple[str, int], float]:
    """The scalars in TensorBoard files, as a reader that obeys purges sees them."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[tuple[str, int], float] = {}
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_can_be_read_back_and_forgets_what_was_cut(tmp_path, book):
    log = LogConfig(tensorboard=True)
    with book(log) as first:
        for step in (1, 2, 3):
            first.step(step, {"loss": jnp.float32(step)})
        first.write(2, {"val_loss": 0.5, "sample": "Once"})
    assert {key: value for key, value in events(tmp_path / "tensorboard").items() if "loss" in key[0]} == {
        ("loss", 1): 1.0,
        ("loss", 2): 2.0,
        ("loss", 3): 3.0,
        ("val_loss", 2): 0.5,
    }
    with book(log, start_step=2) as second:
        second.step(3, {"loss": jnp.float32(7.0)})
    after = events(tmp_path / "tensorboard")
    assert (after["loss", 2], after["loss", 3]) == (2.0, 7.0)


def test_without_wandb_the_way_to_get_it_is_said(book, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'gptjax\[wandb\]'"):
        book(LogConfig(wandb="online"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_offline_goes_on_with_the_same_run(tmp_path, book, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for start in (0, 1):
        with book(LogConfig(wandb="offline"), start_step=start, config_json={"steps": 10}) as log:
            log.step(start + 1, scalars(2.0))
    identity = (tmp_path / "wandb_id").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))) >= 1
    assert steps(tmp_path) == [1, 2]


def test_a_log_of_every_zeroth_step_is_refused():
    with pytest.raises(UserError, match=r"log\.every is 0"):
        LogConfig(every=0)
