"""Loggers send the records of a run to TensorBoard, Weights & Biases or anywhere else.

A new logger is a frozen dataclass with a method `open` (see `Logger`), listed in `log.loggers` of a config file. The
terminal and metrics.jsonl need no logger: every run has them.
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from gptjax.core.errors import UserError
from gptjax.core.files import write_atomically
from gptjax.metrics.metrics_file import Record
from gptjax.process.console import print_once


@dataclass(frozen=True)
class LogContext:
    """Describes the run to a logger that is being opened."""

    run_directory: Path
    run_name: str
    first_step: int
    """The first training step that will be written; above 1 in a run that resumes."""
    config_json: Mapping[str, Any]
    """The run's config, in JSON's types."""


@runtime_checkable
class LogWriter(Protocol):
    """Receives the records of a run, on the first process only."""

    def write(self, record: Record) -> None:
        """Write one record, as `gptjax.metrics.logger` describes it: `step`, `tokens`, numbers and texts."""
        ...

    def close(self) -> None:
        """Write what is buffered. Called once, however the run ends."""
        ...


@runtime_checkable
class Logger(Protocol):
    """The config of a logger: a frozen dataclass that opens a `LogWriter`.

    It may have a method `check`, which raises a UserError for what is wrong with it before a run writes anything.
    """

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def open(self, context: LogContext) -> LogWriter:
        """Open the writer, once each time the run starts or resumes. May raise a UserError."""
        ...


@dataclass(frozen=True)
class TensorBoardLogger:
    """Writes TensorBoard event files into `tensorboard/` of the run directory."""

    def open(self, context: LogContext) -> LogWriter:
        return TensorBoardWriter(context.run_directory / "tensorboard", first_step=context.first_step)


class TensorBoardWriter:
    """Writes numbers as scalars and texts as texts."""

    def __init__(self, directory: Path, *, first_step: int) -> None:
        from tensorboardX import SummaryWriter  # slow to import

        # Readers drop events from first_step on, as the truncated metrics.jsonl does. The suffix keeps a run that
        # resumes within a second from overwriting the earlier file, which is named after the second.
        suffix = f".from_{first_step}"
        self._writer = SummaryWriter(str(directory), purge_step=first_step, filename_suffix=suffix)

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, record["step"])
            elif isinstance(value, str):
                self._writer.add_text(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True)
class WandbLogger:
    """Writes to Weights & Biases. A run that resumes goes on with the same W&B run."""

    project: str = "gptjax"
    mode: Literal["offline", "online"] = "online"
    """Whether to send the records to the servers, or only write them to the run directory. `WANDB_MODE` overrules."""

    def check(self) -> None:
        """Raise a UserError if wandb is not installed."""
        try:
            import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]  (an extra)
        except ImportError:
            raise UserError(
                f"log.wandb is {self.mode!r}, but wandb is not installed. Run pip install 'gptjax[wandb]', or set "
                "--log.wandb=off."
            ) from None

    def open(self, context: LogContext) -> LogWriter:
        self.check()
        import wandb  # pyright: ignore[reportMissingImports]

        id_file = context.run_directory / "wandb_id"
        if not id_file.is_file() or not id_file.read_bytes().strip():
            write_atomically(id_file, secrets.token_hex(4))
        mode = os.environ.get("WANDB_MODE") or self.mode
        try:
            run = self._start(wandb, context, run_id=id_file.read_text().strip(), mode=mode)
        except Exception as error:
            if mode == "offline":
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            print_once(f"warning: Weights & Biases ({mode}) does not start: {lines[0][:200]}. It is written offline.")
            run = self._start(wandb, context, run_id=id_file.read_text().strip(), mode="offline")
        # W&B's own step cannot go back to the step at which a run resumes; a metric of ours can.
        run.define_metric("*", step_metric="step")
        return WandbWriter(run)

    def _start(self, wandb: Any, context: LogContext, *, run_id: str, mode: str) -> Any:
        return wandb.init(
            project=self.project,
            name=context.run_name,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=str(context.run_directory),
            config=dict(context.config_json),
            settings=wandb.Settings(console="off"),
        )


class WandbWriter:
    """Writes records to an open W&B run."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, record: Record) -> None:
        self._run.log(record)

    def close(self) -> None:
        self._run.finish()
