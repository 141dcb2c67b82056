"""Records of public sets that are no list of messages: each is rewritten under the names of `chat_formats`."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.conversations.dialogue_text import split_dialogue
from data_pipelines.conversations.field_names import ADDED, ANSWERS, LISTS, QUESTIONS, SYSTEM
from data_pipelines.readers.fields import PAIRS, plain_name
from gptjax.tokenization.messages import TOOLS, UselessRecord

META = "meta_instruction"
"""MOSS's text of the system."""
ONE_ANSWER = ("generation", "best_answer", "correct_answer")
"""Fields of the answer where none has another name."""
RATINGS = {"generations": ("ratings",), "responses": ("scores", "ratings", "rewards")}
"""Fields of several answers, and of the numbers beside them; a larger one is better."""
FIELDS = (
    *ONE_ANSWER,
    *(META, "completions", "answers", *RATINGS, *(name for names in RATINGS.values() for name in names)),
    *("definition", "inputs_pretokenized", "targets_pretokenized", "message_1", "message_2"),
)
_REWRITTEN = (*FIELDS, "answer", "plain_text")
SEVERAL = "conversations have several answers, of which the best or the first was taken"
NO_ANSWERS = "conversations skipped: their question has no answer"
_CAMEL = ("message_1", "message_2")
_MOSS_CALL = re.compile(r"\w+\(")
_MOSS_ENDS = re.compile(r"\s*<eo[hmat]>\s*\Z")
_MOSS_NAME = re.compile(r"\A\s*<\|?(?:Human|MOSS)\|?>\s*:\s*")
_MOSS_TEXT = re.compile(r"\s*(?:<eo[hmat]>)?\s*\[(Human|MOSS)\]:\s*")
_CHOICE = " Questions with choices are for the tasks of python -m gptjax.evaluate."
FORMATS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("chosen", "rejected"), PAIRS),
    (("conversation_a", "conversation_b"), PAIRS),
    (("response_a", "response_b"), PAIRS),
    (("response_0", "response_1"), PAIRS),
    (("response_1", "response_2"), PAIRS),
    (("response1", "response2"), PAIRS),
    (("response-1", "response-2"), PAIRS),
    (("answer_0", "answer_1"), PAIRS),
    (("summaries", "choice"), PAIRS),
    (("human_ref_a", "human_ref_b"), PAIRS),
    (("chosen_response", "rejected_response"), PAIRS),
    (("response_j", "response_k"), PAIRS),
    (("preferred_output", "non_preferred_output"), PAIRS),
    (
        ("human_answers", "chatgpt_answers"),
        " HC3 has answers of two kinds: --rename-fields=chatgpt_answers:answers or human_answers:answers chooses.",
    ),
    (
        ("message_id", "parent_id", "text"),
        " OpenAssistant's rows are single messages: its trees (….trees.jsonl.gz) are read.",
    ),
    (("dialogue", "summary"), " A summary is an answer: --rename-fields=dialogue:prompt,summary:completion"),
    (("question", "choices"), _CHOICE),
    (("question", "options"), _CHOICE),
    (("instances",), ' The examples are in "instances": give each a record with instruction, input and output.'),
    (("story", "answers"), " Questions of one story are asked apart: give each a record with question and answer."),
)
"""Fields of records that are not read, in lower case, and what is said of them."""
FORMAT_FIELDS = tuple({name: None for names, _ in FORMATS for name in names})
"""Columns by which such records are known."""


def name_format(record: dict[str, Any]) -> str:
    """What a message adds for a record of a public set that is not read."""
    names = {*map(plain_name, record)}
    return next((told for fields, told in FORMATS if {*fields} <= names), "")


