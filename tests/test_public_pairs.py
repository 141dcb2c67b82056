"""Pairs of public sets, whose better answer is said beside the answers, and what belongs to the prompt of any pair."""

import pytest

from data_pipelines.conversations.chat_formats import parse_conversation
from data_pipelines.conversations.preference_formats import OTHER_CONTENT, OTHER_SYSTEM, parse_pair, read_pair
from data_pipelines.conversations.public_pairs import UNKNOWN
from gptjax.tokenization.messages import InvalidRecord, UselessRecord

PAIRS = {
    "nectar": (
        {
            "prompt": "\n\nHuman: Hi?\n\nAssistant: ",
            "answers": [
                {"answer": "bad", "rank": 3.0},
                {"answer": "best", "rank": 1.0},
                {"answer": "mid", "rank": 2.0},
            ],
        },
        ([("user", "Hi?")], [("assistant", "best")], [("assistant", "bad")]),
    ),
    "arena55k": (
        {
            "prompt": '["q1","q2"]',
            "response_a": '["a1","a2"]',
            "response_b": '["b1","b2"]',
            "winner_model_a": 0,
            "winner_model_b": 1,
        },
        (
            [("user", "q1")],
            [("assistant", "b1"), ("user", "q2"), ("assistant", "b2")],
            [("assistant", "a1"), ("user", "q2"), ("assistant", "a2")],
        ),
    ),
    "ultrafeedback": (
        {
            "instruction": "I",
            "completions": [
                {"model": "a", "response": "A", "overall_score": 7.5, "annotations": {}},
                {"model": "b", "response": "B", "overall_score": 3.0},
            ],
        },
        ([("user", "I")], [("assistant", "A")], [("assistant", "B")]),
    ),
    "helpsteer2p": ({"prompt": "P", "response_1": "A", "response_2": "B", "preference_strength": -2}, ("P", "A", "B")),
    "helpsteer3": (
        {"context": [{"role": "user", "content": "P"}], "response1": "A", "response2": "B", "overall_preference": 2},
        ([("user", "P")], [("assistant", "B")], [("assistant", "A")]),
    ),
    "distil_orca": (
        {"system": "S", "input": "Q", "chosen": "A", "rejected": "B", "generations": ["A", "B"], "rating": [9.0, 3.0]},
        ("S\n\nQ", "A", "B"),
    ),
    "distilabel_uf": (
        {"instruction": "I", "generations": ["A", "B"], "ratings": [2, 5]},
        ([("user", "I")], [("assistant", "B")], [("assistant", "A")]),
    ),
    "summarize": (
        {
            "info": {"id": "i", "post": "Long post", "title": "T", "subreddit": "s"},
            "summaries": [{"text": "A", "policy": "p", "note": None}, {"text": "B", "policy": "q", "note": None}],
            "choice": 1,
        },
        ("SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: Long post", "B", "A"),
    ),
    "webgpt": (
        {
            "question": {"dataset": "d", "id": "i", "full_text": "Q?"},
            "answer_0": "A",
            "answer_1": "B",
            "score_0": -0.5,
            "score_1": 0.5,
        },
        ("Q?", "B", "A"),
    ),
}
PAIRS |= {
    "summarize_article": (
        {"info": {"article": "Text", "title": None}, "summaries": [{"text": "A"}, {"text": "B"}], "choice": 0},
        ("Text", "A", "B"),
    ),
    "helpsteer2p_turns": (
        PAIRS["helpsteer2p"][0]
        | {"prompt": "P\n<extra_id_1>Assistant\nQ\n<extra_id_1>User\nR", "system_prompt": "S", "context": "C"},
        (
            [("system", "S"), ("user", "P"), ("assistant", "Q"), ("user", "R\n\nC")],
            [("assistant", "A")],
            [("assistant", "B")],
        ),
    ),
    "summarize_float": (
        {"info": {"post": "Text"}, "summaries": [{"text": "A"}, {"text": "B"}], "choice": 1.0},
        ("Text", "B", "A"),
    ),
    "chosen_first": (PAIRS["helpsteer2p"][0] | {"chosen": "C", "rejected": "R"}, ("P", "C", "R")),
    "label_first": (
        {"prompt": "P", "response_0": "A", "response_1": "B", "better_response_id": 1, "chosen": "C", "rejected": "R"},
        ("P", "B", "A"),
    ),
    "helpsteer2p_system": (PAIRS["helpsteer2p"][0] | {"system_prompt": "S"}, ("S\n\nP", "A", "B")),
    "helpsteer3_system": (
        PAIRS["helpsteer3"][0] | {"system": "S"},
        ([("system", "S"), ("user", "P")], [("assistant", "B")], [("assistant", "A")]),
    ),
    "arena55k_system": (
        PAIRS["arena55k"][0] | {"system": "S"},
        ([("system", "S"), ("user", "q1")], *PAIRS["arena55k"][1][1:]),
    ),
    "safe_rlhf_system": (
        {"prompt": "P", "response_0": "A", "response_1": "B", "better_response_id": 1, "system": "S"},
        ("S\n\nP", "B", "A"),
    ),
    "ultrafeedback_null": (
        {
            "instruction": "I",
            "completions": [
                {"response": "A", "overall_score": None, "score": 2},
                {"response": "B", "overall_score": None, "score": 3},
            ],
        },
        ([("user", "I")], [("assistant", "B")], [("assistant", "A")]),
    ),
}
"""(record, (prompt, chosen, rejected))."""
ASKED = [("user", "P"), ("assistant", "Q"), ("user", "R")]
MARKED = "P\n<extra_id_1>Assistant\nQ\n<extra_id_1>User\nR"
DIALOGUE = "\n\nHuman: P\n\nAssistant: Q\n\nHuman: R\n\nAssistant:"
EARLIER = {"history": [["P", "Q"]], "instruction": "R"}
ANSWERS = {"chosen": "A", "rejected": "B"}
HUMAN = "\n\nHuman: R\n\nAssistant: "


