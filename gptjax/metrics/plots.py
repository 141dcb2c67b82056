"""Draws the losses of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.metrics.goodput import Span, read_spans, split_spans, sum_kinds
from gptjax.metrics.metrics_file import Record, find_number, read_metrics

EVALUATION_PREFIX = "eval_"
"""Metrics with this beginning, of texts and tasks, are drawn below the losses."""
MAX_PANELS = 12
KIND_COLORS = {
    "step": "tab:blue",
    "data wait": "tab:orange",
    "start": "tab:gray",
    "compile": "tab:purple",
    "evaluate": "tab:green",
    "checkpoint": "tab:olive",
    "lost steps": "tab:red",
}


def plot_losses(run_directory: str | Path, *, references: Mapping[str, float] | None = None) -> Path:
    """Draw the losses in metrics.jsonl into loss.png beside it, and return the path of the image.

    `references` maps names to losses that are drawn as level lines. Metrics `eval_…` get a panel each below. Last comes
    a line of time, if goodput.jsonl says what it was spent on.
    """
    from matplotlib.figure import Figure  # slow to import

    directory = Path(run_directory)
    records = read_metrics(directory / "metrics.jsonl")
    names = list_evaluations(records)
    spans = read_spans(directory)
    heights = [5, *[2] * -(-len(names) // 3), *([1.5] if spans else [])]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 3, height_ratios=heights)
    if spans:
        draw_timeline(figure.add_subplot(grid[-1, :]), spans)
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
        levels += list(losses)
    for index, (name, level) in enumerate((references or {}).items()):
        axes.axhline(level, color=f"C{index + 2}", linestyle="--", linewidth=1, label=f"{name} ({level:.4f})")
    if levels:
        margin = 0.05 * (max(levels) - min(levels)) or 0.1
        axes.set_ylim(min(levels) - margin, max(levels) + margin)
        axes.legend()
    axes.set(xlabel="step", ylabel="loss", title=directory.resolve().name)
    axes.grid(alpha=0.3)
    figure.savefig(directory / "loss.png", dpi=120)
    return directory / "loss.png"


def draw_timeline(axes: Any, spans: Sequence[Span]) -> None:
    """Draw what the time of a run was spent on, one start after another; a tick marks each start."""
    totals = sum_kinds(spans)
    total = sum(totals.values())
    unit, name = next(((s, n) for s, n in ((3600, "hours"), (60, "minutes")) if total > 2 * s), (1, "seconds"))
    bars: dict[str, list[tuple[float, float]]] = {kind: [] for kind in totals}
    now, starts = 0.0, []
    for kind, seconds in split_spans(spans):
        if kind == "start":
            starts.append(now / unit)
        if bars[kind] and bars[kind][-1][0] + bars[kind][-1][1] == now / unit:
            bars[kind][-1] = (bars[kind][-1][0], (now + seconds) / unit - bars[kind][-1][0])
        else:
            bars[kind].append((now / unit, (now + seconds) / unit - now / unit))
        now += seconds
    for index, (kind, seconds) in enumerate(totals.items()):
        label = f"{kind} {seconds / total:.0%}" if total else kind
        axes.broken_barh(bars[kind], (0, 1), color=KIND_COLORS.get(kind, f"C{index}"), label=label)
    axes.vlines(starts, 1, 1.2, color="black", linewidth=1)
    axes.set(yticks=[], ylim=(0, 1.2), xlim=(0, max(now / unit, 1e-9)), xlabel=f"{name} of running")
    axes.legend(fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


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
    name = "training" if window == 1 else f"training, mean of {window}"
    axes.plot(middle, mean, color="tab:blue", label=f"{name} ({mean[-1]:.4f})")
    return list(losses)


def _select_points(records: list[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of the records that have a number under `name`."""
    points = [(record["step"], value) for record in records if (value := find_number(record, name)) is not None]
    return np.array([step for step, _ in points]), np.array([value for _, value in points])
