"""Loggers besides metrics.jsonl: TensorBoard, Weights & Biases and a user's own."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from gptjax.core.errors import UserError
from gptjax.metrics.logger import LogConfig, MetricLogger
from gptjax.metrics.loggers import LogContext, Logger, LogWriter, TensorBoardLogger, WandbLogger
from gptjax.metrics.metrics_file import Record, read_metrics
from gptjax.metrics.throughput import RunCost


def open_logger(directory: Path, config: LogConfig, *, start_step: int = 0) -> MetricLogger:
    cost = RunCost(lambda step: 1000 * step)
    return MetricLogger(config, directory, total_steps=10, cost=cost, start_step=start_step, config_json={"steps": 10})


@dataclass(frozen=True)
class ListLogger:
    """A user's own logger: it keeps the records in a list."""

    name: str = "list"

    def open(self, context: LogContext) -> LogWriter:
        return ListWriter(context)


class ListWriter:
    opened: list["ListWriter"] = []  # noqa: RUF012

    def __init__(self, context: LogContext):
        self.context, self.records, self.closed = context, [], 0
        self.opened.append(self)

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


def test_own_logger_gets_the_records_of_metrics_jsonl(tmp_path: Path):
    assert all(isinstance(logger, Logger) for logger in (ListLogger(), TensorBoardLogger(), WandbLogger()))
    with open_logger(tmp_path, LogConfig(loggers=(ListLogger(),)), start_step=2) as log:
        log.write(2, {"val_loss": 0.5, "sample": "Once"})
        log.step(3, {"loss": jnp.float32(2.0)})
    (writer,) = ListWriter.opened
    assert writer.context == LogContext(tmp_path, tmp_path.name, first_step=3, config_json={"steps": 10})
    assert writer.records == read_metrics(tmp_path / "metrics.jsonl")
    assert len(writer.records) == 2
    assert writer.closed == 1


def read_events(directory: Path) -> dict[tuple[str, int], float]:
    """Read the scalars in TensorBoard files as a reader that obeys purges sees them."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    scalars: dict[tuple[str, int], float] = {}
    for path in sorted(directory.iterdir()):  # their names begin with the time, and end with the first step
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.HasField("session_log"):
                scalars = {key: value for key, value in scalars.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars[value.tag, event.step] = value.simple_value
    return scalars


def test_tensorboard_events_are_purged_on_resume(tmp_path: Path):
    config = LogConfig(tensorboard=True)
    with open_logger(tmp_path, config) as log:
        for step in (1, 2, 3):
            log.step(step, {"loss": jnp.float32(step)})
        log.write(2, {"val_loss": 0.5, "sample": "Once"})
    losses = {key: value for key, value in read_events(tmp_path / "tensorboard").items() if "loss" in key[0]}
    assert losses == {("loss", 1): 1.0, ("loss", 2): 2.0, ("loss", 3): 3.0, ("val_loss", 2): 0.5}
    with open_logger(tmp_path, config, start_step=2) as log:
        log.step(3, {"loss": jnp.float32(7.0)})
    scalars = read_events(tmp_path / "tensorboard")
    assert (scalars["loss", 2], scalars["loss", 3]) == (2.0, 7.0)


def test_missing_wandb_is_reported_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'gptjax\[wandb\]'"):
        LogConfig(wandb="online").check()
    with pytest.raises(UserError, match="wandb is not installed"):
        open_logger(tmp_path, LogConfig(wandb="online"))


class FakeWandb:
    """Stands in for the module wandb and for its run; records the calls."""

    def __init__(self):
        self.calls: list[Any] = []

    def Settings(self, **options: Any) -> None:
        """Accept any settings."""

    def init(self, **options: Any) -> "FakeWandb":
        self.calls.append(options)
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.calls.append((name, step_metric))

    def log(self, record: Record) -> None:
        self.calls.append(record)

    def finish(self) -> None:
        self.calls.append("finish")


def test_wandb_gets_records_and_one_id_across_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ids = set()
    for start in (0, 1):
        wandb = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        with open_logger(tmp_path, LogConfig(wandb="online", wandb_project="tiny"), start_step=start) as log:
            log.step(start + 1, {"loss": jnp.float32(2.0)})
        options, metric, record, finish = wandb.calls
        assert (options["project"], options["mode"], options["resume"]) == ("tiny", "online", "allow")
        assert (options["name"], options["config"]) == (tmp_path.name, {"steps": 10})
        assert metric == ("*", "step")
        assert record == read_metrics(tmp_path / "metrics.jsonl")[-1]
        assert finish == "finish"
        ids.add(options["id"])
    assert ids == {(tmp_path / "wandb_id").read_text()}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_offline_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for start in (0, 1):
        with open_logger(tmp_path, LogConfig(wandb="offline"), start_step=start) as log:
            log.step(start + 1, {"loss": jnp.float32(2.0)})
    identity = (tmp_path / "wandb_id").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))) >= 1


@dataclass(frozen=True)
class BrokenLogger:
    """A service that refuses to begin."""

    def open(self, context: LogContext) -> LogWriter:
        raise ConnectionError("not logged in")


def test_logger_that_does_not_start_ends_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with open_logger(tmp_path, LogConfig(loggers=(BrokenLogger(),))) as log:
        log.step(1, {"loss": jnp.float32(2.0)})
    out = capsys.readouterr().out
    assert "warning: BrokenLogger does not start (ConnectionError: not logged in); training goes on without it" in out
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["loss"] == 2.0


def test_empty_wandb_id_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As after a power cut or on a full disk."""
    (tmp_path / "wandb_id").touch()
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with open_logger(tmp_path, LogConfig(wandb="online")):
        pass
    assert wandb.calls[0]["id"] == (tmp_path / "wandb_id").read_text() != ""
