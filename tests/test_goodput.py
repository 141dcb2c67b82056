"""The goodput log: what is written, what a later start takes back, and what is said of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptjax.metrics.goodput import (
    GOODPUT_FILE,
    GoodputLog,
    Span,
    describe_goodput,
    read_spans,
    split_spans,
    sum_kinds,
)
from gptjax.metrics.logger import LogConfig, MetricLogger
from gptjax.metrics.plots import plot_losses
from gptjax.metrics.throughput import RunCost

KILLED = [
    Span("start", 10.0, 4.0, 0),
    Span("compile", 20.0, 10.0, 0),
    Span("step", 40.0, 20.0, 10, first=0, data=5.0),
    Span("checkpoint", 41.0, 1.0, 10),
    Span("step", 61.0, 20.0, 20, first=10, data=0.0),
    Span("start", 90.0, 5.0, 15),
    Span("step", 100.0, 10.0, 20, first=15, data=1.0),
]
"""A run that was killed after step 20 and went on from step 15."""


def test_start_takes_back_the_steps_after_it():
    assert sum_kinds(KILLED) == {
        "step": 15.0 + 10.0 + 9.0,
        "data wait": 5.0 + 1.0,
        "start": 9.0,
        "compile": 10.0,
        "checkpoint": 1.0,
        "lost steps": 10.0,
    }
    assert sum(seconds for _, seconds in split_spans(KILLED)) == sum(span.seconds for span in KILLED)
    begun_anew = [*KILLED, Span("start", 200.0, 0.0, 0)]
    assert "step" not in sum_kinds(begun_anew)
    assert sum_kinds(begun_anew)["lost steps"] == 50.0


def test_line_names_the_share_of_steps_that_remained():
    parts = "step 34.0 s, data wait 6.0 s, start 9.0 s, compile 10.0 s"
    assert (describe_goodput(KILLED) or "").startswith(f"time 70.0 s in 2 starts: {parts}"), "a short run has no share"
    longer = [replace(span, seconds=10 * span.seconds, data=10 * span.data) for span in KILLED]
    assert (describe_goodput(longer) or "").startswith("goodput 49% of 11 min 40 s in 2 starts: step 5 min 40 s")
    assert describe_goodput([]) is None


def test_goodput_log_sums_up_steps_until_something_else_is_measured(tmp_path: Path):
    log = GoodputLog(tmp_path, clock=lambda: 1000.0)
    for step in range(1, 4):
        log.add_step(step, 2.0, data_seconds=0.5)
    assert read_spans(tmp_path) == []
    log.add("checkpoint", 3.0, step=3)
    log.add_step(4, 61.0, data_seconds=0.0)
    assert read_spans(tmp_path) == [
        Span("step", 1000.0, 6.0, 3, first=0, data=1.5),
        Span("checkpoint", 1000.0, 3.0, 3),
        Span("step", 1000.0, 61.0, 4, first=3),
    ]


def test_goodput_log_goes_on_behind_lines_that_are_none(tmp_path: Path):
    broken = [
        '{"kind": "step", "time"',
        "[]",
        "3",
        '{"kind": 1, "step": 2}',
        '{"kind": "step", "step": 1, "time": NaN}',
    ]
    (tmp_path / GOODPUT_FILE).write_text("\n".join(reversed(broken)))
    GoodputLog(tmp_path).add("start", 1.0, step=7)
    assert [(span.kind, span.step) for span in read_spans(tmp_path)] == [("start", 7)]


def test_goodput_log_that_cannot_be_written_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / GOODPUT_FILE).mkdir()
    log = GoodputLog(tmp_path)
    log.add("start", 1.0, step=0)
    log.add("compile", 1.0, step=0)
    assert capsys.readouterr().out.count("cannot be written") == 1
    assert read_spans(tmp_path) == []


def test_goodput_log_of_a_moved_run_writes_nothing_into_a_new_run_of_its_name(tmp_path: Path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    run.mkdir()
    log = GoodputLog(run)
    run.rename(moved)
    run.mkdir()
    log.add("start", 1.0, step=0)
    assert not list(run.iterdir())
    run.rmdir()
    moved.rename(run)
    log.add("compile", 1.0, step=0)
    assert [span.kind for span in read_spans(run)] == ["compile"]


class Pending:
    """A scalar that is computed when its value is needed."""

    def is_ready(self) -> bool:
        return False

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(3.0, np.float32)


def test_logger_accounts_for_all_of_its_time_and_the_picture_shows_it(tmp_path: Path):
    now = [0.0]

    def train(start: int, end: int, **options: Any) -> None:
        cost = RunCost(lambda step: 1000 * step)
        clock = lambda: now[0]
        with MetricLogger(
            LogConfig(), tmp_path, total_steps=9, cost=cost, start_step=start, clock=clock, **options
        ) as log:
            with log.measure("compile"):
                now[0] += 10.0
            for step in range(start + 1, end + 1):
                with log.measure("data"):
                    now[0] += 1.0
                log.step(step, {"loss": Pending()})
                now[0] += 2.0
            with log.measure("evaluate"):
                now[0] += 4.0

    train(0, 4, start_seconds=7.0)
    train(2, 3, start_seconds=5.0)
    totals = sum_kinds(read_spans(tmp_path))
    assert sum(totals.values()) == now[0] + 12.0
    assert totals["start"] == 12.0
    assert totals["compile"] == 20.0
    assert totals["evaluate"] == 8.0
    assert totals["lost steps"] == 5.5
    lines = (tmp_path / GOODPUT_FILE).read_text().splitlines()
    assert all(json.loads(line)["seconds"] >= 0 for line in lines)
    assert plot_losses(tmp_path).exists()
