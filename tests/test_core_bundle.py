import json
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_protocols import TOKENIZER

from gptjax.core.errors import UserError
from gptjax.evaluation.comparison import Evaluation, compare
from gptjax.evaluation.core_bundle import make_windows, read_bundle, render_prompts, score_core
from gptjax.evaluation.figures import ItemScores
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT

pytest.importorskip("yaml")
QUESTIONS = [{"query": f"the {i} or that?", "choices": ["then", f"it {i}"], "gold": i % 2} for i in range(6)]
SCHEMAS = [{"context_options": [f"the {i} is", "it was"], "continuation": "in there", "gold": 1} for i in range(4)]
TEXTS = [{"context": f"the other {i} ", "continuation": "then"} for i in range(5)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Three tasks, one of each kind, in the bundle's own files."""
    files = {"questions.jsonl": QUESTIONS, "schemas.jsonl": SCHEMAS, "texts.jsonl": TEXTS}
    (tmp_path / "eval_data").mkdir()
    for name, items in files.items():
        (tmp_path / "eval_data" / name).write_text("\n".join(map(json.dumps, items)) + "\n")
    (tmp_path / "core.yaml").write_text(
        "icl_tasks:\n"
        "- {label: q, dataset_uri: questions.jsonl, num_fewshot: [2], icl_task_type: multiple_choice, "
        'continuation_delimiter: "\\nAnswer: "}\n'
        "- {label: s, dataset_uri: schemas.jsonl, num_fewshot: [0], icl_task_type: schema}\n"
        "- {label: t, dataset_uri: texts.jsonl, num_fewshot: [1], icl_task_type: language_modeling}\n"
    )
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nq,50\ns,50.0\nt,0\n")
    return tmp_path


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(
        num_layers=1,
        embed_dim=16,
        num_heads=2,
        context_length=128,
        vocab_size=259,
        compute=ComputeConfig(dtype="float32"),
        init=InitConfig(std=0.5),
    )
    return jax.jit(lambda key: GPT(config, key=key))(jax.random.key(1))


def test_items_and_examples_are_drawn_as_nanochat_draws_them(bundle: Path) -> None:
    task = read_bundle(bundle)[0]
    wanted = list(QUESTIONS)
    random.Random(1337).shuffle(wanted)
    assert task.items == wanted
    shots = random.Random(1234 + 3).sample([0, 1, 2, 4, 5], 2)
    prompts = [TOKENIZER.decode(w.tokens[1:]) for w in make_windows(TOKENIZER, task, 3, length=128)]
    example = lambda item: f"{item['query']}\nAnswer: {item['choices'][item['gold']]}\n\n"
    before = "".join(example(wanted[i]) for i in shots)
    assert prompts == [f"{before}{wanted[3]['query']}\nAnswer: {choice}" for choice in wanted[3]["choices"]]


def test_language_modeling_prompts_are_trimmed(bundle: Path) -> None:
    task = read_bundle(bundle)[2]
    assert render_prompts(task, TEXTS[0], [TEXTS[1]]) == [
        "the other 1 then\n\nthe other 0",
        "the other 1 then\n\nthe other 0 then",
    ]


def test_accuracy_is_that_of_the_least_mean_loss(bundle: Path, model: GPT) -> None:
    """Whole logits of one row after another, and losses from where the rows differ."""
    tasks = read_bundle(bundle)
    figures, items = score_core(model, TOKENIZER, tasks, batch_size=2)
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model(tokens)[0]))

    def list_losses(row: np.ndarray) -> np.ndarray:
        padded = np.pad(row, (0, 128 - len(row)))[None]
        return -np.asarray(forward(jnp.asarray(padded)))[np.arange(len(row) - 1), row[1:]]

    right = []
    for index, item in enumerate(tasks[0].items):
        rows = [w.tokens for w in make_windows(TOKENIZER, tasks[0], index, length=128)]
        start = next(i for i in range(min(map(len, rows))) if rows[0][i] != rows[1][i])
        losses = [list_losses(row)[start - 1 :].mean() for row in rows]
        right.append(float(np.argmin(losses) == item["gold"]))
    assert items["core q"].pairs[:, 0].tolist() == right
    assert figures["core q"].value == pytest.approx(np.mean(right))
    centred = [(figures["core q"].value - 0.5) / 0.5, (figures["core s"].value - 0.5) / 0.5, figures["core t"].value]
    assert figures["CORE"].value == pytest.approx(np.mean(centred))
    assert figures["CORE"].low < figures["CORE"].value < figures["CORE"].high
    golds = [item["gold"] for item in tasks[0].items]
    assert figures["core q majority class"].value == max(map(golds.count, golds)) / len(golds)
    assert figures["core q chance"].value == 0.5
    assert figures["core t majority class"].value == 1.0, "every text goes on with the same word"

    end = [TOKENIZER.end_of_text]
    for name, given, answers, blank in (("q", QUESTIONS, "choices", " "), ("s", SCHEMAS, "context_options", "")):
        alone = [
            np.argmin([list_losses(np.array([*end, *TOKENIZER.encode(f"{blank}{a}")])).mean() for a in item[answers]])
            for item in given
        ]
        wanted = np.mean([best == item["gold"] for best, item in zip(alone, given, strict=True)])
        assert figures[f"core {name} answer without question"].value == pytest.approx(wanted)
    assert figures["core t answer without question"].value == 0.0


