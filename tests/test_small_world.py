"""The made world: its four files agree, hold nothing twice, and are the same for the same seed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_models import TOKENIZER

from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.prepare_preferences import PreparePreferences, prepare_preferences
from data_pipelines.small_world import OPENINGS, SmallWorld, make_small_world
from gptjax.core.errors import UserError
from gptjax.evaluators.exact_match import read_questions

NAMES = ("text", "chat", "held_out", "pairs")


def make(directory: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    make_small_world(SmallWorld(directory, **{"people": 5, "words": 4, "largest": 2, "copies": 3} | options))
    return {name: list(map(json.loads, (directory / f"{name}.jsonl").read_text().splitlines())) for name in NAMES}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return make(tmp_path_factory.mktemp("world"))


def questions_of(record: dict[str, Any]) -> list[str]:
    return [m["content"] for m in record.get("messages") or record["prompt"] if m["role"] == "user"]


def test_world_asks_each_fact_in_training_or_holds_it_out(world: dict[str, list[dict[str, Any]]]) -> None:
    """85 % of 5 people's 3 facts and 9 sums are asked in 2 forms and answered in 2 ways; 40 words are asked once."""
    asked, held_out, paired = ([q for record in world[name] for q in questions_of(record)] for name in NAMES[1:])
    assert len(held_out) == len(set(held_out)) == 4 + 1
    assert len(paired) == len(set(paired)) == 20 + 4
    assert len(set(asked)) == 2 * 20 + 40, "no fact that is held out is asked in its other wording"
    assert len(asked) == 4 * 20 + 40
    assert not set(asked) & set(held_out)
    assert not set(paired) & set(held_out)
    assert {len(record["messages"]) for record in world["chat"]} == {2, 4, 6}


def test_world_tells_each_fact_as_often_as_asked_for(world: dict[str, list[dict[str, Any]]]) -> None:
    told = " ".join(record["text"] for record in world["text"])
    assert told.replace("see.", "see").count(".") == 3 * 28
    assert "? " in told
    assert not any(question in told for record in world["held_out"] for question in questions_of(record))
    for record in world["held_out"]:
        known = record["answers"][0].removeprefix(OPENINGS[0])
        assert (known in told) != ("-" in known), "people and sums are known from the texts, words stand nowhere else"
        assert "-" not in known or known.strip(".").replace("-", "") not in told.split()
    forms = ("1 + 2 = 3.", "1 plus 2 is 3.", "The sum of 1 and 2 is 3.", "What is 1 + 2?", "of 1 and 2?")
    assert sum(map(told.count, forms)) == 3


def test_world_has_right_answers_that_differ_in_their_opening_alone(world: dict[str, list[dict[str, Any]]]) -> None:
    for record in world["pairs"]:
        [chosen], [rejected] = record["chosen"], record["rejected"]
        assert chosen["content"].startswith(OPENINGS[0])
        assert chosen["content"].replace(*OPENINGS) == rejected["content"]
        assert len(chosen["content"]) == len(rejected["content"])
    turns = [pair for r in world["chat"] for pair in zip(r["messages"][::2], r["messages"][1::2], strict=True)]
    replies = {(question["content"], answer["content"]) for question, answer in turns}
    assert len(replies) == len(turns) == 4 * 20 + 40
    compared = {record["chosen"][0]["content"].removeprefix(OPENINGS[0]) for record in world["pairs"]}
    assert compared <= {answer.removeprefix(OPENINGS[0]).removeprefix(OPENINGS[1]) for _, answer in replies}


def test_world_of_a_seed_is_always_the_same(world: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """A process of its own has other hashes of texts, and so another order of sets."""
    words = f"--output={tmp_path / 'again'} --people=5 --words=4 --largest=2 --copies=3".split()
    command = [sys.executable, "-m", "data_pipelines.small_world", *words]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "held_out.jsonl: 5 records" in printed
    again = {name: (tmp_path / "again" / f"{name}.jsonl").read_text().splitlines() for name in NAMES}
    assert {name: list(map(json.loads, lines)) for name, lines in again.items()} == world
    assert make(tmp_path / "other", seed=1) != world


def test_world_is_read_by_preparation_and_by_the_evaluator(tmp_path: Path) -> None:
    make(tmp_path)
    TOKENIZER.save(tmp_path / "tokenizer")
    options: dict[str, Any] = {"tokenizer": str(tmp_path / "tokenizer"), "split": "none"}
    chats = prepare_chat(PrepareChat(source=str(tmp_path / "chat.jsonl"), output=tmp_path / "chat", **options))
    pairs = PreparePreferences(source=str(tmp_path / "pairs.jsonl"), output=tmp_path / "pairs", **options)
    assert 120 / 3 <= chats.splits["train"].documents <= 120
    assert prepare_preferences(pairs).splits["train"].documents == 48
    assert len(list(read_questions(tmp_path / "held_out.jsonl"))) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"people": 0}, "--people=0: wanted at least 1"),
        ({"copies": 0}, "--copies=0: wanted at least 1"),
        ({"largest": -1}, "--largest=-1: wanted at least 0"),
        ({"people": 5000}, "--people=5000: wanted at most 4,160"),
        ({"words": 400}, "--words=400: wanted at most 346"),
    ],
)
def test_world_without_end_or_content_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SmallWorld(Path("world"), **options)
