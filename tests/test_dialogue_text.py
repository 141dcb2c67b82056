"""Conversations in one text: every role is a turn of its own, and no mark is learned as letters."""

import pytest

from data_pipelines.conversations.dialogue_text import LeftMarks, split_dialogue, split_question, split_speakers
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.messages import InvalidRecord, UselessRecord

ASKED = [("user", "Two and two?"), ("assistant", "Four.")]


def split(text):
    return [(turn["role"], turn["content"]) for turn in split_dialogue(text, where="x") or []]


@pytest.mark.parametrize(
    "text",
    [
        "<|user|>\nTwo and two?<|end|>\n<|assistant|>\nFour.<|end|>\n<|endoftext|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTwo and two?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nFour.<|eot_id|>",
        "<bos><start_of_turn>user\nTwo and two?<end_of_turn>\n<start_of_turn>model\nFour.<end_of_turn>\n",
        "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n<|im_start|>assistant",
    ],
)
def test_the_tokens_of_a_format_are_no_letters(text):
    assert [(role.replace("model", "assistant"), content) for role, content in split(text)] == ASKED


@pytest.mark.parametrize(
    ("start", "end"),
    [("<|im_start|>{}\n", "<|im_end|>\n"), ("<|{}|>\n", "</s>\n"), ("<|start_header_id|>{}<|end_header_id|>", "")],
)
def test_turns_of_tools_are_told(start, end):
    turns = [*ASKED, ("tool", "42"), ("assistant", "42.")]
    with pytest.raises(UselessRecord, match="tools are called"):
        split("".join(f"{start.format(role)}{content}{end}" for role, content in turns))


@pytest.mark.parametrize(
    "text",
    [
        "<|user|>\nTwo and two?<|sep|>\n<|assistant|>\nFour.",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>critic\nHm.<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>",
        "### Human: [INST] Hi### Assistant: Ho",
        "<|start|>user<|message|>Hi\nUser: a\nAssistant: b",
        "[INST] Hi [/INST] Ho </s> Another text.",
        "[INST] Hi [/INST] Ho <<SYS>> Be brief. <</SYS>>",
        "User: Hi\nAssistant: Ho</s>\n<s>Another text.",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|endoftext|>Another text.",
        "<start_of_turn>user\nHi<end_of_turn>\nsaid<start_of_turn>model\nHo",
    ],
)
def test_marks_that_are_left_over_are_refused(text):
    with pytest.raises(InvalidRecord, match="in its content, where no turn ends") as caught:
        split(text)
    assert str(caught.value).startswith("x: message ")


@pytest.mark.parametrize("asked", ["[INST]", "<|pad|>", "<start_of_turn>", "<<SYS>>", "<|user|>"])
def test_marks_of_other_formats_may_be_asked_about(asked):
    for text in (
        f"<|im_start|>user\nWhat is {asked}?<|im_end|>\n<|im_start|>assistant\nA mark.<|im_end|>",
        f"<|start_header_id|>user<|end_header_id|>\n\nWhat is {asked}?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA mark.<|eot_id|>",
    ):
        assert split(text) == [("user", f"What is {asked}?"), ("assistant", "A mark.")]


QUOTE = "Sure:\nUser: hi\nBot: hello"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"\n\nHuman: Two and two?\n\nAssistant: {QUOTE}", QUOTE),
        (f"Human: Two and two?\nAssistant: {QUOTE}", QUOTE),
        ("\n\nHuman: Two and two?\n\nAssistant: So:\nHuman: a\nAssistant: b", "So:\nHuman: a\nAssistant: b"),
        (f"### Human: Two and two?### Assistant: {QUOTE}\n### Response: c", f"{QUOTE}\n### Response: c"),
        ("### Instruction:\nTwo and two?\n### Response:\na\n### Input:\nb", "a\n### Input:\nb"),
        ("User: Two and two?\nAssistant: ### Human: a### Assistant: b", "### Human: a### Assistant: b"),
        ("User: Two and two?\nAssistant: a\nSystem: b", "a\nSystem: b"),
        ("[INST] Two and two? [/INST] ### Human: a### Assistant: b </s>", "### Human: a### Assistant: b"),
    ],
)
def test_a_dialogue_inside_an_answer_is_no_turn(text, answer):
    assert split(text) == [ASKED[0], ("assistant", answer)]