def message(role, content):
    return {"role": role, "content": content}


LISTS = {
    side: [message("user", "R"), message("assistant", text)] for side, text in (("chosen", "A"), ("rejected", "B"))
}


def show(part):
    return [(item.role, item.content) for item in part] if isinstance(part, list) else part


@pytest.mark.parametrize(("record", "wanted"), PAIRS.values(), ids=PAIRS)
def test_a_pair_of_a_public_set_is_read(record, wanted):
    pair, left_out = read_pair(record, where="x:1")
    assert (tuple(map(show, pair)), left_out) == (wanted, ())


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": MARKED},
        {"prompt": f"{MARKED}\n<extra_id_1>Assistant\n"},
        {"prompt": DIALOGUE},
        EARLIER,
        EARLIER | {"history": '[["P", "Q"]]'},
        EARLIER | {"history": "[['P', 'Q']]"},
        EARLIER | {"history": [message(*turn) for turn in ASKED[:2]]},
        {"prompt": [message(*turn) for turn in ASKED]},
        {"prompt": [message(*turn) for turn in ASKED], "history": [["P", "Q"]]},
        {"prompt": [message(*ASKED[2])], "history": [["P", "Q"]]},
        {"history": [message(*turn) for turn in ASKED]},
    ],
)
@pytest.mark.parametrize("answers", [(" A", "B"), ([message("assistant", "A")], [message("assistant", "B")])])
def test_turns_before_a_question_are_no_letters_of_it(asked, answers):
    record = asked | dict(zip(("chosen", "rejected"), answers, strict=True))
    pair, left_out = read_pair(record, where="x:1")
    assert tuple(map(show, pair)) == (ASKED, [("assistant", "A")], [("assistant", "B")])
    assert left_out == ()


@pytest.mark.parametrize("start", [[], [("system", "S")]])
def test_a_history_comes_before_every_form_of_a_pair(start):
    """After the system's message, and once where the record repeats it."""
    system, asked = [message(*turn) for turn in start], [message(*turn) for turn in ASKED]
    lists = {side: [*system, *turns] for side, turns in LISTS.items()}
    whole = {side: [*system, *asked[:2], *turns] for side, turns in LISTS.items()}
    texts = {side: f"{HUMAN}{text}" for side, text in ANSWERS.items()}
    openai = {"preferred_output": [message("assistant", "A")], "non_preferred_output": [message("assistant", "B")]}
    records = [
        lists,
        lists | {"prompt": "R"},
        lists | {"prompt": [message("user", "R")]},
        whole,
        openai | {"input": {"messages": [*system, asked[2]]}},
        {"prompt": [*system, asked[2]], **ANSWERS},
        texts | ({"system": "S"} if start else {}),
    ]
    for record in records:
        pair, left_out = read_pair(record | {"history": [["P", "Q"]]}, where="x:1")
        wanted = ([*start, *ASKED], [("assistant", "A")], [("assistant", "B")])
        assert (tuple(map(show, pair)), left_out) == (wanted, ()), record


