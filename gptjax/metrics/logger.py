"""Where the numbers of a run go: terminal, metrics.jsonl, TensorBoard, Weights & Biases.

The one idea: numbers are written one step late. `step` receives scalars that are still being computed, and writes
those of the step before, so the host never waits for the step that the device has just been given.

`metrics.jsonl` in the run directory is the record, one JSON object a line:

- a training line carries `step`, the number of completed updates after it (the first is 1), `tokens` seen by then,
  `seconds` of training by then (compilation, evaluation and checkpoints left out), whatever the training step
  returned (`loss`, `learning_rate`, `grad_norm`, ...), and `tokens_per_second`, `data_seconds`, `mfu`, `mfu_palm`;
- an evaluation line carries the `step` and `tokens` at which the weights were judged, and `val_loss` and the like.

A number that is not finite is written as null. Resuming at step k keeps the lines up to k and drops the rest.
"""

import contextlib
import dataclasses
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from gptjax.core.errors import UserError
from gptjax.metrics.console import ConsoleProgress, format_columns, format_duration
from gptjax.metrics.metrics_file import Record, to_scalar, truncate_after, write_record
from gptjax.sharding.devices import get_peak_memory


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is shown and where it is kept, besides metrics.jsonl, which is always written."""

    every: int = 10
    """Steps between two lines on a terminal that is not interactive; the files get every step."""
    tensorboard: bool = False
    """Also write TensorBoard event files, into `tensorboard/` of the run directory."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also write to Weights & Biases: to disk only (`offline`) or to its servers (`online`)."""
    wandb_project: str = "gptjax"
    """The Weights & Biases project."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"log.every is {self.every} steps: use 1 or more.")


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that has been dispatched and not yet written."""

    step: int
    metrics: Mapping[str, Any]
    waited: float
    """Seconds of waiting for its data."""
    done_at: float | None
    """When it was done, if its dispatch already returned with the numbers (as small steps on a CPU do)."""


def _all_ready(metrics: Mapping[str, Any]) -> bool:
    return all(value.is_ready() for value in metrics.values() if hasattr(value, "is_ready"))


