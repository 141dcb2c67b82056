"""Names of what evaluators measure."""

import math
from collections import Counter
from collections.abc import Collection, Sequence

from gptjax.checkpoints.checkpoint_format import DEFAULT_METRIC
from gptjax.core.errors import UserError


def check_evaluator_names(evaluators: Sequence[object]) -> None:
    """Raise if two evaluators of a class have one name: one's metrics would stand for the other's."""
    names = Counter((type(evaluator).__name__, getattr(evaluator, "name", None)) for evaluator in evaluators)
    for (kind, name), count in names.items():
        if name is not None and count > 1:
            problem = f"{count} {kind} are named {name!r}, so their metrics have the same names"
            raise UserError(f'evaluators: {problem}. Give them names, as in {kind}(name="books").')


def check_best_metric(metric: str, measured: Collection[str], *, patience: int | None) -> None:
    """Raise if `checkpoint.best_metric` is not measured, although it was chosen or `patience` waits for it."""
    if metric in measured or (metric == DEFAULT_METRIC and patience is None):
        return
    effect = "no checkpoint would be `best`" + (
        f", and patience {patience} would never end the run" if patience else ""
    )
    advice = f"There are: {', '.join(sorted(measured))}" if measured else "Add an evaluator, such as ValidationLoss()"
    raise UserError(f"checkpoint.best_metric is {metric!r}, which no evaluator measures: {effect}. {advice}.")


def to_metrics(
    sums: dict[str, float], tokens: int, text_bytes: int | None, *, nats_metric: str | None, name: str = "val"
) -> dict[str, float | str]:
    """Sums over tokens as their means.

    The one called `nats_metric` is also given as perplexity and, where bytes are known, as bits per byte.
    """
    values: dict[str, float | str] = {f"{name}_{key}": value / tokens for key, value in sums.items()}
    if nats_metric is None:
        return values
    nats = sums[nats_metric]
    values[f"{name}_perplexity"] = math.exp(min(nats / tokens, 700.0))
    return values | ({f"{name}_bpb": nats / math.log(2) / text_bytes} if text_bytes else {})