def test_a_history_of_text_is_a_prompt_or_named():
    assert parse_pair({"history": "Q", **ANSWERS}, where="x:1") == ("Q", "A", "B")
    dialogues = {side: f"{HUMAN}{text}" for side, text in ANSWERS.items()}
    wanted = [[("user", "R")], [("assistant", "A")], [("assistant", "B")]]
    for sides in (LISTS, dialogues):
        pair, left_out = read_pair({"history": "Q", **sides}, where="x:1")
        assert ([*map(show, pair)], left_out) == (wanted, (OTHER_CONTENT,))
    pair, left_out = read_pair({"prompt": HUMAN, **dialogues}, where="x:1")
    assert ([*map(show, pair)], left_out) == (wanted, ())
    with pytest.raises(InvalidRecord, match='x:1: "history": wanted a list'):
        parse_pair({"history": "Q", "prompt": "R", **ANSWERS}, where="x:1")


@pytest.mark.parametrize("blank", ["", " \n"])
@pytest.mark.parametrize("asked", [{"prompt": DIALOGUE}, EARLIER, {"prompt": [message("user", "R")]}, {"prompt": "R"}])
def test_a_blank_answer_is_refused_after_turns_too(asked, blank):
    with pytest.raises(InvalidRecord, match='x:1: "chosen" is blank'):
        parse_pair(asked | {"chosen": blank, "rejected": "b"}, where="x:1")


@pytest.mark.parametrize("label", ["winner", "preferred", "preference"])
def test_turns_of_the_arena_are_read_whatever_the_label(label):
    asked, *answers = ['["q1", null]', '["a1", "a2"]', '["b1", "b2"]']
    record = dict(zip(("prompt", "response_a", "response_b"), (asked.replace("null", '"q2"'), *answers), strict=True))
    pair, left_out = read_pair(record | {label: "model_b"}, where="x:1")
    assert (tuple(map(show, pair)), left_out) == (PAIRS["arena55k"][1], ())
    plain = record | {"prompt": "A list, please.", label: "model_b"}
    assert parse_pair(plain, where="x:1") == ("A list, please.", answers[1], answers[0])


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        (LISTS, [("system", "S"), ("user", "R")]),
        ({"chosen": f"{HUMAN}A", "rejected": f"{HUMAN}B"}, [("system", "S"), ("user", "R")]),
        ({"chosen": "Say it A", "rejected": "Say it B"}, "S\n\nSay"),
        ({"prompt": "R", "chosen": "A", "rejected": "B"}, "S\n\nR"),
        ({"prompt": "R", **LISTS}, [("system", "S"), ("user", "R")]),
        (EARLIER | {"chosen": "A", "rejected": "B"}, [("system", "S"), *ASKED]),
    ],
)
def test_a_text_of_the_system_is_part_of_every_form(record, prompt):
    pair, left_out = read_pair(record | {"system": "S"}, where="x:1")
    assert (show(pair.prompt), left_out) == (prompt, ())


@pytest.mark.parametrize(
    ("record", "left_out"),
    [
        ({"prompt": [message("system", "T"), message("user", "R")], "system": "S", **ANSWERS}, (OTHER_SYSTEM,)),
        ({side: [message("system", "T"), *turns] for side, turns in LISTS.items()} | {"system": "S"}, (OTHER_SYSTEM,)),
        ({"system": "S", "system_prompt": "T", **LISTS}, (OTHER_SYSTEM,)),
        ({"prompt": "another question", **LISTS}, (OTHER_CONTENT,)),
        ({"prompt": [message("user", "R")], "context": "C", **LISTS}, (OTHER_CONTENT,)),
        ({"prompt": "R", "prompt_id": "7", **LISTS}, ()),
    ],
)
def test_what_no_part_of_a_pair_holds_is_told(record, left_out):
    assert read_pair(record, where="x:1")[1] == left_out


