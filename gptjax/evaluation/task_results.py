"""What tasks of lm-evaluation-harness gave: figures with intervals, controls beside them, and every response."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptjax.core.errors import UserError
from gptjax.evaluation.figures import Figure, ItemScores, item_figure
from gptjax.evaluation.task_controls import measure_controls
from gptjax.evaluation.task_data import OWN_TASKS

if TYPE_CHECKING:
    from gptjax.evaluation.harness_model import HarnessModel


@dataclass
class TaskResults:
    """What tasks gave. Those of one task after another are added."""

    figures: dict[str, Figure] = field(default_factory=dict)
    items: dict[str, ItemScores] = field(default_factory=dict)
    """The scores behind those figures that are sums over items."""
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Every item with its prompts and responses, by task."""
    about: dict[str, Any] = field(default_factory=dict)
    """Versions, few-shot examples and counts, for the record."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Tasks without data, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """Tasks and groups that failed, and why."""

    def add(self, other: "TaskResults") -> None:
        """Add what another task gave."""
        for own in fields(self):
            getattr(self, own.name).update(_merge(getattr(self, own.name), getattr(other, own.name)))

    def to_json(self) -> dict[str, Any]:
        """The record of the tasks."""
        failed = {"failed": self.failed} if self.failed else {}
        return {**self.about, "not_run": self.not_run, **failed}


def _merge(own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both, also of the dictionaries in them."""
    both = lambda name, value: isinstance(value, dict) and isinstance(own.get(name), dict)
    return {name: own[name] | value if both(name, value) else value for name, value in other.items()}


def collect_results(model: "HarnessModel", found: dict[str, Any]) -> TaskResults:
    """Figures of each task and metric, with intervals where the metric is a sum over items, and controls."""
    results = TaskResults(samples=found.get("samples") or {})
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr") or not filter_name:
                continue
            name = f"{task} {metric}" if filter_name == "none" else f"{task} {metric} ({filter_name})"
            samples = [s for s in results.samples.get(task, []) if s["filter"] == filter_name]
            scores = find_item_scores([s.get(metric) for s in samples], value)
            results.figures[name] = Figure(value, math.nan, math.nan) if scores is None else item_figure(scores)
            if scores is not None:
                results.items[name] = scores
        kind = (found.get("configs") or {}).get(task, {}).get("output_type")
        # The metric of another's task may take its answer out of a target that is longer.
        is_known = kind != "generate_until" or (OWN_TASKS / f"{task}.yaml").is_file()
        samples = results.samples.get(task, []) if is_known else []
        for control, value in measure_controls(model, samples, kind=kind).items():
            results.figures[f"{task} {control}"] = Figure(value, math.nan, math.nan)
    results.about = {
        "versions": found.get("versions", {}),
        "num_fewshot": found.get("n-shot", {}),
        "items": {task: counts.get("effective") for task, counts in (found.get("n-samples") or {}).items()},
        "lm_eval": found.get("lm_eval_version"),
    }
    return results


def find_item_scores(values: Sequence[Any], value: float) -> ItemScores | None:
    """The items' scores as sums whose quotient gives the metric; None for a metric that is no such thing."""
    if not values or any(v is None for v in values):
        return None
    try:
        pairs = np.array([v if isinstance(v, tuple | list) else (v, 1.0) for v in values], np.float64)
    except (TypeError, ValueError):
        return None
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        return None
    for transform in ("mean", "perplexity", "bits"):
        scores = ItemScores(pairs, transform)
        if math.isclose(scores.value, value, rel_tol=1e-6, abs_tol=1e-9):
            return scores
    return None


def write_responses(path: Path, samples: dict[str, list[dict[str, Any]]], *, checkpoint: str, mode: str = "w") -> None:
    """Every item as a line of JSON: the document, what the model read, what it answered, and how it was scored."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            for task, items in samples.items():
                for item in items:
                    line = {"checkpoint": checkpoint, "task": task, **item}
                    file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    except OSError as error:
        raise UserError(f"--responses={path} cannot be written: {error.strerror}.") from None
