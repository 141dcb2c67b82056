"""The evaluator of chats: what the model says, what counts as right, and files that it cannot read."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_models import TOKENIZER
from models import make_model

from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.evaluators import exact_match, samples
from gptjax.evaluators.evaluator import EvalContext, Evaluator
from gptjax.evaluators.exact_match import ExactMatch, read_questions
from gptjax.evaluators.samples import Samples
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT
from gptjax.objectives.objective import SFT
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.chat import ChatEncoder
from gptjax.tokenization.chat_template import Message

CONFIG = GPTConfig(
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    context_length=48,
    vocab_size=TOKENIZER.vocab_size,
    compute=ComputeConfig(dtype="float32"),
    init=InitConfig(std=0.3),
)
ENCODER = ChatEncoder(TOKENIZER)


def write_questions(path: Path, questions: dict[str, list[str]]) -> str:
    records = [
        {"messages": [{"role": "user", "content": question}], "answers": known} for question, known in questions.items()
    ]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def open_answers(evaluator: ExactMatch, *, with_tokenizer: bool = True, mesh: MeshConfig | None = None) -> Any:
    own = TOKENIZER if with_tokenizer else None
    return evaluator.open(EvalContext(TokenShards(), own, CONFIG, SFT(), mesh or MeshConfig()))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers that stand in for a model's, one a question; the batches that are asked for must be full."""
    texts: list[str] = []

    def generate(model: None, prompts: list[np.ndarray], *, max_new_tokens: int, **options: Any) -> np.ndarray:
        assert model is None
        assert (options["temperature"], options["end_of_text"], len(prompts)) == (0.0, ENCODER.end, 2)
        rows = np.full((2, max(map(len, prompts)) + max_new_tokens), ENCODER.end, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = TOKENIZER.encode(texts[0] if len(texts) == 1 else texts.pop(0))[:max_new_tokens]
            row[: len(prompt)], row[len(prompt) : len(prompt) + len(ids)] = prompt, ids
        return rows

    monkeypatch.setattr(exact_match, "generation", SimpleNamespace(generate=generate))
    return texts


def test_answers_are_right_only_if_a_known_one_is_met_exactly(tmp_path: Path, said: list[str]) -> None:
    """Three questions in batches of two: the row that fills the second batch does not count."""
    path = write_questions(tmp_path / "q.jsonl", {"a": ["x", "Yes: x"], "longer": ["y"], "c": ["Yes"]})
    said += ["Yes: x", "y.", "Yes"]
    evaluate = open_answers(ExactMatch(path, max_new_tokens=8, opening="Yes: ", batch_size=2))
    assert evaluate(None) == {
        "exact_match": pytest.approx(2 / 3),
        "answer_length": pytest.approx((6 + 2 + 3) / 3),
        "opening_share": pytest.approx(1 / 3),
    }


def test_answers_are_cut_at_the_longest_length(tmp_path: Path, said: list[str]) -> None:
    path = write_questions(tmp_path / "q.jsonl", {"a": ["abc"], "b": ["abcd"]})
    said += ["abcd"]
    assert open_answers(ExactMatch(path, max_new_tokens=3, batch_size=2))(None) == {
        "exact_match": 0.5,
        "answer_length": 3.0,
    }


def test_batches_of_answers_are_rounded_up_to_the_devices(tmp_path: Path, said: list[str]) -> None:
    path = write_questions(tmp_path / "q.jsonl", {"a": ["x"], "b": ["y"], "c": ["z"]})
    said += ["x", "y", "no", "no"]
    evaluate = open_answers(ExactMatch(path, max_new_tokens=8, batch_size=1), mesh=MeshConfig(data=1, fsdp=2, tensor=1))
    assert evaluate(None)["exact_match"] == pytest.approx(2 / 3)


def test_answers_are_those_that_the_model_gives_greedily(tmp_path: Path) -> None:
    model = jax.jit(lambda key: GPT(CONFIG, key=key))(jax.random.key(0))
    forward, questions, texts = jax.jit(GPT.__call__), ("Hi", "What is it?"), []
    for question in questions:
        prompt = ENCODER.encode_prompt([Message("user", question)])
        row, end = np.zeros((1, CONFIG.context_length), np.int32), len(prompt)
        row[0, :end] = prompt
        while end < len(prompt) + 6 and row[0, end - 1] != ENCODER.end:
            row[0, end] = np.asarray(forward(model, jnp.asarray(row)))[0, end - 1].argmax()
            end += 1
        ids = row[0, len(prompt) : end]
        texts.append(TOKENIZER.decode(ids[ids != ENCODER.end]))
    known = {questions[0]: ["never said", texts[0]], questions[1]: [texts[1] + "!"]}
    path = write_questions(tmp_path / "q.jsonl", known)
    found = open_answers(ExactMatch(path, max_new_tokens=6, batch_size=4))(model)
    assert found == {"exact_match": 0.5, "answer_length": np.mean([*map(len, texts)])}


def test_answers_without_tokenizer_or_room_are_not_evaluated(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", {"x" * 40: ["y"]})
    assert open_answers(ExactMatch(path), with_tokenizer=False) is None
    with pytest.raises(UserError, match="a question leaves no room for an answer in 48 tokens"):
        open_answers(ExactMatch(path))
    with pytest.raises(UserError, match="batch_size is 0; it must be at least 1"):
        ExactMatch(path, batch_size=0)
    evaluator = ExactMatch(path, every=5)
    assert isinstance(evaluator, Evaluator)
    assert [step for step in range(13) if evaluator.should_run(step, steps=12)] == [0, 5, 10, 12]


def test_questions_may_hold_any_separator_of_lines(tmp_path: Path) -> None:
    """U+2028 is legal inside a JSON text, and no end of a line there."""
    path = write_questions(tmp_path / "q.jsonl", {"a\u2028b": ["c\x85"]})
    assert list(read_questions(Path(path))) == [([Message("user", "a\u2028b")], ["c\x85"])]


def test_questions_are_read_from_arrays_and_tables(tmp_path: Path) -> None:
    """As JSON, and as Python and NumPy write lists."""
    messages, answers = [{"role": "user", "content": "a"}], ["[b", "it's, 'c' d"]
    (tmp_path / "array.json").write_text(json.dumps([{"messages": messages, "answers": answers}]))
    for name, write in {"json": json.dumps, "python": str, "numpy": lambda value: str(np.array(value))}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("messages", "answers"), (write(messages), write(answers))])
    for path in tmp_path.iterdir():
        assert list(read_questions(path)) == [([Message("user", "a")], answers)]


