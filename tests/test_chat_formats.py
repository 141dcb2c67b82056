"""Conversations as people keep them, and those that are refused."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from data_pipelines.conversations.chat_formats import (
    OTHER_CONTENT,
    OTHER_FIELD,
    OTHER_SYSTEM,
    REASONING,
    parse_conversation,
)
from data_pipelines.readers.fields import parse_renaming, rename_fields
from gptjax.core.errors import UserError
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.messages import InvalidRecord, UselessRecord, check_turns, read_messages

SYSTEM, USER = Message("system", "Be brief."), Message("user", "Two and two?")
ANSWER, MORE, PREPARE_AGAIN = Message("assistant", "Four."), Message("user", "And one?"), Message("assistant", "Five.")


def test_messages_out_of_json():
    given = [{"role": "user", "content": "Hi", "id": 7}, {"role": "assistant", "content": " Ho\n"}]
    assert read_messages(given, where="x.jsonl:1") == [Message("user", "Hi"), Message("assistant", " Ho\n")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "wanted a list of messages, got None"),
        ([], "wanted a list of messages"),
        ({"role": "user"}, "wanted a list of messages"),
        (["Hi"], 'message 1: wanted an object with "role" and "content"'),
        ([{"role": "robot", "content": "Hi"}], "message 1: its role is 'robot'; wanted system, user, assistant"),
        ([{"speaker": "Al", "line": "Hi"}], r"'Al'; wanted system, user, assistant. Write the one that it stands for"),
        ([{"role": "user", "line": "Hi"}], r'is None; wanted a string under content, value, .*; it has "line"\.$'),
        ([{"role": "user", "content": None, "name": "Bo"}], r'it has "content", "name"\.$'),
        ([{"role": "a\nerror: b", "content": "Hi"}], r"its role is 'a\\nerror: b'"),
        ([{"content": "Hi"}], "message 1: its role is None"),
        ([{"role": ["user"], "content": "Hi"}], r"message 1: its role is \['user'\]"),
        ([{"role": "user", "content": None}], "message 1: its content is None"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1: its content is"),
        ([{"role": "user", "content": []}], "message 1: its content is"),
        ([{"role": "user", "content": [{"type": None, "text": 1}]}], "message 1: its content is"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": 4}], "message 2: its content is 4"),
        ([["robot", "Hi"]], r"wanted an object with .*, got \['robot', 'Hi'\]"),
        ([{"robot": "Hi"}], "its role is None"),
    ],
)
def test_wrong_messages_are_named(value: Any, message: str):
    with pytest.raises(UserError, match=message) as caught:
        read_messages(value, where="x.jsonl:3")
    assert str(caught.value).startswith("x.jsonl:3: ")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER], "the assistant says nothing"),
        ([SYSTEM, USER], "the assistant says nothing"),
        ([SYSTEM], "the assistant says nothing"),
        ([], "the assistant says nothing"),
        ([ANSWER, USER], "message 1 is of the assistant, wanted user"),
        ([SYSTEM, ANSWER], "message 2 is of the assistant, wanted user"),
        ([USER, USER], "the assistant says nothing"),
        ([USER, SYSTEM, ANSWER], "message 2 is of the system, wanted user or assistant"),
        ([SYSTEM, SYSTEM, USER, ANSWER], "message 2 is of the system, wanted user"),
    ],
)
def test_turns_out_of_order_are_refused(messages: list[Message], message: str):
    with pytest.raises(UserError, match=message):
        check_turns(messages, where="x.jsonl:3")


def test_turns_in_order_are_accepted():
    """Several messages of one role in a row are turns of their own."""
    for messages in ([USER, ANSWER], [SYSTEM, USER, ANSWER], [USER, ANSWER, MORE], [USER, USER, ANSWER, MORE, MORE]):
        check_turns(messages, where="x")
        with pytest.raises(UserError, match=f"message {len(messages) + 1} is of the system"):
            check_turns([*messages, SYSTEM], where="x")


WANTED = [USER, ANSWER]
LISTS = [
    [{"role": "user", "content": USER.content}, {"role": "assistant", "content": ANSWER.content}],
    [{"from": "human", "value": USER.content}, {"from": "gpt", "value": ANSWER.content}],
    [
        {"type": "human", "text": USER.content},
        {"type": "ai", "text": ANSWER.content},
    ],
    [
        {"role": "User", "content": [{"type": "text", "text": "Two and "}, {"type": "input_text", "text": "two?"}]},
        {"role": "model", "content": ["Four."]},
    ],
]
TURNS = (("user", USER.content), ("model", ANSWER.content))
FIELDS = [
    {"instruction": "Two and two?", "input": "", "output": "Four."},
    {"prompt": "Two and two?", "completion": "Four."},
    {"prompt": LISTS[0][:1], "completion": LISTS[0][1:]},
    {"prompt": json.dumps(LISTS[0][:1]), "completion": repr(LISTS[0][1:])},
    {"question": "Two and two?", "answer": "Four."},
    {"user": "Two and two?", "assistant": "Four."},
    {"input": "Two and two?", "output": "Four."},
    {"instruction": "Two", "context": "", "response": "Four."} | {"instruction": "Two and two?"},
    {"data": ["Two and two?", "Four."]},
    {"messages": json.dumps(LISTS[0])},
    {"conversations": repr(LISTS[1])},
    {"messages": repr(LISTS[0]).replace("}, {", "}\n {")},
    {"Question": "Two and two?", " Answer": "Four."},
    {"Context": "Two and two?", "Response": "Four."},
    {"problem": "Two and two?", "solution": "Four.", "level": 5},
    {"query": "Two and two?", "response": "Four."},
    {"inputs": "Two and two?", "targets": "Four."},
    {"chat_messages": [{"sender": "human", "text": "Two and two?"}, {"sender": "assistant", "text": "Four."}]},
    {"contents": [{"role": role, "parts": [{"text": text}]} for role, text in TURNS]},
    {"conversation": [["Human", "Two and two?"], ["gpt", "Four."]]},
    {"conversations": [{"user": "Two and two?"}, {"assistant": "Four.", "user": None}]},
    {"prompt": LISTS[0][0], "response": LISTS[0][1]},
    {"prompt": ["user", "Two and two?"], "response": {"assistant": "Four."}},
    {"prompt": '[["user", "Two and two?"]]', "response": [{"Role": "assistant", "Content": "Four."}]},
    {"Messages": [{"Role": "User", "Content": "Two and two?"}, {"Role": "Chatbot", "Content": "Four."}]},
]
TEXTS = [
    "### Human: Two and two?### Assistant: Four.",
    "### Instruction:\nTwo and two?\n\n### Response:\nFour.",
    "<s>[INST] Two and two? [/INST] Four. </s>",
    "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n",
    "<|user|>\nTwo and two?</s>\n<|assistant|>\nFour.</s>",
    "\n\nHuman: Two and two?\n\nAssistant: Four.",
    "User: Two and two?\nAssistant: Four.<|endoftext|>",
]


@pytest.mark.parametrize(
    "record",
    [
        *LISTS,
        *({key: value} for key in ("messages", "conversations") for value in LISTS),
        *FIELDS,
        *({"text": text} for text in TEXTS),
    ],
)
def test_record_in_any_form_is_the_same_conversation(record: Any):
    assert parse_conversation(record, where="x").messages == WANTED


def test_texts_before_the_first_turn_are_the_systems():
    alpaca = "Be brief.\n\n### Instruction:\nAdd.\n\n### Input:\n2+2\n\n### Response:\nFour."
    llama = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nTwo and two? [/INST] Four. </s><s>[INST] And one? [/INST] Five."
    found = [parse_conversation({"text": text}, where="x").messages for text in (alpaca, llama)]
    assert found == [[SYSTEM, Message("user", "Add.\n\n2+2"), ANSWER], [SYSTEM, USER, ANSWER, MORE, PREPARE_AGAIN]]


def test_fields_may_be_renamed():
    record = {"Frage": USER.content, "Antwort": ANSWER.content}
    assert parse_conversation(record, where="x", renamed={"Frage": "prompt", "Antwort": "output"}).messages == WANTED
    with pytest.raises(UserError, match="--rename-fields=Frage:prompt,Antwort:completion"):
        parse_conversation(record, where="x")
    for record, flags in (
        ({"body": {"messages": LISTS[0]}, "id": 7}, "body.messages:messages"),
        ({"items": LISTS[1]}, "items:messages"),
        ({"conversation": {"turns": LISTS[0]}}, "conversation.turns:messages"),
        ({"x": [LISTS[0][0], {"role": "bot", "content": ANSWER.content}], "source": "web"}, "x:messages"),
        ({"request": {"messages": LISTS[0][:1]}, "reply": LISTS[0][1]}, "request.messages:prompt,reply:completion"),
    ):
        with pytest.raises(UserError, match=f"Say where its messages are: --rename-fields={flags}$"):
            parse_conversation(record, where="x")
        assert parse_conversation(record, where="x", renamed=parse_renaming(flags)).messages == WANTED
    for beside in ({"lang": "en"}, {"dialogue_id": 7, "ideal": ANSWER.content}):
        with pytest.raises(UserError, match=r"--rename-fields=x:prompt,NAME:completion$"):
            parse_conversation({"x": LISTS[1][:1]} | beside, where="x")
    assert parse_renaming("a:b:prompt, c :output") == {"a:b": "prompt", "c": "output"}
    with pytest.raises(UserError, match="--rename-fields=a: wanted NAME:NEW"):
        parse_renaming("a")


SAID = {"messages": LISTS[0]}
SIMPLE = {"prompt": USER.content, "completion": ANSWER.content}


@pytest.mark.parametrize(
    ("record", "renaming"),
    [
        ({"params": {"system": SYSTEM.content, "model": "m", **SAID}}, "params.messages:messages"),
        ({"a": {"System": SYSTEM.content, "b": SAID}}, "a.b.messages:messages"),
        ({"in": {"q": USER.content, "system": SYSTEM.content}, "out": ANSWER.content}, "in.q:prompt,out:completion"),
        ({"data": {"system": "T"}, "system": SYSTEM.content, **SAID}, "data.messages:messages"),
        ({"d": {"system": SYSTEM.content, **SAID}, "system": " "}, "d.messages:messages"),
        ({"d": {"system": SYSTEM.content, "e": {"system": "", **SAID}}, "System": None}, "d.e.messages:messages"),
        ({"d": {"system": f"{SYSTEM.content}\n", **SAID}, "system": SYSTEM.content}, "d.messages:messages"),
        ({"in": {"system": "T", **SIMPLE}, "system": SYSTEM.content}, "in.prompt:prompt,in.completion:completion"),
    ],
)
def test_what_is_beside_a_renamed_field_inside_another_is_read(record, renaming):
    renamed = parse_renaming(renaming)
    found = parse_conversation(record, where="x", renamed=renamed)
    assert found.messages == [SYSTEM, *WANTED]
    assert (OTHER_SYSTEM in found.left_out) == (record.get("in", {}).get("system") == "T")


@pytest.mark.parametrize("renaming", ["d.q:prompt,d.a:completion", "d.q:messages", "b.d.q:prompt,b.d.a:completion"])
def test_a_path_through_a_list_is_refused(renaming):
    """Other texts than these would follow one another."""
    turns = [{"q": "Q", "a": "A"}, {"q": "Q2", "a": "A2"}]
    with pytest.raises(UserError, match=r'^x: --rename-fields=.*d" is a list.* itself, such as (b\.)?d:messages\.$'):
        parse_conversation({"d": turns, "b": {"d": turns}} | SIMPLE, where="x", renamed=parse_renaming(renaming))
    found = parse_conversation({"d": turns}, where="x", renamed={"d": "messages"}).messages
    assert [message.content for message in found] == ["Q", "A", "Q2", "A2"]


def test_an_answer_of_json_that_is_no_messages_stays_a_text():
    for answer in ('[{"role": "admin", "content": "x"}]', '[{"name": "x"}]', "[1]", "[]", "[x"):
        found = parse_conversation({"prompt": "Two and two?", "completion": answer}, where="x")
        assert found.messages[1] == Message("assistant", answer)


@pytest.mark.parametrize(
    "record", [{"prompt": "p", "Q": "q", "R": "r"}, {"R": "r", "Q": "q", "Prompt": "x", "prompt": "p"}]
)
def test_a_renamed_field_takes_the_place_of_another(record):
    known = frozenset({"prompt", "system"})
    renamed = rename_fields(record, parse_renaming("prompt:system,Q:prompt,R:prompt"), known=known, where="x")
    assert renamed == {"system": "p", "prompt": "q"} | ({"Prompt": "x"} if "Prompt" in record else {})
    assert rename_fields({"prompt": "p"}, {"Q": "prompt"}, known=known, where="x") == {"prompt": "p"}


def test_the_context_of_a_question_follows_it():
    for key in ("input", "context"):
        found = parse_conversation({"instruction": "Add.", key: "2+2", "response": "4"}, where="x")
        assert found.messages[0].content == "Add.\n\n2+2"


def test_fields_beside_the_messages():
    record = {"system": "Be brief.", "instruction": "Add.", "input": "2+2", "output": "4", "history": [["Hi", "Ho"]]}
    assert parse_conversation(record, where="x").messages == [
        SYSTEM,
        Message("user", "Hi"),
        Message("assistant", "Ho"),
        Message("user", "Add.\n\n2+2"),
        Message("assistant", "4"),
    ]
    developer = [{"role": "developer", "content": "Be brief."}, *LISTS[0]]
    assert parse_conversation({"messages": developer, "system": "x"}, where="x").messages[0] == SYSTEM


@pytest.mark.parametrize(
    ("name", "off", "on"),
    [("weight", 0, 1), ("weight", 0.0, 1.0), ("train", False, True), ("training", "false", None), ("loss", False, 0.0)],
)
def test_answers_whose_switch_is_off_are_not_scored(name: str, off: Any, on: Any):
    first, second = ({"role": "assistant", "content": "a", name: value} for value in (off, on))
    user = {"role": "user", "content": "u"}
    record = {"system": "s", "messages": [user, first, user, second]}
    assert parse_conversation(record, where="x").unscored == {2}
    with pytest.raises(UselessRecord, match="all answers have weight 0, or another switch that is off"):
        parse_conversation([user, first], where="x")
    turns = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a", name: off}, *record["messages"][2:]]
    assert parse_conversation({"conversations": turns}, where="x").unscored == {1}


@pytest.mark.parametrize(
    ("name", "value"), [("weight", 0.5), ("weight", 2), ("weight", []), ("train", "no"), ("training", [0])]
)
def test_a_switch_that_is_neither_on_nor_off_is_refused(name: str, value: Any):
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", name: value}]
    with pytest.raises(InvalidRecord, match=rf"x: '{name}' of a message is .*Wanted 1 or true, or 0 or false"):
        parse_conversation(messages, where="x")


@pytest.mark.parametrize(
    ("message", "note"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}, "tools are called"),
        ({"role": "tool", "content": "shelf 9"}, "tools are called"),
        ({"from": "function_call", "value": "{}"}, "tools are called"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "images or other parts"),
    ],
)
def test_conversations_that_the_template_cannot_hold_are_told(message: dict[str, Any], note: str):
    with pytest.raises(UselessRecord, match=note):
        parse_conversation([LISTS[0][0], message, *LISTS[0]], where="x")


@pytest.mark.parametrize(
    "part",
    [
        {"inlineData": {"mimeType": "image/png"}},
        {"functionCall": {"name": "add"}},
        {"content_type": "image_asset_pointer", "asset_pointer": "file"},
        {"thought": True, "text": "Hm."},
    ],
)
def test_parts_without_text_are_no_fault(part: dict[str, Any]):
    with pytest.raises(UselessRecord, match="images or other parts"):
        parse_conversation({"contents": [{"role": "user", "parts": [part]}, *LISTS[0]]}, where="x")


THOUGHTS = [
    {"role": "model", "parts": [{"text": "Hm.", "thought": True}, {"text": "Four."}]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Four."}]},
    {"role": "assistant", "content": "Four.", "reasoning_content": "Hm."},
]


@pytest.mark.parametrize(
    "record",
    [
        *({"messages": make([LISTS[0][0], message])} for message in THOUGHTS for make in (list, json.dumps, repr)),
        {"prompt": LISTS[0][:1], "completion": THOUGHTS[2:]},
        {"question": "Two and two?", "reasoning": "Hm.", "answer": "Four."},
    ],
)
def test_reasoning_is_left_out_and_told(record: Any):
    assert parse_conversation(record, where="x") == (WANTED, frozenset(), (REASONING,))


@pytest.mark.parametrize(
    "record",
    [
        {"problem": "Two and two?", "solution": "Four.", "answer": "4"},
        {"prompt": "Two and two?", "problem": "2+2", "response": "Four."},
    ],
)
def test_the_solution_comes_before_the_answer_and_second_fields_are_told(record: Any):
    assert parse_conversation(record, where="x") == (WANTED, frozenset(), (OTHER_FIELD,))


def test_a_switch_and_an_empty_field_are_nothing_left_out():
    record = {"prompt": "Two and two?", "response": "Four.", "answer": "", "target": 1, "reasoning": "off"}
    assert parse_conversation(record, where="x").left_out == ()


@pytest.mark.parametrize("odd", [3, True, "x", [], {}, [[]], [{}], {"a": 1}, [None]])
def test_odd_values_are_no_traceback(odd: Any):
    """In every place of a record of every form."""
    tree = {"a": {"message": {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["Hi"]}}}}
    root = {"text": "a", "role": "prompter", "replies": [{"text": "b", "role": "assistant", "replies": []}]}
    turns = {"conversation": [{"system": "s", "input": "a", "output": "b"}], "chat": {"turn_1": {"Human": "a"}}}
    forms = [
        {"mapping": tree, "current_node": "a"},
        {"prompt": root},
        turns,
        *FIELDS,
        *({"messages": one} for one in LISTS),
    ]
    for form in forms:
        for record in replace_each(form, odd):
            with contextlib.suppress(UserError):
                parse_conversation(record, where="x")


def replace_each(value: Any, odd: Any) -> Iterator[Any]:
    """The value with one of the values in it replaced, for each of them."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, inner in items:
        for other in (odd, *replace_each(inner, odd)):
            if isinstance(value, dict):
                yield value | {key: other}
            else:
                yield [*value[:key], other, *value[key + 1 :]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", "wanted a list of messages, or an object"),
        ({"text": "x", "\x1b[2J": 1}, r"got an object with text, \\x1b.* is for python -m data_pipelines.prepare"),
        ({"What is two and two, and what is one and one?": "x", "b": "y"}, "write a first line of names"),
        ({"id": 7, "a": "x", "b": "y"}, "--rename-fields=NAME:prompt,NAME:completion"),
        ({"instruction": "x"}, "got an object with instruction"),
        ({"chosen": "x", "rejected": "y"}, "Pairs of .* are for python -m data_pipelines.prepare_preferences"),
        ({"messages": "x"}, '"messages": wanted a list'),
        ({}, "no keys"),
        (["human", "Hi"], r"is one message; wanted a list of messages, such as \[\[.user"),
        (["user", "Hi", "AI", "Ho"], "is one message; wanted a list"),
        ({"prompt": "x", "completion": "y", "history": [["user", "a"], ["b", "c"]]}, '"history": wanted a list of'),
    ],
)
def test_records_of_another_form_are_named(record: Any, message: str):
    with pytest.raises(UserError, match=message) as caught:
        parse_conversation(record, where="x.jsonl:3")
    assert str(caught.value).startswith("x.jsonl:3: ")


