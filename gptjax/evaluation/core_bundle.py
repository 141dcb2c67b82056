"""CORE: 22 tasks of DCLM (arXiv:2406.11794) from a local copy of its evaluation bundle, centred and averaged.

The bundle is the directory `eval_bundle` that nanochat fetches: `core.yaml`, `eval_meta_data.csv` and the items as JSON
Lines under `eval_data`. Prompts, order of items and examples are nanochat's, so scores are comparable with its tables.
"""

import csv
import importlib.util
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError, count_of
from gptjax.evaluation.figures import DRAWS, Figure, ItemScores, draw_totals, find_interval, item_figure
from gptjax.evaluation.prefixes import score_with_shared_prefixes
from gptjax.evaluation.scoring import ScoringOptions
from gptjax.evaluation.windows import EvalWindow
from gptjax.model.gpt import GPT
from gptjax.tokenization.tokenizer import Tokenizer

ORDER_SEED, EXAMPLES_SEED = 1337, 1234
TEXT = str | int | float
FIELDS: dict[str, dict[str, Any]] = {
    "multiple_choice": {"query": TEXT, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": TEXT, "gold": int},
    "language_modeling": {"context": str, "continuation": TEXT},
}
"""What an item of each kind has."""
Item = dict[str, Any]


@dataclass(frozen=True)
class CoreTask:
    """One task of the bundle."""

    name: str
    kind: str
    """multiple_choice, schema or language_modeling."""
    items: list[Item]
    num_fewshot: int
    delimiter: str
    """What stands between a context and its continuation."""
    chance: float
    """Accuracy of guessing, in percent."""


def read_bundle(directory: Path) -> list[CoreTask]:
    """The tasks of a bundle, their items in nanochat's order.

    Raises:
        UserError: a file is missing, or does not hold what its name says.
    """
    check_bundle(directory)
    import yaml  # of the extra `eval`

    try:
        config = yaml.safe_load((directory / "core.yaml").read_text(encoding="utf-8"))
        with (directory / "eval_meta_data.csv").open(encoding="utf-8", newline="") as file:
            chances = {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)}
        return [_read_task(directory, entry, chances) for entry in config["icl_tasks"]]
    except OSError as error:
        raise _refuse_bundle(directory, error) from None
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"--core={directory} does not hold CORE's bundle: {error!r}. Fetch it again.") from None


def check_bundle(directory: Path) -> None:
    """Raise a `UserError` unless a bundle is there and can be read here."""
    if importlib.util.find_spec("yaml") is None:
        raise UserError("--core needs PyYAML. pip install 'gptjax[eval]'.")
    try:
        (directory / "core.yaml").stat()
    except OSError as error:
        raise _refuse_bundle(directory, error) from None


def _refuse_bundle(directory: Path, error: OSError) -> UserError:
    return UserError(f"--core={directory} is not CORE's bundle: {error}. Give its directory.")


def _read_task(directory: Path, entry: dict[str, Any], chances: dict[str, float]) -> CoreTask:
    lines = (directory / "eval_data" / entry["dataset_uri"]).read_text(encoding="utf-8").split("\n")
    name, kind = entry["label"], entry["icl_task_type"]
    if kind not in FIELDS:
        raise ValueError(f"the task {name} is of an unknown kind, {kind!r}")
    items = [_check_item(json.loads(line), name, kind=kind) for line in lines if line.strip()]
    random.Random(ORDER_SEED).shuffle(items)
    shots = entry["num_fewshot"][0] if isinstance(entry["num_fewshot"], list) else int(entry["num_fewshot"])
    return CoreTask(name, kind, items, shots, entry.get("continuation_delimiter", " "), chances[name])


def _check_item(item: Any, task: str, *, kind: str) -> Item:
    """The item. Raises ValueError unless it has what items of this kind have."""
    for field, hint in FIELDS[kind].items():
        if not isinstance(item, dict) or not isinstance(item.get(field), hint):
            raise ValueError(f"an item of {task} lacks {field}: {str(item)[:80]}")
    answers = item.get({"multiple_choice": "choices", "schema": "context_options"}.get(kind, ""))
    if answers is not None and not (0 <= item["gold"] < len(answers) and all(isinstance(a, TEXT) for a in answers)):
        raise ValueError(f"an item of {task} has no answer {item['gold']}: {str(item)[:80]}")
    return item