class MetricLogger:
    """Writes one run's numbers; a context manager, so that the last step is written however the run ends.

    Every process makes one; only process 0 writes and prints.
    """

    def __init__(
        self,
        log: LogConfig,
        run_directory: str | Path,
        *,
        total_steps: int,
        tokens: Callable[[int], int],
        start_step: int = 0,
        flops: Callable[[int], float] | None = None,
        flops_palm: Callable[[int], float] | None = None,
        peak_flops_total: float | None = None,
        config_json: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Open the record of a run that has completed `start_step` of its `total_steps` updates.

        `tokens` and `flops` say how many a run's first so many updates take, for steps need not be alike; FLOPs are
        counted causally and as in the PaLM paper (full attention). `peak_flops_total` is that of all devices together.
        Without a peak there is no MFU. `clock` gives seconds.
        """
        self._tokens = tokens
        shares = {"mfu": flops, "mfu_palm": flops_palm} if peak_flops_total else {}
        self._flops = {name: count for name, count in shares.items() if count}
        self._peak = peak_flops_total
        self._start_step = self._newest = start_step
        self._writers: list[Callable[[Record], None]] = []
        self._closers: list[Callable[[], None]] = []
        self._kept: set[tuple[int, frozenset[str]]] = set()
        self._terminal: ConsoleProgress | None = None
        kept: list[Record] = []
        if jax.process_index() == 0:
            directory = Path(run_directory)
            directory.mkdir(parents=True, exist_ok=True)
            kept = truncate_after(directory / "metrics.jsonl", start_step)
            self._kept = {(record["step"], frozenset(record)) for record in kept}
            self._open(log, directory, config_json)
            self._terminal = ConsoleProgress(log.every, total_steps, start_step, tokens)
        self._pending: _Pending | None = None
        self._last: Record = {}
        self._seconds = self._seconds_before = max((r.get("seconds") or 0.0 for r in kept), default=0.0)
        self._waited = self._waited_total = 0.0
        self._done: dict[str, float] = defaultdict(float)
        self._apart: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._pausing = self._closed = False
        self._opened = clock()
        self._mark: float | None = None

    def _open(self, log: LogConfig, directory: Path, config_json: Mapping[str, Any] | None) -> None:
        if log.tensorboard:
            write, close = _open_tensorboard(directory / "tensorboard", first_step=self._start_step + 1)
            self._writers.append(write)
            self._closers.append(close)
        if log.wandb != "off":
            write, close = _open_wandb(log, directory, config_json or {})
            self._writers.append(write)
            self._closers.append(close)
        file = (directory / "metrics.jsonl").open("a", encoding="utf-8")
        self._writers.append(lambda record: write_record(file, record))
        self._closers.append(file.close)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the scalars of update number `step`, just dispatched, and write those of the one before."""
        if step <= self._newest:
            raise ValueError(f"step {step} was logged after step {self._newest}: each training step has one line")
        self._newest = step
        self.flush()
        now = self._clock()
        # The first step's time starts at its dispatch: what came before was start-up, not training.
        self._mark = now if self._mark is None else self._mark
        self._pending = _Pending(step, metrics, self._waited, done_at=now if _all_ready(metrics) else None)
        self._waited = 0.0

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write what an evaluation of the weights after `step` updates found: numbers, or texts such as samples.

        An evaluation repeated after a resume is shown again but not recorded again.
        """
        self.flush()
        found = {name: to_scalar(value) for name, value in values.items()}
        record = {"step": step, "tokens": self._tokens(step)} | found
        self._last |= found
        self._record(record)
        if self._terminal:
            self._terminal.evaluation(record)

    def flush(self) -> None:
        """Wait for the step that is still being computed, if any, and write it."""
        if self._pending is None or self._mark is None:
            return
        pending, self._pending = self._pending, None
        values = {name: to_scalar(value) for name, value in jax.device_get(dict(pending.metrics)).items()}
        done_at = self._clock() if pending.done_at is None else pending.done_at
        took, self._mark = done_at - self._mark, done_at
        self._seconds += took
        work = self._work(pending.step)
        for name in work if took > 0 else ():
            self._done[name] += work[name]
        tokens, seconds = self._tokens(pending.step), round(self._seconds, 3)
        record = {"step": pending.step, "tokens": tokens, "seconds": seconds} | values
        record |= self._rates(work, took) | {"data_seconds": round(pending.waited, 4)}
        self._last |= record
        self._record(record)
        if self._terminal:
            self._terminal.training(record)

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Account for time by kind: "compile", "evaluate", "checkpoint" and the like are not training time.

        The kind "data" is the exception: waiting for data is training time, because it makes training slower;
        it is written as `data_seconds` beside the step that waited. Before the first step there is no training
        to slow down, so the first wait is set apart like the rest. Pauses do not nest.
        """
        if self._pausing:
            raise RuntimeError(f"paused({kind!r}) inside another pause")
        if kind != "data":
            self.flush()
        self._pausing, began = True, self._clock()
        try:
            yield
        finally:
            self._pausing, seconds = False, self._clock() - began
            if kind == "data" and self._mark is not None:
                self._waited += seconds
                self._waited_total += seconds
            else:
                self._apart["first data" if kind == "data" else kind] += seconds
                self._mark = None if self._mark is None else self._mark + seconds

    def close(self) -> None:
        """Write the last step and say in a paragraph where the time went."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            if self._terminal:
                self._terminal.close()
            for close in self._closers:
                close()
        if self._terminal and self._last:
            print(self._summary(), flush=True)

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # While another error is on its way out, a step that failed with it has nothing to add.
        with contextlib.suppress(*([Exception] if kind else [])):
            self.close()

    def _record(self, record: Record) -> None:
        if (record["step"], frozenset(record)) not in self._kept:
            for write in self._writers:
                write(record)

    def _work(self, step: int) -> dict[str, float]:
        """The tokens of update number `step`, and its FLOPs in each way of counting them."""
        counts = {"tokens": self._tokens} | self._flops
        return {name: float(count(step) - count(step - 1)) for name, count in counts.items()}

    def _rates(self, work: Mapping[str, float], seconds: float) -> Record:
        """Tokens per second, and the share of the peak that they use where the peak is known."""
        if seconds <= 0 or not work:
            return {}
        used = {name: round(work[name] / seconds / (self._peak or 1), 4) for name in self._flops}
        return {"tokens_per_second": round(work["tokens"] / seconds, 1)} | used

    def _summary(self) -> str:
        steps, seconds = self._newest - self._start_step, self._seconds - self._seconds_before
        lr_scales = self._rates(self._done, seconds)
        total = self._clock() - self._opened
        other = max(0.0, total - seconds - sum(self._apart.values()))
        parts = [
            f"training {format_duration(seconds)} (of which waiting for data {format_duration(self._waited_total)})"
        ]
        parts += [f"{kind} {format_duration(spent)}" for kind, spent in self._apart.items()]
        parts += [f"other {format_duration(other)}"]
        text = f"{steps:,} steps, up to step {self._newest:,}, in {format_duration(total)}: {', '.join(parts)}."
        if lr_scales:
            text += f" While training: {format_columns(lr_scales, ', ')}."
        if peak := get_peak_memory():
            text += f" Most memory in use on a device: {peak / 2**30:.1f} GiB."
        final = {name: self._last[name] for name in ("loss", "val_loss", "val_bpb") if name in self._last}
        return text + (f" Last values: {format_columns(final, ', ')}." if final else "")


def _open_tensorboard(directory: Path, *, first_step: int) -> tuple[Callable[[Record], None], Callable[[], None]]:
    from tensorboardX import SummaryWriter

    # Readers forget what an earlier process wrote from first_step on, as the cut metrics.jsonl does. The suffix
    # keeps a run that resumes within the second from overwriting the file, which is named after the second.
    suffix = f".from_{first_step}"
    writer = SummaryWriter(str(directory), purge_step=first_step, filename_suffix=suffix)

    def write(record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                writer.add_scalar(name, value, record["step"])
            elif isinstance(value, str):
                writer.add_text(name, value, record["step"])

    return write, writer.close


def _open_wandb(
    log: LogConfig, directory: Path, config_json: Mapping[str, Any]
) -> tuple[Callable[[Record], None], Callable[[], None]]:
    try:
        import wandb  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError:
        raise UserError(
            f"log.wandb is {log.wandb!r}, but wandb is not installed: pip install 'gptjax[wandb]', or --log.wandb=off."
        ) from None
    known = directory / "wandb_id"
    if not known.exists():
        known.write_text(secrets.token_hex(4))
    run = wandb.init(
        project=log.wandb_project,
        name=directory.name,
        id=known.read_text().strip(),
        resume="allow" if log.wandb == "online" else None,
        mode="online" if log.wandb == "online" else "offline",
        dir=str(directory),
        config=dict(config_json),
        settings=wandb.Settings(console="off"),
    )
    # Its own counter cannot go back to where a resumed run starts again; ours may.
    run.define_metric("*", step_metric="step")
    return run.log, run.finish