@pytest.mark.parametrize(
    ("prompt", "answers", "counts"),
    [
        ('["q1", "q2"]', '["a1"]', "2 questions and 1 answer"),
        ('["q1"]', '["a1", "a2"]', "1 question and 2 answers"),
        (["q1", "q2"], ["a1", "a2", "a3"], "2 questions and 3 answers"),
    ],
)
def test_questions_without_an_answer_of_their_own_are_told(prompt, answers, counts):
    record = PAIRS["arena55k"][0] | {"prompt": prompt, "response_a": answers}
    with pytest.raises(InvalidRecord, match=counts):
        parse_pair(record, where="x:1")


def test_a_missing_answer_of_the_arena_is_no_text():
    record = PAIRS["arena55k"][0] | {"prompt": '["q1"]', "response_a": "[null]", "response_b": '["b1"]'}
    with pytest.raises(InvalidRecord, match="its content is None"):
        parse_pair(record, where="x:1")


@pytest.mark.parametrize(
    ("label", "better"), [("A", "x"), ("b", "y"), ("Response A", "x"), ("assistant_b", "y"), ("model_b", "y")]
)
@pytest.mark.parametrize("field", ["preferred", "preference", "winner"])
def test_a_letter_says_which_answer_is_better(field, label, better):
    record = {"prompt": "P", "response_a": "x", "response_b": "y", field: label}
    assert parse_pair(record, where="x:1").chosen == better
    for tie in ("tie", "Tie (bothbad)", "equal", None, ""):
        with pytest.raises(UselessRecord, match="neither answer is better"):
            parse_pair(record | {field: tie}, where="x:1")


@pytest.mark.parametrize(
    ("fields", "label", "value", "shown"),
    [
        (("response_a", "response_b"), "winner", "b is better", "'b is better'; wanted A or B"),
        (("response_a", "response_b"), "preferred", 1, "1; wanted A or B"),
        (("conversation_a", "conversation_b"), "winner", [], r"\[\]; wanted A or B"),
        (("response_0", "response_1"), "better_response_id", 2, "2; wanted 0 or 1"),
        (("human_ref_A", "human_ref_B"), "labels", "A", "'A'; wanted 1 or 0"),
        (("response_1", "response_2"), "preference_strength", "better", "'better'; wanted a number"),
        (("response_1", "response_2"), "preference_strength", 10**400, "1000.*; wanted a number"),
    ],
)
def test_a_label_that_is_not_understood_is_no_tie(fields, label, value, shown):
    record = {"prompt": "P", **dict(zip(fields, "xy", strict=True)), label: value}
    with pytest.raises(InvalidRecord, match=f'x:1: has the label "{label.lower()}": {shown}') as caught:
        parse_pair(record, where="x:1")
    assert caught.value.note == UNKNOWN


@pytest.mark.parametrize("label", [1, "1", "1.0", 1.0, True, "True"])
def test_a_number_of_a_label_may_be_written_as_tables_do(label):
    record = {"prompt": "P", "response_0": "x", "response_1": "y", "better_response_id": label}
    assert parse_pair(record, where="x:1").chosen == "y"


@pytest.mark.parametrize("numbers", ["scores", "ratings", "rewards"])
def test_of_several_responses_the_best_and_the_worst_make_a_pair(numbers):
    record = {"prompt": "P", "responses": ["x", "y", "z"], numbers: [0.5, 0.9, 0.1]}
    pair = parse_pair(record, where="x:1")
    assert [show(part) for part in pair] == [[("user", "P")], [("assistant", "y")], [("assistant", "z")]]
    assert parse_conversation(record, where="x:1").messages[-1].content == "y"


@pytest.mark.parametrize(
    "record",
    [{"role": "user", "content": "Hi"}, {"q": "a", "x\nerror: b": "c", "\x1b[2J": "d"}, {"": "a", "b": "c", "d": "e"}],
)
def test_no_name_of_a_field_begins_a_line_of_a_message(record):
    with pytest.raises(InvalidRecord) as caught:
        parse_pair(record, where="x:1")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("strength", [0, "0.0", None, "", float("nan"), "tie"])
def test_preferences_that_prefer_nothing_are_left_out(strength):
    record = {"prompt": "P", "response_1": "A", "response_2": "B", "preference_strength": strength}
    with pytest.raises(UselessRecord, match="neither answer is better"):
        parse_pair(record, where="x:1")