def check_tasks(tasks: Sequence[CoreTask], *, limit: int | None) -> None:
    """Raise `UserError` for a task with fewer items than its prompts have examples, before any is scored."""
    for task in tasks:
        if len(task.items[:limit]) <= task.num_fewshot:
            raise UserError(
                f"--core: the task {task.name} has {task.num_fewshot} examples in each prompt, which come from its "
                f"{count_of(len(task.items[:limit]), 'items')}. Give --limit={task.num_fewshot + 1} or more."
            )


def score_core(
    model: GPT, tokenizer: Tokenizer, tasks: Sequence[CoreTask], *, limit: int | None = None, batch_size: int = 16
) -> tuple[dict[str, Figure], dict[str, ItemScores]]:
    """Accuracy of each task, and `CORE`: the mean of (accuracy - chance) / (1 - chance). Call it under the mesh.

    Args:
        limit: items of each task, from the start of its order. nanochat takes 500 during training and all at the end.
    """
    check_tasks(tasks, limit=limit)
    figures, items, centred, draws = {}, {}, [], []
    options = ScoringOptions(batch_size=batch_size)
    for seed, task in enumerate(tasks):
        right = score_task(model, tokenizer, task, limit=limit, options=options)
        scores = ItemScores(np.stack([right, np.ones(len(right))], axis=1), "mean")
        figures[f"core {task.name}"] = item_figure(scores)
        items[f"core {task.name}"] = scores
        chance = task.chance / 100
        centred.append((float(right.mean()) - chance) / (1 - chance))
        drawn = scores.compute(draw_totals(scores.pairs, draws=DRAWS, seed=seed)) if len(right) > 1 else right
        draws.append((np.broadcast_to(drawn, DRAWS) - chance) / (1 - chance))  # a task of one item is always drawn
        controls = measure_controls(task, limit=limit) | measure_unread(
            model, tokenizer, task, limit=limit, options=options
        )
        for control, value in controls.items():
            figures[f"core {task.name} {control}"] = Figure(value, float("nan"), float("nan"))
    figures["CORE"] = Figure(float(np.mean(centred)), *find_interval(np.mean(draws, axis=0)))
    return figures, items


def measure_controls(task: CoreTask, *, limit: int | None) -> dict[str, float]:
    """Accuracy without reading: by chance, as the bundle has it, and by always giving the most frequent answer."""
    answer = "continuation" if task.kind == "language_modeling" else "gold"
    golds = [item[answer] for item in task.items[:limit]]
    return {"chance": task.chance / 100, "majority class": max(Counter(golds).values()) / len(golds)}


def measure_unread(
    model: GPT, tokenizer: Tokenizer, task: CoreTask, *, limit: int | None, options: ScoringOptions
) -> dict[str, float]:
    """Accuracy of the answers scored by themselves, each as a document of its own.

    An answer is a choice, of a schema one of its contexts, and of a language modeling task the text to predict.
    """
    items = task.items[:limit]
    if tokenizer.begin_of_text is None or not items:
        return {}
    windows = []
    for item in items:
        answers = item["context_options"] if task.kind == "schema" else item.get("choices", [item.get("continuation")])
        rows = [[tokenizer.begin_of_text, *_encode_in_context(tokenizer, task, item, str(a))] for a in answers]
        rows = [np.array(row[: model.config.context_length], np.int32) for row in rows]
        windows.append([EvalWindow(row, len(row) - 1) for row in rows])
    right = score_items(model, replace(task, items=items), windows, options=options)
    return {"answer without question": float(right.mean())}