def rewrite_chat(record: dict[str, Any], *, where: str) -> tuple[dict[str, Any], bool]:
    """(a record under the names of `chat_formats`, whether an answer was chosen of several).

    Raises `UselessRecord` where there is no answer or a call of tools, and `InvalidRecord`, beginning with `where`.
    """
    if (key := find_list(record)) is not None:
        return (record if _is_list(record[key]) else _add_meta(record)), False
    if record.keys().isdisjoint(_REWRITTEN) or _has_dialogue(record, where=where):
        return record, False
    record = _rename_fields(record)
    for key in _find_choices(record):
        if (found := _choose_answer(record, key)) is not None:
            text, is_chosen = found
            return {name: record[name] for name in record if name != key} | {"output": text}, is_chosen
    if _is_complete(record):
        return record, False
    if (key := next((key for key in ONE_ANSWER if isinstance(record.get(key), str)), None)) is not None:
        return {name: record[name] for name in record if name != key} | {"output": record[key]}, False
    return (_add_meta(record) if "plain_text" in record else record), False


def find_list(record: dict[str, Any]) -> str | None:
    """The field of a list of messages, or of what stands for one. A number, such as that of `turns`, counts them."""
    return next((key for key in LISTS if not isinstance(record.get(key), int | float | None)), None)


def _is_list(value: Any) -> bool:
    """Whether a value is a list, or a text of one."""
    return isinstance(value, list) or (
        isinstance(value, str) and value.lstrip().startswith("[") and _MOSS_TEXT.match(value) is None
    )


def _has_dialogue(record: dict[str, Any], *, where: str) -> bool:
    """Whether the turns are those of the field `text`, because there are no fields of a question and an answer."""
    text = record.get("text")
    return isinstance(text, str) and not _is_complete(record) and split_text(text, where=where) is not None


def _is_complete(record: dict[str, Any]) -> bool:
    """Whether a record has a question and an answer."""
    return all(any(record.get(key) is not None for key in keys) for keys in ((*QUESTIONS, *ADDED), ANSWERS))


def _find_choices(record: dict[str, Any]) -> tuple[str, ...]:
    """Fields of several answers, or of an object around one. A text that is the answer stays it."""
    if "chosen" in record:
        return ()
    if (answer := next((key for key in ANSWERS if record.get(key) is not None), None)) is not None:
        question = next((record[key] for key in (*QUESTIONS, *ADDED) if record.get(key) is not None), None)
        is_text = isinstance(question, list) or isinstance(record[answer], str)
        return ("answer",) if answer == "answer" and not is_text else ()
    return ("answers", "completions", *RATINGS)


def _add_meta(record: dict[str, Any]) -> dict[str, Any]:
    """A record with MOSS's text of the system, or Glaive's without the mark before it, under `system`."""
    system = next((text for key in SYSTEM if (text := record.get(key))), record.get(META))
    return record | {"system": re.sub(r"\ASYSTEM:\s*", "", system)} if isinstance(system, str) else record


def split_text(value: Any, *, where: str) -> list[Any] | None:
    """Messages of MOSS's turns, or of a text with marks of who speaks; None for anything else."""
    if isinstance(value, dict) and "turn_1" in value:
        return _read_moss([value[name] for number in range(1, len(value) + 1) if (name := f"turn_{number}") in value])
    return (_split_moss(value) or split_dialogue(value, where=where)) if isinstance(value, str) else None


def _read_moss(turns: Sequence[Any]) -> list[Any]:
    messages: list[Any] = []
    for turn in turns:
        said = turn if isinstance(turn, dict) else {}
        if _MOSS_CALL.search(str(said.get("Commands"))):
            raise UselessRecord(f"conversations {TOOLS}")
        for name, role in (("Human", "user"), ("MOSS", "assistant")):
            text = said.get(name)
            content = _MOSS_ENDS.sub("", _MOSS_NAME.sub("", text)) if isinstance(text, str) else text
            messages.append({"role": role, "content": content})
    return messages


