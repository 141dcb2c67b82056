"""Draws the losses of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.metrics.metrics_file import Record, read_metrics

EVALUATION_PREFIX = "eval_"
"""Metrics with this beginning, of texts and tasks, are drawn below the losses."""
MAX_PANELS = 12


def plot_losses(run_directory: str | Path, *, references: Mapping[str, float] | None = None) -> Path:
    """Draw the losses in metrics.jsonl (nats per token) into loss.png beside it, and return the path of the image.

    `references` maps names to losses that are drawn as level lines. Metrics `eval_…` get a panel each below.
    """
    from matplotlib.figure import Figure  # slow to import

    directory = Path(run_directory)
    records = read_metrics(directory / "metrics.jsonl")
    names = list_evaluations(records)
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(8, 5 + 2 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, 3, height_ratios=[5, *[2] * rows])
    axes = figure.add_subplot(grid[0, :])
    for place, name in enumerate(names):
        panel = figure.add_subplot(grid[1 + place // 3, place % 3])
        panel.plot(*_select_points(records, name), "o-", markersize=3)
        panel.set_title(name.removeprefix(EVALUATION_PREFIX), fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
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


def list_evaluations(records: list[Record]) -> list[str]:
    """Names of the numbers that evaluations of texts and tasks gave, at most `MAX_PANELS`, in order."""
    is_number = lambda value: isinstance(value, int | float)
    names = (name for record in records for name, value in record.items() if is_number(value))
    return [name for name in dict.fromkeys(names) if name.startswith(EVALUATION_PREFIX)][:MAX_PANELS]


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