def _encode_in_context(tokenizer: Tokenizer, task: CoreTask, item: Item, answer: str) -> np.ndarray:
    """The tokens that an answer has behind its question, whose last blank is a part of them."""
    if task.kind == "schema":  # it begins the text
        return tokenizer.encode(answer)
    question = str(item["query"]) if task.kind == "multiple_choice" else item["context"].strip()
    before = f"{question}{task.delimiter}"
    start = len(before) - before.endswith(" ")
    ids, number = tokenizer.encode_pair(before[:start], f"{before[start:]}{answer}")
    return ids[number:]


def score_task(
    model: GPT, tokenizer: Tokenizer, task: CoreTask, *, limit: int | None, options: ScoringOptions
) -> np.ndarray:
    """For each item 1 if the model's answer is right, else 0."""
    task = replace(task, items=task.items[:limit])  # examples come from these, too, as in nanochat
    length = model.config.context_length
    windows = [make_windows(tokenizer, task, i, length=length) for i in range(len(task.items))]
    return score_items(model, task, windows, options=options)


def score_items(
    model: GPT, task: CoreTask, windows: Sequence[Sequence[EvalWindow]], *, options: ScoringOptions
) -> np.ndarray:
    """For the windows of each item 1 if the right one is the likeliest in the mean, or is what the model writes."""
    scores = iter(score_with_shared_prefixes(model, [w for item in windows for w in item], options=options))
    right = np.zeros(len(windows))
    for i, item in enumerate(windows):
        found = [next(scores) for _ in item]
        if task.kind == "language_modeling":
            right[i] = found[0].greedy.all()
        else:
            best = int(np.argmin([-score.log_probabilities.mean(dtype=np.float64) for score in found]))
            right[i] = best == task.items[i]["gold"]
    return right


def make_windows(tokenizer: Tokenizer, task: CoreTask, index: int, *, length: int) -> list[EvalWindow]:
    """The prompts of an item as windows: one for each choice or context."""
    item = task.items[index]
    shots: list[Item] = []
    if task.num_fewshot > 0:
        others = [i for i in range(len(task.items)) if i != index]
        drawn = random.Random(EXAMPLES_SEED + index).sample(others, task.num_fewshot)
        shots = [task.items[i] for i in drawn]
    prompts = render_prompts(task, item, shots)
    first = [] if tokenizer.begin_of_text is None else [tokenizer.begin_of_text]
    rows = [np.array([*first, *tokenizer.encode(prompt)], np.int32) for prompt in prompts]
    if task.kind == "language_modeling":
        before, whole = rows
        start = len(before)
        rows, starts = [whole], [start]
    elif task.kind == "multiple_choice":
        starts = [count_common(rows)] * len(rows)
    else:
        tail = count_common([row[::-1] for row in rows])
        starts = [len(row) - tail for row in rows]
    # A row keeps its last `length` tokens. What is scored has at least one token before it.
    return [
        EvalWindow(row[-length:], max(1, min(len(row) - start, min(len(row), length) - 1)))
        for row, start in zip(rows, starts, strict=True)
    ]


def count_common(rows: Sequence[np.ndarray]) -> int:
    """Tokens with which all rows begin."""
    length = min(map(len, rows))
    same = np.all([row[:length] == rows[0][:length] for row in rows], axis=0)
    return length if same.all() else int(np.argmin(same))


def render_prompts(task: CoreTask, item: Item, shots: Sequence[Item]) -> list[str]:
    """The texts of an item after its examples: one for each choice or context, or without and with the continuation."""
    d = task.delimiter
    if task.kind == "multiple_choice":
        before = "".join(f"{s['query']}{d}{s['choices'][s['gold']]}\n\n" for s in shots)
        return [f"{before}{item['query']}{d}{choice}" for choice in item["choices"]]
    if task.kind == "schema":
        before = "".join(f"{s['context_options'][s['gold']]}{d}{s['continuation']}\n\n" for s in shots)
        return [f"{before}{context}{d}{item['continuation']}" for context in item["context_options"]]
    before = "".join(f"{s['context'].strip()}{d}{s['continuation']}\n\n" for s in shots)
    asked = f"{before}{item['context'].strip()}{d}"
    return [asked.strip(), f"{asked}{item['continuation']}"]
