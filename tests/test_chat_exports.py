"""Exports of chats that are trees: the branch that is read, and those without one."""

from typing import Any

import pytest

from data_pipelines.conversations.chat_formats import REASONING, parse_conversation
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.messages import InvalidRecord, UselessRecord

WANTED = USER, ANSWER = [Message("user", "Two and two?"), Message("assistant", "Four.")]


def node(parent: str | None, *children: str, **message: Any) -> dict[str, Any]:
    return {"parent": parent, "children": children, "message": message or None}


def test_a_tree_of_chatgpt_is_the_branch_that_was_shown():
    said = lambda role, text: {
        "author": {"role": role},
        "content": {"content_type": "text", "parts": [text]},
    }
    tree = {
        "root": node(None, "s"),
        "s": node("root", "q", **said("system", "")),
        "q": node("s", "old", "t", **said("user", USER.content)),
        "old": node("q", **said("assistant", "Five.")),
        "t": node("q", "a", author={"role": "assistant"}, content={"content_type": "thoughts", "thoughts": []}),
        "a": node("t", **said("assistant", ANSWER.content)),
    }
    for last in ("a", None, ["a"], {}):  # without a name, the last leaf
        assert parse_conversation({"mapping": tree, "current_node": last}, where="x")[::2] == (WANTED, (REASONING,))
    with pytest.raises(InvalidRecord, match="each other's parents, such as q"):
        parse_conversation({"mapping": tree | {"s": node("a", "q")}, "current_node": "a"}, where="x")
    code = node("q", author={"role": "assistant"}, content={"content_type": "code", "text": "2+2"})
    with pytest.raises(UselessRecord, match="no text"):
        parse_conversation({"mapping": tree | {"a": code}, "current_node": "a"}, where="x")


def test_a_tree_of_openassistant_is_the_branch_of_the_best_replies():
    say = lambda role, text, *replies, rank=None: {"role": role, "text": text, "replies": list(replies), "rank": rank}
    answers = say("assistant", "Five.", rank=1), say("assistant", ANSWER.content, say("prompter", "So?"), rank=0)
    assert parse_conversation({"prompt": say("prompter", USER.content, *answers)}, where="x").messages == WANTED


def test_a_mapping_without_nodes_is_no_tree():
    for mapping in ({}, {"a": "b"}, {"a": {"b": 1}}):
        record = {"messages": [{"role": "user", "content": USER.content}, {"role": "assistant", "content": "Four."}]}
        assert parse_conversation(record | {"mapping": mapping}, where="x").messages == WANTED


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": {"role": "prompter", "text": "Hi", "replies": []}},
        {"mapping": {"root": node(None)}},
        {"mapping": {"a": {"parent": ["b"], "children": 1}, "b": 2}, "current_node": ["a"]},
        {"mapping": {"root": node(None, author={"role": "user"}, content={"content_type": "text", "parts": ["Hi"]})}},
    ],
)
def test_a_tree_without_an_answer_is_no_fault(record: Any):
    with pytest.raises(UselessRecord, match="nobody answers"):
        parse_conversation(record, where="x")
