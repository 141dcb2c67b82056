"""Names of what evaluators measure."""

import math
from collections import Counter
from collections.abc import Sequence

from gptjax.core.errors import UserError


def check_evaluator_names(evaluators: Sequence[object]) -> None:
    """Raise if two evaluators of a class have one name: one's metrics would stand for the other's."""
    names = Counter((type(one).__name__, getattr(one, "name", None)) for one in evaluators)
    for (kind, name), count in names.items():
        if name is not None and count > 1:
            problem = f"{count} {kind} are named {name!r}, so their metrics have the same names"
            raise UserError(f'evaluators: {problem}. Give them names, as in {kind}(name="books").')


def to_metrics(
    sums: dict[str, float], tokens: int, text_bytes: int | None, *, name: str = "val"
) -> dict[str, float | str]:
    """Sums over tokens as their means. The nats are `loss`, or `cross_entropy` where the loss has other terms, too.

    They are also given as perplexity and, where bytes are known, as bits per byte.
    """
    values: dict[str, float | str] = {f"{name}_{key}": value / tokens for key, value in sums.items()}
    nats = sums.get("cross_entropy", sums["loss"])
    values[f"{name}_perplexity"] = math.exp(min(nats / tokens, 700.0))
    return values | ({f"{name}_bpb": nats / math.log(2) / text_bytes} if text_bytes else {})
