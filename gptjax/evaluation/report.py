"""What an evaluation of checkpoints prints, and its JSON."""

import json
import math
from dataclasses import asdict
from typing import Any

from gptjax.core.errors import UserError, count_of, quote
from gptjax.core.files import expand_path, write_output
from gptjax.evaluation.comparison import Evaluation, compare, format_table
from gptjax.evaluation.figures import Figure


def describe(evaluations: list[Evaluation], *, baseline: str | None = None, quantize: str | None = None) -> str:
    """What the command prints: protocol and counts of each checkpoint, and the table."""
    lines = []
    for e in evaluations:
        average = ", average of the weights" if e.about.get("weights") == "average" else ""
        if "step" in e.about:
            run = f" of {quote(e.about['run'])}" if "run" in e.about else ""
            lines.append(f"{e.name}: step {e.about['step']}{run}{average}")
        if "protocol" in e.about:
            counts = ", ".join(count_of(e.about[name], name) for name in ("tokens", "words", "bytes", "documents"))
            lines += [e.about["protocol"], f"{counts}; intervals: {e.about['interval']}"]
        if "harness" in e.about:
            lines.append(
                f"lm-evaluation-harness {e.about['harness'].get('lm_eval', '')}: {_describe_tasks(e.about['harness'])}"
            )
        if "val_loss_quantized" in e.about:
            rounded, loss = e.about["val_loss_quantized"], e.figures["nats_per_token"].value
            lines.append(f"weights in {quantize}: {rounded:.4f} nats per token, {rounded - loss:+.4f}")
        if "failed" in e.about:
            lines.append(f"{e.name} is not finished: {e.about['failed']}")
    compared = _find(evaluations, baseline)
    notes: list[str] = []
    if compared is not None:
        notes = [f"{e.name}: {note}" for e in evaluations if e is not compared for note in compare(e, compared).notes]
    return "\n".join([*lines, "", format_table(evaluations, compared), *notes])


def _describe_tasks(about: dict[str, Any]) -> str:
    """Items and examples of each task."""
    shots, items = about.get("num_fewshot", {}), about.get("items", {})
    counts = [
        f"{task}: {count_of(n, 'items')}, {count_of(shots.get(task, 0), 'examples')}" for task, n in items.items()
    ]
    lines = [", ".join(counts) or "no results"]
    for what in ("not run", "failed"):
        lines += [f"{what}: {task}: {reason}" for task, reason in about.get(what.replace(" ", "_"), {}).items()]
    return "\n".join(lines)


def _find(evaluations: list[Evaluation], name: str | None) -> Evaluation | None:
    return next((e for e in evaluations if e.name == name), None)


def to_result(evaluations: list[Evaluation], *, baseline: str | None = None, several: bool = False) -> dict[str, Any]:
    """An evaluation as JSON: `checkpoint`, `figures` (value, low, high), protocol and counts.

    `val_loss`, `val_perplexity` and `val_bpb` are its figures per token and byte. Several checkpoints are a list under
    `checkpoints`, each with its paired `differences` from the `baseline`.

    Args:
        several: more than one was asked for, though an error may have left one.
    """
    compared = _find(evaluations, baseline)
    results = [_to_json(e, None if e is compared else compared) for e in evaluations]
    return results[0] if len(results) == 1 and not several else {"baseline": baseline, "checkpoints": results}


def _to_json(evaluation: Evaluation, baseline: Evaluation | None) -> dict[str, Any]:
    names = {"nats_per_token": "val_loss", "token_perplexity": "val_perplexity", "bits_per_byte": "val_bpb"}
    figures = evaluation.figures
    values = {short: figures[name].value for name, short in names.items() if name in figures} | evaluation.about
    result: dict[str, Any] = {"checkpoint": evaluation.name, **{key: _finite(value) for key, value in values.items()}}
    result["figures"] = _figures_to_json(figures)
    if baseline is None:
        return result
    found = compare(evaluation, baseline)
    result["differences"] = _figures_to_json(found.differences)
    return result | ({"not_compared": list(found.notes)} if found.notes else {})


def _figures_to_json(figures: dict[str, Figure]) -> dict[str, Any]:
    return {name: {key: _finite(x) for key, x in asdict(figure).items()} for name, figure in figures.items()}


def _finite(value: Any) -> Any:
    """None for NaN and infinities, which JSON lacks; other values as they are."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_result(target: str, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if target == "-":
        print(text, end="")
        return
    path = expand_path(target)
    try:
        write_output(path, text)
    except OSError as error:
        raise UserError(f"--json={path} cannot be written: {error.strerror}.") from None