def test_limit_takes_the_first_items(bundle: Path, model: GPT) -> None:
    _, items = score_core(model, TOKENIZER, read_bundle(bundle), limit=3)
    assert {name: len(scores.pairs) for name, scores in items.items()} == {"core q": 3, "core s": 3, "core t": 3}


@pytest.mark.parametrize(("name", "content"), [("core.yaml", "icl_tasks: [1]"), ("eval_meta_data.csv", "a,b\n1,2\n")])
def test_damaged_bundle_is_refused(bundle: Path, name: str, content: str) -> None:
    (bundle / name).write_text(content)
    with pytest.raises(UserError, match="does not hold CORE's bundle"):
        read_bundle(bundle)
    with pytest.raises(UserError, match=r"is not CORE's bundle: .*No such file"):
        read_bundle(bundle / "nothing")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"query": "a", "choices": ["b", "c"]}, "an item of q lacks gold"),
        ({"query": "a", "choices": ["b", "c"], "gold": 2}, "an item of q has no answer 2"),
        ({"query": "a", "choices": "bc", "gold": 1}, "an item of q lacks choices"),
        ([], "an item of q lacks query"),
    ],
)
def test_items_that_cannot_be_scored_are_refused_when_the_bundle_is_read(bundle: Path, item: Any, message: str) -> None:
    (bundle / "eval_data" / "questions.jsonl").write_text("\n".join(map(json.dumps, [*QUESTIONS, item])))
    with pytest.raises(UserError, match=message):
        read_bundle(bundle)


def test_limit_that_leaves_too_few_examples_is_refused_before_scoring(bundle: Path, model: GPT) -> None:
    with pytest.raises(UserError, match=r"task q has 2 examples in each prompt, .* its 2 items\. Give --limit=3"):
        score_core(model, TOKENIZER, read_bundle(bundle), limit=2)


def test_core_is_compared_by_its_tasks_differences() -> None:
    def make(name: str, *rights: list[int]) -> Evaluation:
        pairs = [np.stack([right, np.ones(len(right))], axis=1) for right in rights]
        items = {f"core {i}": ItemScores(pair, "mean") for i, pair in enumerate(pairs)}
        return Evaluation(name, {}, items=items, means={"CORE": {"core 0": 2.0, "core 1": 1.0}})

    better, base = make("b", [1, 1, 0, 1], [1, 0]), make("a", [1, 0, 0, 1], [0, 0])
    found = compare(better, base).differences["CORE"]
    assert found.value == pytest.approx((2 * 0.25 + 0.5) / 2)
    assert found.low < found.value < found.high
    assert "CORE" not in compare(better, make("c", [1, 0, 0, 1])).differences
