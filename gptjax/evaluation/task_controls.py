"""What a task of lm-evaluation-harness gives without reading. A model that does no better has not read."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gptjax.evaluation.harness_model import HarnessModel

Sample = Mapping[str, Any]
"""An item as the harness logs it."""


def measure_controls(model: "HarnessModel", samples: Sequence[Sample], *, kind: str | None) -> dict[str, float]:
    """The controls of a task's metrics by name; none for texts that are scored whole, where there is no answer.

    Args:
        samples: every item, once for each of the task's filters.
        kind: the task's `output_type`.
    """
    items = list({sample["doc_id"]: sample for sample in samples}.values())
    if not items:
        return {}
    if kind == "multiple_choice":
        return measure_choices(model, items)
    if kind == "loglikelihood":
        return measure_targets(model, items)
    return measure_majority([sample.get("target") for sample in items]) if kind == "generate_until" else {}


def measure_choices(model: "HarnessModel", items: Sequence[Sample]) -> dict[str, float]:
    """Accuracy of a multiple choice by chance, by the most frequent answer, and of the answers by themselves."""
    golds, choices = [], []
    for sample in items:
        answers = [arguments[1] for arguments in sample["arguments"] if len(arguments) == 2]
        if "acc_mutual_info" in sample:  # for which each is also asked without the question
            answers = answers[: len(answers) // 2]
        if "acc" not in sample or len(answers) < 2 or not all(isinstance(answer, str) for answer in answers):
            return {}
        if (gold := _find_gold(sample.get("target"), answers)) is None:
            return {}
        golds.append(gold)
        choices.append(answers)
    controls = {"chance": float(np.mean([1 / len(answers) for answers in choices]))}
    controls["majority class"] = max(Counter(golds).values()) / len(golds)
    if all(len(set(answers)) > 1 for answers in choices):
        likelihoods = iter(_score_alone(model, [answer for answers in choices for answer in answers]))
        best = [int(np.argmax([next(likelihoods)[0] for _ in answers])) for answers in choices]
        controls["answer without question"] = float(np.mean([b == g for b, g in zip(best, golds, strict=True)]))
    return controls


def measure_targets(model: "HarnessModel", items: Sequence[Sample]) -> dict[str, float]:
    """Accuracy of always giving the most frequent text, and of the texts scored by themselves, with their perplexity.

    A text counts as given if each of its tokens is the likeliest. Each follows the token that begins a document.
    """
    targets = [sample["arguments"][0][1] for sample in items if len(sample["arguments"]) == 1]
    if len(targets) < len(items):
        return {}
    alone = _score_alone(model, targets)
    controls: dict[str, float] = {}
    if all("acc" in sample for sample in items):
        controls = measure_majority(targets)
        controls["answer without question"] = float(np.mean([is_greedy for _, is_greedy in alone]))
    if all("perplexity" in sample for sample in items):
        controls["perplexity without question"] = math.exp(-float(np.mean([nats for nats, _ in alone])))
    return controls


def measure_majority(targets: Sequence[Any]) -> dict[str, float]:
    """The share of items that the most frequent answer is right for. An item may have several right answers."""
    counts: Counter[str] = Counter()
    for target in targets:
        counts.update({str(answer) for answer in (target if isinstance(target, list) else [target])})
    return {"majority class": max(counts.values()) / len(targets)} if counts else {}


def _score_alone(model: "HarnessModel", answers: Sequence[str]) -> list[tuple[float, bool]]:
    """Log-likelihood of each answer after the token that begins a document, and whether it is what the model writes."""
    return model._loglikelihood_tokens(
        [(None, [model.prefix_token_id], model.tok_encode(answer)) for answer in answers]
    )


def _find_gold(target: Any, answers: Sequence[str]) -> int | None:
    """The index of the right answer; None for several, or for a target of another kind."""
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        return int(target) if 0 <= target < len(answers) else None
    if isinstance(target, str):
        if target.isdigit() and int(target) < len(answers):
            return int(target)
        stripped = [answer.strip() for answer in answers]
        return stripped.index(target.strip()) if target.strip() in stripped else None
    return None