@pytest.mark.parametrize("label", [False, "False"])
def test_rejected_completions_of_kto_are_not_learned(label: Any) -> None:
    record = {"prompt": "Two and two?", "completion": "Five.", "label": label}
    with pytest.raises(UselessRecord, match="their label is false"):
        parse_conversation(record, where="x.jsonl:1")
    for kept in (True, 0, "joy"):
        assert parse_conversation(record | {"label": kept}, where="x.jsonl:1").messages[1].content == "Five."


@pytest.mark.parametrize("history", [LISTS[0], json.dumps([["Hi", "Ho"]]), [["user", "Hi"], ["bot", "Ho"]]])
def test_history_may_be_messages_or_json(history: Any) -> None:
    record = {"instruction": "Add.", "output": "4", "history": history}
    messages = parse_conversation(record, where="x").messages
    assert ([message.role for message in messages], messages[1].content in ("Ho", ANSWER.content)) == (
        ["user", "assistant"] * 2,
        True,
    )


@pytest.mark.parametrize(
    ("record", "note"),
    [
        ({"prompt": LISTS[0][0], "response": LISTS[0][1], "context": "C"}, OTHER_CONTENT),
        ({"instruction": {"user": "Q"}, "output": LISTS[0][1], "input": "C"}, OTHER_CONTENT),
        ({"messages": LISTS[0], "chosen": LISTS[0][1:], "rejected": LISTS[0][1:]}, OTHER_CONTENT),
        ({"prompt": LISTS[0][0], "response": LISTS[0][1], "answer": "B"}, OTHER_FIELD),
        ({"prompt": "Q", "response": ["assistant", "A"], "answer": "B"}, OTHER_FIELD),
    ],
)
def test_a_text_beside_a_message_is_left_out_with_a_note(record: dict[str, Any], note: str) -> None:
    assert note in parse_conversation(record, where="x").left_out


