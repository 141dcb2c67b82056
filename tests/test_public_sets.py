"""Records of public sets under their own fields: what is read of each, and what is said of those that are not."""

import pytest

from data_pipelines.conversations.chat_formats import (
    OTHER_CONTENT,
    OTHER_FIELD,
    OTHER_SYSTEM,
    REASONING,
    parse_conversation,
)
from data_pipelines.conversations.preference_formats import parse_pair
from data_pipelines.conversations.public_sets import NO_ANSWERS, SEVERAL
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.messages import TOOLS, InvalidRecord, UselessRecord

NECTAR = {
    "prompt": "\n\nHuman: Hi?\n\nAssistant: ",
    "answers": [
        {"answer": "bad", "model": "a", "rank": 3.0},
        {"answer": "best", "model": "b", "rank": 1.0},
        {"answer": "mid", "model": "c", "rank": 2.0},
    ],
    "turns": 1,
}
CHATS = {
    "squad": (
        {
            "title": "T",
            "context": "Paris is in France.",
            "question": "Where is Paris?",
            "answers": {"text": ["France", "in France"], "answer_start": [12, 9]},
        },
        [("user", "Where is Paris?\n\nParis is in France."), ("assistant", "France")],
        True,
    ),
    "moss3": (
        {
            "meta_instruction": "You are MOSS.",
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: Hi<eoh>\n",
                    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                    "Commands": "<|Commands|>: None<eoc>\n",
                    "Tool Responses": "<|Results|>: None<eor>\n",
                    "MOSS": "<|MOSS|>: Hello!<eom>\n",
                }
            },
        },
        [("system", "You are MOSS."), ("user", "Hi"), ("assistant", "Hello!")],
        False,
    ),
    "moss2": (
        {"plain_text": "[Human]: Hi<eoh> [MOSS]: Hello<eoa> [Human]: And?<eoh> [MOSS]: So.<eoa>"},
        [("user", "Hi"), ("assistant", "Hello"), ("user", "And?"), ("assistant", "So.")],
        False,
    ),
    "nectar": (
        NECTAR,
        [("user", "Hi?"), ("assistant", "best")],
        True,
    ),
    "xtuner": (
        {"conversation": [{"system": "S", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
        [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        False,
    ),
    "firefly": ({"conversation": [{"human": "a", "assistant": "b"}]}, [("user", "a"), ("assistant", "b")], False),
    "redteam": (
        {"transcript": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant: ok", "rating": 2.0},
        [("user", "hi"), ("assistant", "hello"), ("user", "more"), ("assistant", "ok")],
        False,
    ),
    "ultrafeedback": (
        {
            "instruction": "I",
            "completions": [
                {"model": "a", "response": "A", "overall_score": 7.5, "annotations": {}},
                {"model": "b", "response": "B", "overall_score": 3.0},
            ],
        },
        [("user", "I"), ("assistant", "A")],
        True,
    ),
    "distilabel_gen": ({"instruction": "I", "generation": "G"}, [("user", "I"), ("assistant", "G")], False),
    "distilabel_uf": (
        {"instruction": "I", "generations": ["A", "B"], "ratings": [2, 5]},
        [("user", "I"), ("assistant", "B")],
        True,
    ),
    "ni": (
        {"definition": "Define.", "inputs": "in", "targets": "out"},
        [("user", "Define.\n\nin"), ("assistant", "out")],
        False,
    ),
    "p3": (
        {"inputs": [1, 2], "inputs_pretokenized": "In", "targets": [3], "targets_pretokenized": "Out"},
        [("user", "In"), ("assistant", "Out")],
        False,
    ),
    "glaive": (
        {
            "system": "SYSTEM: Help.",
            "chat": "USER: Hi.\n\n\nASSISTANT: Hello <|endoftext|>\n\n\nUSER: So?\n\n\nASSISTANT: So. <|endoftext|>",
        },
        [
            ("system", "Help."),
            ("user", "Hi."),
            ("assistant", "Hello"),
            ("user", "So?"),
            ("assistant", "So."),
        ],
        False,
    ),
    "helpsteer2": (
        {"prompt": "P\n<extra_id_1>Assistant\nQ\n<extra_id_1>User\nR", "response": "A", "helpfulness": 3},
        [("user", "P"), ("assistant", "Q"), ("user", "R"), ("assistant", "A")],
        False,
    ),
    "full_hh": (
        {"prompt": "\n\nHuman: P\n\nAssistant: Q\n\nHuman: R\n\nAssistant:", "response": " A"},
        [("user", "P"), ("assistant", "Q"), ("user", "R"), ("assistant", "A")],
        False,
    ),
    "camel": ({"message_1": "Q", "message_2": "A"}, [("user", "Q"), ("assistant", "A")], False),
    "triviaqa": (
        {"question": "Q", "answer": {"value": "A", "aliases": ["a"]}},
        [("user", "Q"), ("assistant", "A")],
        False,
    ),
    "nq_open": ({"question": "Q", "answer": ["A", "B"]}, [("user", "Q"), ("assistant", "A")], True),
    "vicuna_text": (
        {"text": "A chat between a user and an assistant. USER: hi ASSISTANT: hello</s>USER: a ASSISTANT: b</s>"},
        [
            ("system", "A chat between a user and an assistant."),
            ("user", "hi"),
            ("assistant", "hello"),
            ("user", "a"),
            ("assistant", "b"),
        ],
        False,
    ),
}
"""(record, messages, whether one of several answers was taken)."""
KNOWN = [("user", "Q"), ("assistant", "A")]
OTHER = "User: other\nAssistant: o"
FIRST = [
    ({"question": "Q", "answer": "A", "transcript": OTHER}, KNOWN),
    ({"question": "Q", "answer": "A", "plain_text": "[Human]: h<eoh> [MOSS]: m<eoa>", "meta_instruction": "M"}, KNOWN),
    ({"instruction": "Q", "output": "A", "transcript": OTHER}, KNOWN),
    ({"question": "Q", "answer": "A", "answers": ["B"]}, KNOWN),
    ({"instruction": "q", "generation": "a", "text": "User: Q\nAssistant: A"}, KNOWN),
    ({"data": '["Q", "A"]', "meta_instruction": "M"}, KNOWN),
    ({"inputs": "Q", "targets": "A", "inputs_pretokenized": "q", "targets_pretokenized": "a"}, KNOWN),
    ({"question": "Q", "answer": "A", "message_1": "q", "message_2": "a"}, KNOWN),
    *(
        ({"messages": [{"role": role, "content": text} for role, text in KNOWN], key: OTHER}, KNOWN)
        for key in ("transcript", "dialogue", "chat", "plain_text")
    ),
    *(
        ({"question": "Q", "answer": answer}, [("user", "Q"), ("assistant", answer)])
        for answer in ('["red", "blue"]', '["a"]', '[{"name": "f", "arguments": {}}]')
    ),
]
"""Records that have a known form and what another form is known by, and their messages."""
TURNS = [
    ({"instruction": "Translate", "input": "Hallo", "output": "Hello"}, "Translate\n\nHallo", ()),
    ({"human": "Q", "context": "C", "assistant": "A"}, "Q\n\nC", ()),
    ({"q": "Q", "a": "A"}, "Q", ()),
    ({"question": "R", "instruction": "Q", "output": "A"}, "Q", (OTHER_FIELD,)),
    ({"input": "Q", "output": "A", "reasoning": "Hm."}, "Q", (REASONING,)),
]
"""(a turn, what the user says, what is told)."""
USELESS = [
    ({"context": "C", "question": "Q", "answers": {"text": []}}, NO_ANSWERS),
    ({"query": "Q", "answers": '[{"name": "f", "arguments": {}}]', "tools": "[]"}, TOOLS),
    ({"system": "SYSTEM: S", "chat": "USER: a\n\n\nASSISTANT: b\n\n\nFUNCTION RESPONSE: {}\n\n\nASSISTANT: c"}, TOOLS),
    ({"chat": {"turn_1": {"Human": "h", "Commands": '<|Commands|>: Search("x")<eoc>', "MOSS": "m"}}}, TOOLS),
]
NAMED = [
    ({"question": "Q", "human_answers": ["a"], "chatgpt_answers": ["b"]}, "--rename-fields=chatgpt_answers:answers or"),
    ({"message_id": "m", "parent_id": None, "text": "t", "role": "prompter"}, "its trees (….trees.jsonl.gz) are read"),
    ({"dialogue": "A: hi", "summary": "s"}, "--rename-fields=dialogue:prompt,summary:completion"),
    ({"question": "Q", "choices": ["a", "b"], "answer": 0}, "for the tasks of python -m gptjax.evaluate"),
    ({"Definition": ["d"], "Instances": [{"input": "a", "output": ["b"]}]}, "give each a record"),
    ({"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 0}, "data_pipelines.prepare_preferences"),
]


@pytest.mark.parametrize(("record", "messages", "is_chosen"), CHATS.values(), ids=CHATS)
def test_a_conversation_of_a_public_set_is_read(record, messages, is_chosen):
    parsed = parse_conversation(record, where="x:1")
    assert [(message.role, message.content) for message in parsed.messages] == messages
    assert (SEVERAL in parsed.left_out) == is_chosen


@pytest.mark.parametrize(("record", "messages"), FIRST)
def test_a_known_form_comes_before_what_is_rewritten(record, messages):
    parsed = parse_conversation(record, where="x:1")
    assert ([(message.role, message.content) for message in parsed.messages], parsed.unscored) == (messages, set())


def test_weights_of_messages_are_kept_beside_a_transcript():
    turns = [("user", 1), ("assistant", 0), ("user", 1), ("assistant", 1)]
    messages = [{"role": role, "content": "x", "weight": weight} for role, weight in turns]
    assert parse_conversation({"messages": messages, "transcript": OTHER}, where="x:1").unscored == {1}


@pytest.mark.parametrize(
    "record",
    [
        *({"dialogue": OTHER, "question": "Q", "answer": "A"} | more for more in ({}, {"summary": "S"})),
        {"dialogue": OTHER, "summary": "S"},
        {"transcript": OTHER, "question": "Q"},
        {"conversation": [{"input": "a", "output": "b"}], "question": "Q"},
        {"chat": OTHER, "history": [["a", "b"]]},
    ],
)
def test_turns_beside_other_content_are_refused(record):
    with pytest.raises(InvalidRecord, match=r'"(question|summary|history)".*--rename-fields') as raised:
        parse_conversation(record, where="x:1")
    assert ("dialogue:prompt,summary:completion" in str(raised.value)) == ("summary" in record)
    if "question" in record and "dialogue" in record:
        parsed = parse_conversation(record, where="x:1", renamed={"dialogue": "context"})
        assert [message.content for message in parsed.messages] == [f"Q\n\n{OTHER}", "A"]


@pytest.mark.parametrize(
    ("field", "notes"),
    [
        *(({key: OTHER}, (OTHER_CONTENT,)) for key in ("transcript", "dialogue", "context", "text", "answer")),
        *((field, ()) for field in ({"prompt": "Q"}, {"context": ""}, {"user": "u-7"})),
    ],
)
def test_a_text_beside_messages_is_told(field, notes):
    messages = [{"role": role, "content": text} for role, text in KNOWN]
    assert parse_conversation({"messages": messages} | field, where="x:1").left_out == notes
    prompt = {"prompt": messages[:1], "completion": messages[1:]}
    if "context" in field:
        assert parse_conversation(prompt | field, where="x:1").left_out == notes


@pytest.mark.parametrize(("turn", "asked", "notes"), TURNS)
def test_a_turn_of_two_fields_is_read_as_a_record_of_fields(turn, asked, notes):
    parsed = parse_conversation({"conversation": [turn]}, where="x:1")
    assert (parsed.messages[0].content, parsed.left_out) == (asked, notes)


@pytest.mark.parametrize(
    ("record", "system", "notes"),
    [
        ({"conversation": [{"input": "a", "output": "b"}], "system_prompt": "S"}, "S", ()),
        ({"conversation": [{"system": "S", "input": "a", "output": "b"}], "system": "T"}, "S", (OTHER_SYSTEM,)),
        ({"chat": OTHER, "system": "S", "meta_instruction": "M"}, "S", (OTHER_SYSTEM,)),
        ({"chat": OTHER, "meta_instruction": "M"}, "M", ()),
    ],
)
def test_a_text_of_the_system_beside_turns_is_kept_or_told(record, system, notes):
    parsed = parse_conversation(record, where="x:1")
    assert (parsed.messages[0], parsed.left_out) == (Message("system", system), notes)


def test_a_text_of_the_system_in_a_later_turn_is_refused():
    turns = [{"input": "a", "output": "b"}, {"system": "S", "input": "a", "output": "b"}]
    with pytest.raises(InvalidRecord, match="message 3 is of the system"):
        parse_conversation({"conversation": turns}, where="x:1")


@pytest.mark.parametrize(("record", "message"), USELESS)
def test_records_without_an_answer_or_with_tools_are_left_out(record, message):
    with pytest.raises(UselessRecord, match=message):
        parse_conversation(record, where="x:1")


@pytest.mark.parametrize(("record", "message"), NAMED)
def test_a_record_that_is_not_read_is_told_what_reads_it(record, message):
    with pytest.raises(InvalidRecord) as raised:
        parse_conversation(record, where="x:1")
    assert message in str(raised.value)


@pytest.mark.parametrize("record", [CHATS["xtuner"][0], CHATS["squad"][0], CHATS["glaive"][0], USELESS[1][0]])
def test_a_conversation_among_pairs_is_named(record):
    with pytest.raises(InvalidRecord, match=r"for python -m data_pipelines\.prepare_chat"):
        parse_pair(record, where="x:1")
