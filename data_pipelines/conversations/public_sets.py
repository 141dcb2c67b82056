"""Records of public sets that are no list of messages: each is rewritten under the names of `chat_formats`."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.conversations.dialogue_text import split_dialogue, split_speakers
from data_pipelines.readers.fields import plain_name
from gptjax.tokenization.messages import ROLE_KEYS, TOOLS, UselessRecord

ASKED = ("input", "instruction", "human", "user", "question", "query", "prompt", "q")
ANSWERED = ("output", "response", "assistant", "gpt", "bot", "answer", "completion", "a")
"""Fields of a turn that holds both a question and its answer."""
FIELDS = (
    *("plain_text", "meta_instruction", "transcript", "completions", "generations", "ratings", "answers"),
    *("definition", "inputs_pretokenized", "targets_pretokenized", "message_1", "message_2"),
)
SEVERAL = "conversations have several answers, of which the best or the first was taken"
NO_ANSWERS = "conversations skipped: their question has no answer"
_MOSS_CALL = re.compile(r"\w+\(")
_MOSS_ENDS = re.compile(r"\s*<eo[hmat]>\s*\Z")
_MOSS_NAME = re.compile(r"\A\s*<\|?(?:Human|MOSS)\|?>\s*:\s*")
_MOSS_TEXT = re.compile(r"\s*(?:<eo[hmat]>)?\s*\[(Human|MOSS)\]:\s*")
_TEXTS = ("chat", "transcript", "dialogue", "dialog", "conversation", "conversations", "plain_text")
_CHOICE = " Questions with choices are for the tasks of python -m gptjax.evaluate."
_PAIR = " Pairs of a better and a worse answer are for python -m data_pipelines.prepare_preferences."
SHAPES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("chosen", "rejected"), _PAIR),
    (("conversation_a", "conversation_b"), _PAIR),
    (("response_a", "response_b"), _PAIR),
    (("response_0", "response_1"), _PAIR),
    (("response_1", "response_2"), _PAIR),
    (("response1", "response2"), _PAIR),
    (("answer_0", "answer_1"), _PAIR),
    (("summaries", "choice"), _PAIR),
    (("human_ref_a", "human_ref_b"), _PAIR),
    (("chosen_response", "rejected_response"), _PAIR),
    (("response_j", "response_k"), _PAIR),
    (("preferred_output", "non_preferred_output"), _PAIR),
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
SHAPE_FIELDS = tuple({name: None for names, _ in SHAPES for name in names})
"""Columns by which such records are known."""


def name_shape(record: dict[str, Any]) -> str:
    """What a message adds for a record of a public set that is not read."""
    names = {*map(plain_name, record)}
    return next((told for fields, told in SHAPES if {*fields} <= names), "")


def rewrite_chat(record: dict[str, Any], *, where: str) -> tuple[dict[str, Any], bool]:
    """(a record under the names of `chat_formats`, whether an answer was chosen of several).

    Raises `UselessRecord` where there is no answer or a call of tools, and `InvalidRecord`, beginning with `where`.
    """
    if (turns := _find_turns(record, where=where)) is not None:
        system = record.get("meta_instruction") or record.get("system") or ""
        system = re.sub(r"\ASYSTEM:\s*", "", system) if isinstance(system, str) else system
        return {"messages": turns, "system": system}, False
    record = _rename_fields(record)
    for key in ("answers", "answer", "completions", "generations"):
        if "chosen" not in record and (found := _choose_answer(record, key)) is not None:
            text, is_chosen = found
            turns = split_prompt(record.get("prompt"), where=where)
            asked = {} if turns is None else {"prompt": turns}
            return {name: record[name] for name in record if name != key} | asked | {"output": text}, is_chosen
    return record, False


def _find_turns(record: dict[str, Any], *, where: str) -> list[Any] | None:
    """Messages of MOSS's turns, of a text with marks of who speaks, and of turns that hold question and answer."""
    chat = record.get("chat")
    if isinstance(chat, dict) and "turn_1" in chat:
        return _read_moss([chat[f"turn_{number}"] for number in range(1, len(chat) + 1) if f"turn_{number}" in chat])
    for key in _TEXTS:
        value = record.get(key)
        if isinstance(value, str) and (turns := _split_moss(value) or split_dialogue(value, where=where)) is not None:
            return turns
        if isinstance(value, list) and (pairs := split_turns(value)) is not None:
            return pairs
    return None


def split_prompt(prompt: Any, *, where: str) -> list[Any] | None:
    """Messages of a prompt such as Nectar's, a text in which a human and an assistant speak; None for others."""
    if not isinstance(prompt, str) or not prompt.lstrip().startswith("Human:"):
        return None
    turns = split_speakers(prompt, where=where)
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else turns


def split_turns(turns: Sequence[Any]) -> list[Any] | None:
    """Messages of turns such as `{"input": …, "output": …}`, perhaps with a system; None for other lists."""
    keys = [_find_keys(turn) for turn in turns]
    if not keys or None in keys:
        return None
    messages: list[Any] = []
    for turn, found in zip(turns, keys, strict=True):
        asked, answered = found or ("", "")
        if (system := turn.get("system")) and not messages:
            messages.append({"role": "system", "content": system})
        messages += [{"role": "user", "content": turn[asked]}, {"role": "assistant", "content": turn[answered]}]
    return messages


def _find_keys(turn: Any) -> tuple[str, str] | None:
    """The fields of the question and of the answer of a turn; None for a message, which has a role."""
    if not isinstance(turn, dict) or not turn.keys().isdisjoint(ROLE_KEYS):
        return None
    asked, answered = (next((key for key in keys if key in turn), None) for keys in (ASKED, ANSWERED))
    return (asked, answered) if asked is not None and answered is not None else None


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
    """P3's texts beside their ids, Natural Instructions' definition, and CAMEL's two messages."""
    if {"inputs_pretokenized", "targets_pretokenized"} <= record.keys():
        return {"prompt": record["inputs_pretokenized"], "completion": record["targets_pretokenized"]}
    if {"definition", "inputs", "targets"} <= record.keys():
        definition = record["definition"]
        definition = definition[0] if isinstance(definition, list) and len(definition) == 1 else definition
        return {"instruction": definition, "input": record["inputs"], "output": record["targets"]}
    if {"message_1", "message_2"} <= record.keys():
        return {"prompt": record["message_1"], "completion": record["message_2"]}
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
    ratings = record.get("ratings") if key == "generations" else None
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
    score = next((item[key] for key in ("overall_score", "score", "rating") if key in item), None)
    score = -item["rank"] if score is None and isinstance(item.get("rank"), int | float) else score
    return score if isinstance(score, int | float) and score == score else None  # no NaN


def _find_answer(item: dict[str, Any]) -> str | None:
    text = next((item[key] for key in ("answer", "response", "text", "generation") if key in item), None)
    return text if isinstance(text, str) else None


def parse_json(value: Any) -> Any:
    """A list or an object that a field holds as JSON; other values as they are."""
    if not isinstance(value, str) or value.lstrip()[:2] not in ("[{", '["'):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
