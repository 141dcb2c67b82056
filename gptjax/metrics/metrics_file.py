"""metrics.jsonl, the record of a run: read, written, cut back and drawn.

One JSON object a line, each with its `step`; what else a line carries is said in `gptjax.logbook`, which writes it. A
number that is not finite is written as null.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError

Record = dict[str, Any]


def read_metrics(path: str | Path) -> list[Record]:
    """The records of a metrics.jsonl in order; half a last line, left by a crash, is not a record."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}; a run writes it from its first step on.")
    return [record for _, record in _whole_lines(Path(path))]


def _whole_lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    *lines, _half = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path}, line {number} is not a record with a step: {line[:60]!r}. Delete the line to go on."
            ) from None
        yield line, record


def truncate_after(path: Path, step: int) -> list[Record]:
    """Keep the lines up to `step`, byte for byte, and return their records; the file is replaced in one move."""
    if not path.exists():
        return []
    kept = [(line, record) for line, record in _whole_lines(path) if record["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(b"".join(line + b"\n" for line, _ in kept))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return [record for _, record in kept]


def write_record(file: Any, record: Record) -> None:
    """Add a record to an open file as one line, and hand it to the system."""
    finite = {name: None if _is_lost(value) else value for name, value in record.items()}
    file.write(json.dumps(finite, allow_nan=False) + "\n")
    file.flush()


def _is_lost(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def to_scalar(value: Any) -> Any:
    """A scalar as Python's own int or float, a float32 at its shortest; texts and lists of them as they are."""
    if isinstance(value, str | list | tuple) or value is None:
        return value
    array = np.asarray(value)
    if array.ndim:
        raise TypeError(f"a metric is one number, not an array of shape {array.shape}")
    if array.dtype.kind in "biu" or array.dtype == np.float64:
        return int(array) if array.dtype.kind == "b" else array.item()
    return float(str(np.float32(array)))


def plot_losses(run_directory: str | Path, *, references: Mapping[str, float] | None = None) -> Path:
    """Draw the losses in metrics.jsonl (nats per token) into loss.png beside it; `references` are level lines."""
    from matplotlib.figure import Figure

    directory = Path(run_directory)
    records = read_metrics(directory / "metrics.jsonl")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    levels = [*_draw_training(axes, *_points(records, "loss")), *(references or {}).values()]
    steps, losses = _points(records, "val_loss")
    if len(steps):
        axes.plot(steps, losses, "o-", color="tab:orange", markersize=4, label=f"validation ({losses[-1]:.4f})")
        levels += list(losses[steps > 0])
    for index, (name, level) in enumerate((references or {}).items()):
        axes.axhline(level, color=f"C{index + 2}", linestyle="--", linewidth=1, label=f"{name} ({level:g})")
    if levels:
        margin = 0.05 * (max(levels) - min(levels)) or 0.1
        axes.set_ylim(min(levels) - margin, max(levels) + margin)
        axes.legend()
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=directory.resolve().name)
    axes.grid(alpha=0.3)
    figure.savefig(directory / "loss.png", dpi=120)
    return directory / "loss.png"


def _draw_training(axes: Any, steps: np.ndarray, losses: np.ndarray) -> list[float]:
    """The raw curve thin and its running mean over it; returns the levels that should be in view."""
    if not len(steps):
        return []
    window = max(1, len(losses) // 50)
    mean = np.convolve(losses, np.ones(window) / window, "valid")
    axes.plot(steps, losses, color="tab:blue", alpha=0.4, linewidth=0.8)
    middle = steps[window // 2 :][: len(mean)]
    axes.plot(middle, mean, color="tab:blue", label=f"training, mean of {window} ({mean[-1]:.4f})")
    # The first steps fall from ln(vocabulary) and would flatten all that follows.
    return list(losses[len(losses) // 20 :])


def _points(records: list[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])