@pytest.mark.parametrize("start", [[], [{"role": "system", "content": "S"}]])
@pytest.mark.parametrize("repeated", [[], [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]])
def test_a_history_comes_before_a_prompt_of_messages(start: list[Any], repeated: list[Any]) -> None:
    history = repeated or [["Hi", "Ho"]]
    prompt = [*start, *repeated, {"role": "user", "content": "2+2?"}]
    for given in (history, json.dumps(history), repr(history)):
        parsed = parse_conversation({"prompt": prompt, "completion": "4", "history": given}, where="x")
        assert [message.content for message in parsed.messages] == [*(["S"] if start else []), "Hi", "Ho", "2+2?", "4"]
    if repeated:
        parsed = parse_conversation({"prompt": prompt, "completion": "4", "history": [*start, *repeated]}, where="x")
        assert len(parsed.messages) == len(prompt) + 1


def test_a_question_of_text_before_a_list_is_read_as_before_a_text() -> None:
    record = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": [{"role": "assistant", "content": " Ho"}]}
    assert parse_conversation(record, where="x").messages == [Message("user", "Hi"), Message("assistant", " Ho")]
    asked = parse_conversation(record | {"prompt": "Hi", "context": "C"}, where="x").messages[0]
    assert asked.content == "Hi\n\nC"


@pytest.mark.parametrize("field", [{"history": [["Hi"]]}, {"input": [1, 2]}, {"system": {"a": 1}}])
def test_a_part_of_another_type_is_no_loss_in_silence(field: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord, match=f'"{next(iter(field))}": wanted'):
        parse_conversation({"instruction": "Add.", "output": "4", **field}, where="x")


def test_nulls_of_other_forms_are_passed_over() -> None:
    turns = [{"role": None, "from": name, "value": "x", "content": None} for name in ("human", "gpt")]
    assert [message.role for message in parse_conversation(turns, where="x").messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    "record",
    [
        {"mapping": {"a": {"message": {"author": {"role": "gpt"}, "content": {"content_type": "text", "parts": 1}}}}},
        {"prompt": {"role": "prompter", "text": "a", "replies": [{"text": "b", "replies": 1, "rank": "x"}]}},
        {"messages": "[{" * 9000},
        {"text": "[INST]" * 100_000},
        {"contents": [{"role": "user", "parts": {"text": 1}}], "systemInstruction": [3]},
    ],
)
def test_damaged_forms_are_invalid_records(record: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^x: "):
        parse_conversation(record, where="x")
