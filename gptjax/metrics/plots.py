"""Draws the losses of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.metrics.metrics_file import Record, read_metrics


def plot_losses(run_directory: str | Path, *, references: Mapping[str, float] | None = None) -> Path:
    """Draw the losses in metrics.jsonl (nats per token) into loss.png beside it, and return the path of the image.

    `references` maps names to losses that are drawn as level lines.
    """
    from matplotlib.figure import Figure  # slow to import

    directory = Path(run_directory)
    records = read_metrics(directory / "metrics.jsonl")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    levels = [*_draw_training(axes, *_select_points(records, "loss")), *(references or {}).values()]
    steps, losses = _select_points(records, "val_loss")
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
    """Draw the losses and their running mean; return the losses that should be in view."""
    if not len(steps):
        return []
    window = max(1, len(losses) // 50)
    mean = np.convolve(losses, np.ones(window) / window, "valid")
    axes.plot(steps, losses, color="tab:blue", alpha=0.4, linewidth=0.8)
    middle = steps[window // 2 :][: len(mean)]
    axes.plot(middle, mean, color="tab:blue", label=f"training, mean of {window} ({mean[-1]:.4f})")
    # The first steps fall from ln(vocabulary size) and would flatten the rest of the curve.
    return list(losses[len(losses) // 20 :])


def _select_points(records: list[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of the records that have a number under `name`."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return np.array([step for step, _ in points]), np.array([value for _, value in points])
