"""Pairs of public sets whose better answer is said by ranks, scores or a preference beside the answers."""

import contextlib
import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from data_pipelines.conversations.field_names import QUESTIONS
from data_pipelines.conversations.public_sets import FIELDS as ANSWER_FIELDS
from data_pipelines.conversations.public_sets import RATINGS, rank_answers
from gptjax.core.errors import count_of, quote
from gptjax.tokenization.messages import SKIPPED, InvalidRecord, UselessRecord


class Rule(NamedTuple):
    """How labels are understood: what is wanted of them, and a function of their numbers or words in lower case.

    It gives a number: positive where the first answer is better, negative where the second is. None: not understood.
    """

    wanted: str
    prefer: Callable[..., float | None]


class Comparison(NamedTuple):
    """Fields of two answers, and of the labels that say which is better."""

    first: str
    second: str
    labels: tuple[str, ...]
    rule: Rule
    is_first: bool = False
    """Whether it comes before fields that say which answer is chosen."""


TIES = ("tie", "tie (bothbad)", "tie (both bad)", "bothbad", "both bad", "both_bad", "both", "equal", "same", "draw")
NO_LABELS = ("", "none", "neither", "null", "nan")
_LETTER = re.compile(r"(?:(?:model|response|assistant|answer|option|conversation|output|completion)[ _-]?)?([ab])")


def _match(first: float, second: float, *, ties: tuple[float, ...] = ()) -> Rule:
    """The label of the first answer and that of the second."""
    preferred = {first: 1.0, second: -1.0} | dict.fromkeys(ties, 0.0)
    return Rule(f"{first:g} or {second:g}", preferred.get)


def _match_letter(label: Any) -> float | None:
    found = _LETTER.fullmatch(label) if isinstance(label, str) else None
    return None if found is None else 1.0 if found[1] == "a" else -1.0


def _subtract(first: Any, second: Any) -> float | None:
    return None if isinstance(first, str) or isinstance(second, str) else first - second


def _match_name(first: str, second: str) -> Rule:
    """The label is the name of the better answer's field. A number may be a strength, and is not understood."""
    return Rule(f'"{first}" or "{second}"', {first: 1.0, second: -1.0}.get)


LETTER = Rule("A or B, as in model_a, or tie", _match_letter)
STRENGTH = Rule("a number, negative for the first", lambda label: _subtract(0.0, label))
SCORES = Rule("two numbers", _subtract)
COMPARISONS = (
    Comparison("response_0", "response_1", ("better_response_id",), _match(0, 1), True),  # PKU-SafeRLHF
    Comparison("human_ref_a", "human_ref_b", ("labels",), _match(1, 0), True),  # SHP
    Comparison("conversation_a", "conversation_b", ("winner",), LETTER, True),  # LMSYS's arena
    Comparison("output_1", "output_2", ("preference",), _match(1, 2, ties=(0, 1.5)), True),  # AlpacaFarm
    Comparison("response_1", "response_2", ("preference_strength",), STRENGTH),  # HelpSteer2
    Comparison("response1", "response2", ("overall_preference",), STRENGTH),  # HelpSteer3
    Comparison("answer_0", "answer_1", ("score_0", "score_1"), SCORES),  # WebGPT
    Comparison("response_a", "response_b", ("winner_model_a", "winner_model_b"), SCORES),  # the arena's competition
    *(Comparison("response_a", "response_b", (label,), LETTER) for label in ("preferred", "preference", "winner")),
    *(  # Argilla's
        Comparison(*names, (label,), _match_name(*names))
        for label in ("preference.responses", "preference")
        for names in (("response-1", "response-2"), ("response_1", "response_2"), ("response1", "response2"))
    ),
)
FIELDS = (
    *(name for first, second, labels, *_ in COMPARISONS for name in (first, second, *labels)),
    *("history", "info", "summaries", "choice", *ANSWER_FIELDS),
)
NEITHER = "pairs skipped: their label says that neither answer is better"
ONE_SCORE = "pairs skipped: all completions have one score"
UNEQUAL = f"{SKIPPED}not as many answers as questions"
UNKNOWN = f"{SKIPPED}a label that is not understood"


def find_public_pair(record: dict[str, Any], *, has_sides: bool, where: str) -> tuple[Any, Any, Any] | None:
    """(prompt, chosen, rejected) of such a record; None for others. The prompt is None where it is to be found.

    `has_sides`: whether the record has fields of a chosen and a rejected answer, too.
    Raises `UselessRecord` where no answer is better, and `InvalidRecord`, beginning with `where`.
    """
    for first, second, labels, rule, is_first in COMPARISONS:
        if {first, second, *labels} <= record.keys() and (is_first or not has_sides):
            is_better = _find_preference(record, labels, rule, where=where) > 0
            better, worse = (first, second) if is_better else (second, first)
            return _find_question(record, labels[0], record[better], record[worse], where=where)
    if has_sides:
        return None
    if {"info", "summaries", "choice"} <= record.keys():
        return _find_summaries(record)
    return _find_ranked(record, where=where)


def _find_preference(record: dict[str, Any], labels: tuple[str, ...], rule: Rule, *, where: str) -> float:
    """What the rule gives for the labels; not 0. Raises `UselessRecord` where none of the answers is better."""
    try:
        read = [_read_label(record[label]) for label in labels]
        difference = 0.0 if None in read else rule.prefer(*read)
    except (TypeError, OverflowError):
        difference = None
    if difference is None or math.isnan(difference):
        shown = ", ".join(f'"{label}": {quote(repr(record[label]), limit=40)}' for label in labels)
        raise InvalidRecord(f"{where}: has the label {shown}; wanted {rule.wanted}.", UNKNOWN)
    if difference == 0:
        raise UselessRecord(NEITHER)
    return difference


def _read_label(value: Any) -> float | str | None:
    """A number, also as a table writes it, or a word in lower case; None for a label that prefers nothing.

    Of a list it is the label on which all agree.

    Raises `TypeError` for other values and `OverflowError` for a number that is too large.
    """
    if isinstance(value, list):  # one of each reader
        if not value:
            raise TypeError("no label")
        value = value[0] if all(label == value[0] for label in value) else None
    word = value.strip().lower() if isinstance(value, str) else ""
    if value is None or value != value or (isinstance(value, str) and word in (*TIES, *NO_LABELS)):
        return None
    try:
        return float(value)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(word, word)


def _find_question(
    record: dict[str, Any], label: str, chosen: Any, rejected: Any, *, where: str
) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) where the prompt has another form than that of a text under one of its names."""
    question, context = record.get("question"), record.get("context")
    if label == "score_0" and isinstance(question, dict):
        return question.get("full_text"), chosen, rejected
    if label in ("preference_strength", "overall_preference") and isinstance(context, list):
        return context, chosen, rejected
    prompt = next((record[key] for key in QUESTIONS if record.get(key) is not None), None)
    asked, *answers = (parse_texts(value) for value in (prompt, chosen, rejected))
    if asked and None not in answers:  # the arena's, of all turns
        better, worse = (_join_answers(asked, given or [], where=where) for given in answers)
        return asked[0], better, worse
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
            better, worse = ([{"role": "assistant", "content": text}] for text in (best, worst))
            return None, better, worse
    return None


def parse_texts(value: Any) -> list[Any] | None:
    """The texts of a list, also as JSON; None for anything else. An answer that is missing is a null in it."""
    found = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
    is_list = isinstance(found, list) and all(isinstance(text, str | None) for text in found)
    return found if is_list else None


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
