"""Pairs of public sets whose better answer is said by ranks, scores or a preference beside the answers."""

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from data_pipelines.conversations.public_sets import FIELDS as ANSWER_FIELDS
from data_pipelines.conversations.public_sets import RATINGS, rank_answers, split_prompt
from gptjax.core.errors import count_of
from gptjax.tokenization.messages import SKIPPED, InvalidRecord, UselessRecord


class Comparison(NamedTuple):
    """Fields of two answers and of labels. `prefer` gives of the labels a number: positive where the first is better,
    negative where the second is, 0 for neither."""

    first: str
    second: str
    labels: tuple[str, ...]
    prefer: Callable[..., float]
    is_first: bool = False
    """Whether it comes before fields that say which answer is chosen."""


def _match(first: Any, second: Any) -> Callable[[Any], float]:
    """The label of the first answer and that of the second, numbers also as a table writes them."""

    def prefer(label: Any) -> float:
        value = int(label) if isinstance(label, str) and label.isdecimal() else label
        return float(value == first) - float(value == second) if isinstance(value, int | float | str) else 0.0

    return prefer


def _match_letter(label: Any) -> float:
    """A label that names an answer by its letter: A, model_a or response_a."""
    word = str(label).strip().lower()
    known = [f"{before}{letter}" for letter in "ab" for before in ("", "model_", "response_")]
    return (1.0 if word.endswith("a") else -1.0) if word in known else 0.0


COMPARISONS = (
    Comparison("response_0", "response_1", ("better_response_id",), _match(0, 1), True),  # PKU-SafeRLHF
    Comparison("human_ref_a", "human_ref_b", ("labels",), _match(1, 0), True),  # SHP
    Comparison("conversation_a", "conversation_b", ("winner",), _match("model_a", "model_b"), True),  # LMSYS's arena
    Comparison("output_1", "output_2", ("preference",), _match(1, 2), True),  # AlpacaFarm
    Comparison("response_1", "response_2", ("preference_strength",), lambda label: -_to_number(label)),  # HelpSteer2
    Comparison("response1", "response2", ("overall_preference",), lambda label: -_to_number(label)),  # HelpSteer3
    Comparison("answer_0", "answer_1", ("score_0", "score_1"), lambda *scores: _subtract(*scores)),  # WebGPT
    Comparison(  # the arena's competition: two lists of answers, and a 1 for the better one
        "response_a", "response_b", ("winner_model_a", "winner_model_b"), lambda *scores: _subtract(*scores)
    ),
    *(
        Comparison("response_a", "response_b", (label,), _match_letter)
        for label in ("preferred", "preference", "winner")
    ),
)
FIELDS = (
    *(name for first, second, labels, *_ in COMPARISONS for name in (first, second, *labels)),
    *("history", "info", "summaries", "choice", *ANSWER_FIELDS),
)
NEITHER = "pairs skipped: their label says that neither answer is better"
ONE_SCORE = "pairs skipped: all completions have one score"
UNEQUAL = f"{SKIPPED}not as many answers as questions"


def find_public_pair(record: dict[str, Any], *, has_sides: bool, where: str) -> tuple[Any, Any, Any] | None:
    """(prompt, chosen, rejected) of such a record; None for others. The prompt is None where it is to be found.

    `has_sides`: whether the record has fields of a chosen and a rejected answer, too.
    Raises `UselessRecord` where no answer is better, and `InvalidRecord`, beginning with `where`.
    """
    for first, second, labels, prefer, is_first in COMPARISONS:
        if {first, second, *labels} <= record.keys() and (is_first or not has_sides):
            better = _order(record[first], record[second], prefer(*(record[label] for label in labels)))
            return _find_question(record, labels[0], *better, where=where)
    if has_sides:
        return None
    if {"info", "summaries", "choice"} <= record.keys():
        return _find_summaries(record)
    return _find_ranked(record, where=where)


def _find_question(
    record: dict[str, Any], label: str, chosen: Any, rejected: Any, *, where: str
) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) where the prompt has another form than that of a text under one of its names."""
    question, context = record.get("question"), record.get("context")
    if label == "score_0" and isinstance(question, dict):
        return question.get("full_text"), chosen, rejected
    if label in ("preference_strength", "overall_preference") and isinstance(context, list):
        return context, _answer(chosen), _answer(rejected)
    if label == "winner_model_a" and "prompt" in record:
        asked = _parse_texts(record["prompt"])
        chosen, rejected = (_join_answers(asked, _parse_texts(side), where=where) for side in (chosen, rejected))
        return next(iter(asked), None), chosen, rejected
    return None, chosen, rejected


def _find_summaries(record: dict[str, Any]) -> tuple[Any, Any, Any] | None:
    """OpenAI's comparisons of summaries: the post with what names it, and which of two summaries is better."""
    info, summaries, choice = record["info"], record["summaries"], record["choice"]
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2 or choice not in (0, 1):
        return None
    texts = [summary.get("text") if isinstance(summary, dict) else None for summary in summaries]
    better = int(choice)  # a table may have 1.0
    return _join_post(info), texts[better], texts[1 - better]


def _join_post(info: dict[str, Any]) -> Any:
    """A post or an article, after its subreddit and title under their names if there are any."""
    post = info.get("post") or info.get("article")
    names = [
        f"{name.upper()}: {prefix}{info[name]}"
        for name, prefix in (("subreddit", "r/"), ("title", ""))
        if isinstance(info.get(name), str) and info[name].strip()
    ]
    if not names or not isinstance(post, str):
        return post
    return "\n\n".join([*names, f"{'POST' if info.get('post') else 'ARTICLE'}: {post}"])


def _find_ranked(record: dict[str, Any], *, where: str) -> tuple[Any, Any, Any] | None:
    """The best and the worst of several answers, as turns: Nectar's, UltraFeedback's and distilabel's."""
    for key in ("completions", "answers", *RATINGS):
        if "chosen" not in record and (ranked := rank_answers(record, key)) is not None:
            best, worst, is_better = ranked
            if not is_better:
                raise UselessRecord(ONE_SCORE)
            return split_prompt(record.get("prompt"), where=where), _answer(best), _answer(worst)
    return None


def _answer(text: Any) -> list[Any]:
    return [{"role": "assistant", "content": text}]


def _order(first: Any, second: Any, difference: float) -> tuple[Any, Any]:
    """(the better, the worse): the first where the difference is positive."""
    if difference == 0 or math.isnan(difference):
        raise UselessRecord(NEITHER)
    return (first, second) if difference > 0 else (second, first)


def _to_number(value: Any) -> float:
    """A number, also as a table writes it; 0 for anything else, which makes no answer better."""
    try:
        return 0.0 if math.isnan(number := float(value)) else number
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _subtract(first: Any, second: Any) -> float:
    return _to_number(first) - _to_number(second)


def _parse_texts(value: Any) -> list[Any]:
    """A text, or the texts of a list, also as JSON. An answer that is missing is a null in it."""
    found = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
    is_list = isinstance(found, list) and all(isinstance(text, str | None) for text in found)
    return found if is_list else [value]


def _join_answers(asked: list[Any], given: list[Any], *, where: str) -> list[Any]:
    """Messages of questions and answers, of which there are equally many."""
    if len(asked) != len(given):
        counts = f"{count_of(len(asked), 'questions')} and {count_of(len(given), 'answers')}"
        raise InvalidRecord(f"{where}: has {counts}; wanted an answer to each question.", UNEQUAL)
    return [
        message
        for question, answer in zip(asked, given, strict=True)
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]
