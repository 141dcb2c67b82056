"""Evaluations side by side: one table with paired differences from a baseline, and the same as bars."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError, count_of
from gptjax.evaluation.figures import (
    DocumentSums,
    Figure,
    ItemScores,
    compare_figures,
    compare_means,
    item_figure,
    pair_documents,
)

PER_TOKEN = ("nats_per_token", "token_perplexity")
"""Figures that depend on the tokenizer."""


@dataclass
class Evaluation:
    """What was measured of one checkpoint."""

    name: str
    figures: dict[str, Figure]
    sums: DocumentSums | None = None
    """Sums over the documents of the text, if one was scored."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer."""
    items: dict[str, ItemScores] = field(default_factory=dict)
    """Scores of tasks' items, by the figure that they give."""
    means: dict[str, dict[str, float]] = field(default_factory=dict)
    """Figures that are means over tasks, such as CORE: the factor of each task's figure."""
    window: int | None = None
    """Most tokens that a window of the text reads."""
    about: dict[str, Any] = field(default_factory=dict)
    """Step, protocol and counts, for the JSON file."""


@dataclass(frozen=True)
class Comparison:
    """Differences of an evaluation from a baseline's."""

    differences: dict[str, Figure]
    notes: tuple[str, ...]
    """What was not compared, or in part, and why."""


def compare(evaluation: Evaluation, baseline: Evaluation) -> Comparison:
    """Differences from the baseline, with intervals over documents or items that both have in common."""
    differences: dict[str, Figure] = {}
    notes: list[str] = []
    own, other = evaluation.sums, baseline.sums
    if own is not None and other is not None:
        if isinstance(pairs := pair_documents(own, other), str):
            notes.append(f"no difference on the text: {pairs}")
        else:
            same = evaluation.tokenizer == baseline.tokenizer
            found = compare_figures(*pairs)
            differences |= {name: figure for name, figure in found.items() if same or name not in PER_TOKEN}
            notes += _explain_differences(pairs, all_documents=(len(own.nats), len(other.nats)))
            windows = {window for window in (evaluation.window, baseline.window) if window is not None}
            if len(windows) > 1:
                notes.append(
                    f"its windows are of {evaluation.window:,} tokens, and {baseline.window:,} of the baseline; "
                    f"--window={min(windows)} makes them equal"
                )
    for name, items in evaluation.items.items():
        others = baseline.items.get(name)
        if others is None:
            continue
        if len(others.pairs) == len(items.pairs):
            differences[name] = item_figure(items, others)
        else:
            notes.append(f"no difference of {name}: {len(items.pairs)} items, and {len(others.pairs)} of the baseline")
    for name, factors in evaluation.means.items():
        if factors == baseline.means.get(name) and factors.keys() <= differences.keys():
            own_items, other_items = ([e.items[task] for task in factors] for e in (evaluation, baseline))
            differences[name] = compare_means(own_items, other_items, weights=list(factors.values()))
    return Comparison(differences, tuple(notes))


def _explain_differences(pairs: tuple[DocumentSums, DocumentSums], *, all_documents: tuple[int, int]) -> Iterator[str]:
    """Why differences on a text may not be those of the figures."""
    if (common := len(pairs[0].nats)) < max(all_documents):
        yield (
            f"differences on the text are over the {count_of(common, 'documents')} that both have; the figures are "
            f"over {all_documents[0]:,}, and {all_documents[1]:,} of the baseline"
        )
    own, other = (round(float(sums.bytes.sum())) for sums in pairs)
    if own != other:
        yield (
            f"differences on the text are of {own:,} scored bytes, and {other:,} of the baseline, whose tokens or "
            "windows end elsewhere"
        )


def format_table(evaluations: Sequence[Evaluation], baseline: Evaluation | None = None) -> str:
    """A Markdown table: a row for each figure, a column for each checkpoint.

    A cell is the figure with its 95 % interval, and under Δ its paired difference from the baseline.
    """
    columns, differences = list(evaluations), {}
    if baseline is not None:
        differences = {id(e): compare(e, baseline).differences for e in columns if e is not baseline}
    names = list(dict.fromkeys(name for e in columns for name in e.figures))
    title = lambda e: f"{escape_cell(e.name)} (baseline)" if e is baseline else escape_cell(e.name)
    rows = [["figure", *map(title, columns)], ["---"] * (len(columns) + 1)]
    for name in names:
        cells = [name]
        for e in columns:
            figure, change = e.figures.get(name), differences.get(id(e), {}).get(name)
            cells.append("not run" if figure is None else format_figure(figure))
            if change is not None:
                cells[-1] += f", Δ {format_figure(change, signed=True)}"
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def format_figure(figure: Figure, *, signed: bool = False) -> str:
    """Such as `3.1416 [3.1000, 3.2000]`; without an interval if there is none."""
    sign = "+" if signed else ""
    write = lambda x: f"{x:{sign}.4f}" if abs(x) < 1e4 else f"{x:{sign}.5g}"
    if math.isnan(figure.low):
        return write(figure.value)
    return f"{write(figure.value)} [{write(figure.low)}, {write(figure.high)}]"


def escape_cell(name: str) -> str:
    """A name in a Markdown table."""
    return name.replace("\n", " ").replace("|", "\\|")


def draw_bars(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Draw each figure as a panel of bars with its intervals. The suffix of `path` decides the format.

    Raises:
        UserError: the file cannot be written, or its suffix is of no known format.
    """
    from matplotlib.figure import Figure as Canvas  # slow to import

    names = list(dict.fromkeys(name for e in evaluations for name in e.figures))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    height = 0.6 + 0.3 * len(evaluations)
    canvas = Canvas(figsize=(3.6 * columns, 0.9 + lines * (height + 0.7)), layout="constrained")
    panels = np.atleast_1d(canvas.subplots(lines, columns, squeeze=False)).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_panel(panel, name, [(e.name, e.figures[name]) for e in evaluations if name in e.figures])
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    try:
        canvas.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"--picture={path} cannot be written: {reason}.") from None


def _draw_panel(panel: Any, name: str, values: Sequence[tuple[str, Figure]]) -> None:
    labels = [label if len(label) <= 24 else f"…{label[-23:]}" for label, _ in values]
    figures = [figure for _, figure in values]
    known = lambda end, figure: figure.value if math.isnan(end) else end
    errors = [
        [max(0.0, f.value - known(f.low, f)) for f in figures],
        [max(0.0, known(f.high, f) - f.value) for f in figures],
    ]
    places = range(len(figures))
    panel.barh(places, [f.value for f in figures], xerr=errors, color=[f"C{i % 10}" for i in places], capsize=3)
    panel.set_yticks(places, labels, fontsize=8)
    panel.invert_yaxis()
    panel.set_title(name.replace("_", " "), fontsize=9)
    panel.tick_params(axis="x", labelsize=8)
