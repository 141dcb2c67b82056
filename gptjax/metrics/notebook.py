"""A loss curve that grows in a notebook while a run trains."""

from dataclasses import dataclass
from typing import Any

from gptjax.core.errors import UserError
from gptjax.metrics.loggers import LogContext, LogWriter
from gptjax.metrics.metrics_file import Record


@dataclass(frozen=True)
class NotebookLogger:
    """Draws training and validation loss below the cell that trains. Put it into `log.loggers`."""

    every: int = 20
    """Steps between two drawings. One takes about 50 ms."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"NotebookLogger.every is {self.every}; it must be at least 1 step.")

    def open(self, context: LogContext) -> LogWriter:
        return NotebookWriter(context.run_name, every=self.every)


class NotebookWriter:
    """Keeps the losses that it is given, and draws them anew in the same place."""

    def __init__(self, title: str, *, every: int) -> None:
        try:
            from IPython.display import display
        except ImportError:
            raise UserError("NotebookLogger needs a notebook (IPython). Leave it out of log.loggers.") from None
        from matplotlib.figure import Figure  # slow to import

        self._losses: dict[str, list[tuple[int, float]]] = {"loss": [], "val_loss": []}
        self._every, self._title = every, title
        self._figure = Figure(figsize=(8, 4), layout="constrained")
        self._axes = self._figure.subplots()
        self._handle: Any = display(self._figure, display_id=True)

    def write(self, record: Record) -> None:
        for name, points in self._losses.items():
            if isinstance(value := record.get(name), float):
                points.append((record["step"], value))
        if "val_loss" in record or record["step"] % self._every == 0:
            self._draw()

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        self._axes.clear()
        for (name, points), style in zip(self._losses.items(), ("-", "o-"), strict=True):
            if points:
                self._axes.plot(*zip(*points, strict=True), style, label=f"{name} {points[-1][1]:.4f}")
                self._axes.legend()
        self._axes.set(xlabel="step", ylabel="loss", title=self._title)
        self._axes.grid(alpha=0.3)
        if self._handle is not None:  # outside of a notebook nothing can be redrawn
            self._handle.update(self._figure)