def test_a_turn_that_may_be_a_quotation_is_refused():
    """The blank lines are before some turns only, and the text does not begin with one."""
    for gap in ("\n", "\n\n"):
        assert len(split(gap.join(("Be brief.", "User: a", "Assistant: b", "User: c", "Assistant: d")))) == 5
    for text in (
        "User: a\n\nAssistant: b\nUser: c\n\nAssistant: d",
        "User: Write a dialogue.\nAssistant: Sure:\n\nUser: hi\nAssistant: hello",
        "\n\nUser: a\nAssistant: b\n\nUser: c\nAssistant: d",
    ):
        with pytest.raises(InvalidRecord, match="some turns have a blank line"):
            split(text)


def test_what_stands_before_the_first_turn_is_the_systems():
    for text in (
        "<s>Be brief. [INST] Two and two? [/INST] Four.",
        "System: Be brief.\n\nUser: Two and two?\nAI: Four.",
    ):
        assert split(text) == [("system", "Be brief."), *ASKED]


@pytest.mark.parametrize("text", ["", "A text.", "User: Hi", "\n\n</s>\nUser:", "[/INST]", "### Input:", "<|tool|>"])
def test_text_without_both_sides_is_none(text):
    assert split_dialogue(text, where="x") is None


def test_empty_turns_of_speakers_are_kept():
    assert split_speakers("\n\nHuman: a\n\nAssistant:", where="x")[1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    "text",
    ["Human: a\n\nAssistant: So:\nHuman: hi\nAssistant: ho", "Human: a\n\nAssistant: So:\nHuman: hi\nAI: ho"],
)
def test_pairs_may_have_lost_the_blank_line_at_the_beginning(text):
    assert split_speakers(text, where="x") == split_speakers(f"\n\n{text}", where="x")
    assert [turn["content"] for turn in split_speakers(text, where="x")] == ["a", text.partition("Assistant: ")[2]]
    with pytest.raises(InvalidRecord, match="some turns have a blank line"):
        split_speakers("Human: Write.\nAssistant: So:\n\nHuman: hi\n\nAssistant: ho", where="x")


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Human: Translate this dialog:\nBot: hello there\n\nAssistant:", None),
        ("Human: hi\n\nAI: yo\n\nHuman: say this\n\nAssistant:", None),
        ("Human: Who?", None),
        ("\n\nHuman: Who?\n\nAssistant: ", [("user", "Who?")]),
        ("P\n<extra_id_1>Assistant\nQ\n<extra_id_1>User\nR\n<extra_id_1>Assistant\n", [*"PQR"]),
        ("P\n<extra_id_1>Assistant\nQ\n<extra_id_1>User\nR\n<extra_id_1>Assistant", [*"PQR"]),
        ("<extra_id_0>System\nS\n<extra_id_1>User\nP\n<extra_id_1>Assistant\n", [("system", "S"), ("user", "P")]),
        ("<extra_id_0>System\n\n<extra_id_1>User\nP", [("user", "P")]),
    ],
)
def test_of_a_question_only_the_mark_that_opens_the_answer_is_taken_off(text, turns):
    if turns == [*"PQR"]:
        turns = [*zip(("user", "assistant", "user"), "PQR", strict=True)]
    found = split_question(text, where="x")
    assert (found and [(turn["role"], turn["content"]) for turn in found]) == turns


@pytest.mark.parametrize(
    "mark",
    [
        *("<|im_start|>", "<|end|>", "<|endoftext|>", "</s>", "[INST]", "<<SYS>>", "<|system|>", "<|eot_id|>"),
        *("<extra_id_0>", "<extra_id_1>", "<start_of_turn>", "<end_of_turn>", "### Response:", "<｜User｜>"),
    ],
)
def test_every_mark_that_is_read_and_those_of_the_template_are_found_in_a_content(mark):
    marks = LeftMarks(("<｜User｜>",))
    assert marks.are_in_any([Message("user", "a < b"), Message("assistant", f"Hi {mark} ho")])
    assert not marks.are_in_any([Message("user", "a < b, [1], ### Note: c\n\nUser: d"), Message("assistant", "<|")])