def _split_moss(text: str) -> list[Any] | None:
    """`[Human]: …<eoh> [MOSS]: …<eoa>` as messages."""
    _, *parts = _MOSS_TEXT.split(text)
    roles = {"Human": "user", "MOSS": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    turns = [{"role": roles[name], "content": _MOSS_ENDS.sub("", said)} for name, said in pairs]
    return turns if len(turns) > 1 else None


def _rename_fields(record: dict[str, Any]) -> dict[str, Any]:
    """P3's texts beside their ids, Natural Instructions' definition, and CAMEL's two messages.

    A record with other fields of questions or answers keeps its names, because they would be left out.
    """
    for names in (("inputs_pretokenized", "targets_pretokenized"), ("definition", "inputs", "targets"), _CAMEL):
        own = {*names, "inputs", "targets"} if names[0].startswith("inputs") else {*names}
        others = {*LISTS, *QUESTIONS, *ANSWERS, *ADDED} - own
        is_text = names[0].startswith("inputs") and isinstance(record.get("inputs"), str)  # it has no ids
        if {*names} <= record.keys() and not is_text and all(record.get(key) is None for key in others):
            values = [record[name] for name in names]
            if isinstance(values[0], list) and len(values[0]) == 1:
                values[0] = values[0][0]
            new = ("prompt", "completion") if len(names) == 2 else ("instruction", "input", "output")
            return {key: value for key, value in record.items() if key not in own} | dict(zip(new, values, strict=True))
    return record


def _choose_answer(record: dict[str, Any], key: str) -> tuple[str, bool] | None:
    """(the answer, whether there are several) under a field that holds more than a text; None for other fields."""
    value = parse_json(record.get(key))
    if isinstance(value, dict):  # SQuAD's, TriviaQA's
        value = value.get("value", value.get("text"))
        value = [value] if isinstance(value, str) else value
        if value == []:
            raise UselessRecord(NO_ANSWERS)
    if not isinstance(value, list):
        return None
    if key == "answers" and not value:
        raise UselessRecord(NO_ANSWERS)
    if any(isinstance(item, dict) and {"name", "arguments"} <= item.keys() for item in value):
        raise UselessRecord(f"conversations {TOOLS}")
    if (ranked := rank_answers(record, key)) is not None:
        return ranked[0], True
    if key not in ("answers", "answer") or not value or not all(isinstance(item, str) for item in value):
        return None
    return value[0], len({*value}) > 1


def rank_answers(record: dict[str, Any], key: str) -> tuple[str, str, bool] | None:
    """(the best answer, the worst, whether they differ in rank) of several with ranks or scores.

    None for other fields. Nectar has ranks, UltraFeedback scores, distilabel's sets ratings beside generations.
    """
    value = record.get(key)
    items = value if isinstance(value, list) else []
    ratings = next((found for name in RATINGS.get(key, ()) if (found := record.get(name)) is not None), None)
    if isinstance(ratings, list) and len(ratings) == len(items):
        items = [{"response": text, "score": score} for text, score in zip(items, ratings, strict=True)]
    rated = [(score, text) for item in items if (score := _rate(item)) is not None and (text := _find_answer(item))]
    if len(rated) < 2:
        return None
    get_score: Callable[[tuple[float, str]], float] = lambda pair: pair[0]
    best, worst = max(rated, key=get_score), min(rated, key=get_score)
    return best[1], worst[1], best[0] != worst[0]


def _rate(item: Any) -> float | None:
    """How good an answer is: a larger number is better."""
    if not isinstance(item, dict):
        return None
    score = next((item[key] for key in ("overall_score", "score", "rating") if item.get(key) is not None), None)
    score = -item["rank"] if score is None and isinstance(item.get("rank"), int | float) else score
    return score if isinstance(score, int | float) and score == score else None  # no NaN


def _find_answer(item: dict[str, Any]) -> str | None:
    text = next((item[key] for key in ("answer", "response", "text", "generation") if item.get(key) is not None), None)
    return text if isinstance(text, str) else None


def parse_json(value: Any) -> Any:
    """A list or an object that a field holds as JSON; other values as they are."""
    if not isinstance(value, str) or value.lstrip()[:2] not in ("[{", '["'):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
