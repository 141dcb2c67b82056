"""Writes the record of a run: terminal, metrics.jsonl and loggers.

Numbers are written one step late. `step` receives scalars that are still being computed and writes those of the step
before, so the host never waits for the step that the device has just been given.

`metrics.jsonl` in the run directory has one JSON object a line:

- A training line has `step`, the number of completed updates (the first is 1), and `tokens`, those seen so far.
  `seconds` is the training time so far, and `data_seconds` the part of this step spent waiting for data.
  `tokens_per_second`, `mfu` and `mfu_palm` are rates of this step. The training step's own metrics follow (`loss`,
  `learning_rate`, `grad_norm`, ...).
- An evaluation line has the `step` and `tokens` of the evaluated weights, and `val_loss` and the like.

Training time leaves out compilation, evaluation and checkpoints. It includes waiting for data. A number that is not
finite is written as null. A run that resumes at step k keeps the lines up to k and drops the others.
"""

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from gptjax.core.errors import UserError, count_of
from gptjax.metrics.console import ConsoleProgress, format_columns, format_duration
from gptjax.metrics.goodput import GoodputLog
from gptjax.metrics.loggers import LogContext, Logger, LogWriter, TensorBoardLogger, WandbLogger
from gptjax.metrics.metrics_file import MetricsFileWriter, Record, find_number, to_scalar, truncate_after
from gptjax.metrics.throughput import RunCost
from gptjax.process.console import print_once
from gptjax.sharding.devices import get_peak_memory


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where the numbers of a run go, besides metrics.jsonl, which is always written."""

    every: int = 10
    """Steps between two lines on a terminal that is not interactive. The files get every step."""
    tensorboard: bool = False
    """Also write TensorBoard event files, into `tensorboard/` of the run directory."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also write to Weights & Biases: to disk only (`offline`) or to its servers (`online`)."""
    wandb_project: str = "gptjax"
    """The Weights & Biases project."""
    loggers: tuple[Logger, ...] = ()
    """Loggers of your own, set in a config file: frozen dataclasses with a method `open`, as in metrics/loggers.py."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"log.every is {self.every}; it must be at least 1 step.")

    @property
    def active_loggers(self) -> tuple[Logger, ...]:
        """All loggers that are switched on."""
        tensorboard = (TensorBoardLogger(),) if self.tensorboard else ()
        wandb = () if self.wandb == "off" else (WandbLogger(self.wandb_project, self.wandb),)
        return (*self.loggers, *tensorboard, *wandb)

    def check(self) -> None:
        """Raise a UserError for a logger that says so before a run writes anything."""
        for logger in self.active_loggers:
            getattr(logger, "check", lambda: None)()


@dataclasses.dataclass(frozen=True)
class _PendingStep:
    """A step that has been dispatched and not yet written."""

    step: int
    metrics: Mapping[str, Any]
    data_seconds: float
    done_at: float | None
    """The time at which it was done, if that was before its dispatch returned (as for small steps on a CPU)."""


class MetricLogger:
    """Writes the numbers of one run. As a context manager it writes the last step however the run ends.

    Every process makes one. Only the first process writes and prints.
    """

    def __init__(
        self,
        config: LogConfig,
        run_directory: Path,
        *,
        total_steps: int,
        cost: RunCost,
        start_step: int = 0,
        config_json: Mapping[str, Any] | None = None,
        start_seconds: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Open the record of a run that has completed `start_step` of its `total_steps` steps.

        `config_json` is the run's config, for the loggers. `start_seconds` is what the process has needed so far.
        `clock` returns seconds.
        """
        self._cost, self._clock = cost, clock
        self._start_step = self._newest_step = start_step
        self._writers: list[LogWriter] = []
        self._failed: set[str] = set()
        self._kept: set[tuple[int, frozenset[str]]] = set()
        self._console: ConsoleProgress | None = None
        self._goodput: GoodputLog | None = None
        self._seconds_before = 0.0
        if jax.process_index() == 0:
            self._open(config, run_directory, config_json=config_json or {})
            self._goodput = GoodputLog(run_directory)
            self._goodput.add("start", start_seconds, step=start_step)
            self._console = ConsoleProgress(
                config.every,
                total_steps,
                start_step=start_step,
                tokens=cost.tokens,
                start_seconds=self._seconds_before,
            )
        self._pending: _PendingStep | None = None
        self._last_values: Record = {}
        self._work: dict[str, float] = defaultdict(float)
        self._seconds = self._seconds_before
        self._data_seconds = self._data_seconds_total = 0.0
        self._seconds_by_kind: dict[str, float] = defaultdict(float)  # of what is not training
        self._opened_at = clock()
        self._step_began_at: float | None = None  # None before the first step
        self._is_measuring = self._closed = False

    def _open(self, config: LogConfig, directory: Path, *, config_json: Mapping[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        kept = truncate_after(directory / "metrics.jsonl", self._start_step)
        self._kept = {(record["step"], frozenset(record)) for record in kept}
        self._seconds_before = max((find_number(record, "seconds") or 0.0 for record in kept), default=0.0)
        context = LogContext(directory, directory.name, first_step=self._start_step + 1, config_json=config_json)
        opened = [_open_logger(logger, context) for logger in config.active_loggers]
        self._writers = [
            MetricsFileWriter(directory / "metrics.jsonl"),
            *(logger for logger in opened if logger is not None),
        ]

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the scalars of update number `step`, just dispatched, and write those of the step before."""
        if step <= self._newest_step:
            raise ValueError(f"step {step} was logged after step {self._newest_step}; each step is logged once")
        self._newest_step, is_done = step, _are_ready(metrics)
        if is_done and self._pending and self._pending.done_at is None and self._step_began_at is not None:
            # Both are done, and nobody has seen when the first one was.
            middle = (self._step_began_at + self._clock()) / 2
            self._pending = dataclasses.replace(self._pending, done_at=middle)
        self.flush()
        now = self._clock()
        if self._step_began_at is None:  # everything before the first dispatch is start-up, not training
            self._step_began_at = now
        self._pending = _PendingStep(step, metrics, self._data_seconds, done_at=now if is_done else None)
        self._data_seconds = 0.0

    def write(self, step: int, values: Mapping[str, Any], *, is_event: bool = False) -> None:
        """Write the results of an evaluation of the weights after `step` updates: numbers, or texts such as samples.

        An evaluation that a resumed run repeats is shown again but not recorded again. An event, such as going back
        to this step, is recorded each time, and not shown.
        """
        self.flush()
        values = {name: to_scalar(value) for name, value in values.items()}
        record = {"step": step, "tokens": self._cost.tokens(step)} | values
        self._last_values |= values
        if is_event:
            self._kept.discard((step, frozenset(record)))
        self._write_record(record)
        if self._console and not is_event:
            self._console.show_evaluation(record)

    def flush(self) -> None:
        """Wait for the step that is still being computed, if any, and write it."""
        if self._pending is None or self._step_began_at is None:
            return
        pending, self._pending = self._pending, None
        values = {name: to_scalar(value) for name, value in jax.device_get(dict(pending.metrics)).items()}
        done_at = self._clock() if pending.done_at is None else pending.done_at
        seconds, self._step_began_at = done_at - self._step_began_at, done_at
        self._seconds += seconds
        work = self._cost.count_step(pending.step)
        if seconds > 0:
            for name, amount in work.items():
                self._work[name] += amount
        record = {"step": pending.step, "tokens": self._cost.tokens(pending.step), "seconds": round(self._seconds, 3)}
        record |= values | self._cost.compute_rates(work, seconds) | {"data_seconds": round(pending.data_seconds, 4)}
        self._last_values |= record
        self._write_record(record)
        if self._console:
            self._console.show_training(record)
        if self._goodput:
            self._goodput.add_step(pending.step, seconds, data_seconds=pending.data_seconds)

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Account for the time that the block takes; `kind` names it in the summary. Blocks do not nest.

        Time of the kinds "compile", "evaluate", "checkpoint" and so on is not training time: `seconds` and
        `tokens_per_second` leave it out. Time of the kind "data" is training time, because waiting for data makes
        training slower. It is also written on its own, as `data_seconds` of the step that waited. The wait before the
        first step belongs to start-up: the summary lists it as "first data".
        """
        if self._is_measuring:
            raise RuntimeError(f"measure({kind!r}) was entered inside another measured block")
        if kind != "data":
            self.flush()
        self._is_measuring, began_at = True, self._clock()
        try:
            yield
        finally:
            self._is_measuring, seconds = False, self._clock() - began_at
            if kind == "data" and self._step_began_at is not None:
                self._data_seconds += seconds
                self._data_seconds_total += seconds
            else:
                self._seconds_by_kind["first data" if kind == "data" else kind] += seconds
                if self._goodput:
                    self._goodput.add("data wait" if kind == "data" else kind, seconds, step=self._newest_step)
                if self._step_began_at is not None:
                    self._step_began_at += seconds

    def close(self) -> None:
        """Write the last step, close the writers and print a summary of where the time went."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as stack:
            for writer in self._writers:
                stack.callback(self._try, writer, writer.close)
            if self._console:
                stack.callback(self._console.close)
            self.flush()
            if self._goodput:
                self._goodput.flush()
        if self._console and self._last_values:
            print(self._summarize(), flush=True)

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # While another error is being raised, a step that failed because of it must not hide it.
        with contextlib.suppress(*([Exception] if kind else [])):
            self.close()

    def _write_record(self, record: Record) -> None:
        if (record["step"], frozenset(record)) not in self._kept:
            for writer in self._writers:
                self._try(writer, lambda writer=writer: writer.write(record))

    def _try(self, writer: LogWriter, act: Callable[[], None]) -> None:
        """What a log cannot take ends no training: it is reported once."""
        try:
            act()
        except Exception as error:
            name = type(writer).__name__
            if name not in self._failed:
                print_once(f"warning: {name} failed ({type(error).__name__}: {str(error)[:200]}); training goes on")
            self._failed.add(name)

    def _summarize(self) -> str:
        steps, training = self._newest_step - self._start_step, self._seconds - self._seconds_before
        total = self._clock() - self._opened_at
        other = max(0.0, total - training - sum(self._seconds_by_kind.values()))
        parts = [
            f"training {format_duration(training)} "
            f"(including {format_duration(self._data_seconds_total)} of waiting for data)",
            *(f"{kind} {format_duration(seconds)}" for kind, seconds in self._seconds_by_kind.items()),
            f"other {format_duration(other)}",
        ]
        done = count_of(steps, "steps")
        text = f"{done}, up to step {self._newest_step:,}, in {format_duration(total)}: {', '.join(parts)}."
        if rates := self._cost.compute_rates(self._work, training):
            text += f" While training: {format_columns(rates, ', ')}."
        if peak := get_peak_memory():
            text += f" Peak memory of a device: {peak / 2**30:.1f} GiB."
        last = {name: self._last_values[name] for name in ("loss", "val_loss", "val_bpb") if name in self._last_values}
        return text + (f" Last values: {format_columns(last, ', ')}." if last else "")


def _open_logger(logger: Logger, context: LogContext) -> LogWriter | None:
    """The writer of a logger; None if it cannot begin, which is reported. A UserError asks for another config."""
    try:
        return logger.open(context)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [""]
        print_once(
            f"warning: {type(logger).__name__} does not start ({type(error).__name__}: {reason[0][:200]}); "
            "training goes on without it"
        )
        return None


def _are_ready(metrics: Mapping[str, Any]) -> bool:
    return all(value.is_ready() for value in metrics.values() if hasattr(value, "is_ready"))