@pytest.mark.parametrize("answer", ["['a', 'b']", "[1, 2]", '["a"]'])
def test_text_of_a_list_is_an_answer_where_messages_are_a_list(answer: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}], "answers": answer}))
    assert list(read_questions(tmp_path / "q.jsonl")) == [([Message("user", "a")], [answer])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "q.jsonl has no questions"),
        (b"{", "q.jsonl:1: not a line of JSON"),
        (b'{"messages": [{"role": "user", "content": "a"}], "answers": []}', 'wanted "answers", a list of texts'),
        (b'{"messages": [], "answers": ["a"]}', '"messages": wanted a list of messages'),
        (b'{"messages": [{"role": "tool", "content": "a"}], "answers": ["a"]}', "q.jsonl:1: a message calls tools"),
        (b'{"messages": [["a", "b"]], "answers": ["a"]}', 'wanted an object with "role" and "content"'),
        (b'{"messages": ["a", "b"], "answers": ["b"]}', "wanted messages that the user ends, got .* of the assistant"),
        (b'{"answers": ["\xff"]}', "q.jsonl:1: not a line of JSON in UTF-8: .* in position 14"),
        (None, "q.jsonl': no such file"),
    ],
)
def test_questions_that_cannot_be_read_are_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_answers(ExactMatch(str(tmp_path / "q.jsonl")))


def test_samples_of_a_run_on_chats_are_written_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(model: GPT, prompts: list[list[int]], *, end_of_text: int, **options: Any) -> np.ndarray:
        assert prompts == [ENCODER.encode_prompt([Message("user", "2+2?")]).tolist()]
        assert end_of_text == ENCODER.end
        return np.array([[*prompts[0], *TOKENIZER.encode("4."), ENCODER.end, ENCODER.end]])

    monkeypatch.setattr(samples, "generation", SimpleNamespace(generate=generate))
    context = EvalContext(TokenShards(), TOKENIZER, CONFIG, SFT(), MeshConfig())
    evaluate: Any = Samples(prompt="2+2?").open(context)
    assert evaluate(make_model(CONFIG)) == {"sample": "user: 2+2?\nassistant: 4."}
