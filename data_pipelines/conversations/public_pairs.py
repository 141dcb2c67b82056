"""Pairs of public sets whose better answer is said by ranks, scores or a preference beside the answers."""

import math
from typing import Any

from data_pipelines.conversations.public_sets import parse_json, rank_answers, split_prompt
from gptjax.tokenization.messages import UselessRecord

PREFERENCES = (
    ("response_1", "response_2", "preference_strength"),  # HelpSteer2
    ("response1", "response2", "overall_preference"),  # HelpSteer3
)
"""Fields of two answers, and of a number: negative where the first is better, positive where the second is."""
SCORED = ("answer_0", "answer_1", "score_0", "score_1")
"""WebGPT's two answers and their scores."""
CHOSEN = ("response_a", "response_b", "winner_model_a", "winner_model_b")
"""The arena's conversations of a competition: two lists of answers, and a 1 for the better one."""
FIELDS = (
    *(name for names in PREFERENCES for name in names),
    *(*SCORED, *CHOSEN, "answers", "generations", "ratings", "info", "summaries", "choice"),
)
NEITHER = "pairs skipped: their label says that neither answer is better"
ONE_SCORE = "pairs skipped: all completions have one score"


def find_public_pair(record: dict[str, Any], *, where: str) -> tuple[Any, Any, Any] | None:
    """(prompt, chosen, rejected) of such a record; None for others. The prompt is None where it is to be found.

    Raises `UselessRecord` where no answer is better, and `InvalidRecord`, beginning with `where`.
    """
    for first, second, label in PREFERENCES:
        if {first, second, label} <= record.keys():
            better = _order(record[first], record[second], -_to_number(record[label]))
            prompt = record.get("context") if isinstance(record.get("context"), list) else None
            chosen, rejected = map(_answer, better) if prompt else better
            return prompt, chosen, rejected
    if {*SCORED} <= record.keys():
        question = record.get("question")
        question = question.get("full_text") if isinstance(question, dict) else question
        difference = _to_number(record["score_0"]) - _to_number(record["score_1"])
        chosen, rejected = _order(record["answer_0"], record["answer_1"], difference)
        return question, chosen, rejected
    if {*CHOSEN, "prompt"} <= record.keys():
        sides = [_join_answers(record["prompt"], record[key]) for key in CHOSEN[:2]]
        difference = _to_number(record["winner_model_a"]) - _to_number(record["winner_model_b"])
        chosen, rejected = _order(sides[0], sides[1], difference)
        return None, chosen, rejected
    if {"info", "summaries", "choice"} <= record.keys():
        return _find_summaries(record)
    return _find_ranked(record, where=where)


def _find_summaries(record: dict[str, Any]) -> tuple[Any, Any, Any] | None:
    """OpenAI's comparisons of summaries: the post, and which of two summaries is better."""
    info, summaries, choice = record["info"], record["summaries"], record["choice"]
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2 or choice not in (0, 1):
        return None
    texts = [summary.get("text") if isinstance(summary, dict) else None for summary in summaries]
    return info.get("post") or info.get("article"), texts[choice], texts[1 - choice]


def _find_ranked(record: dict[str, Any], *, where: str) -> tuple[Any, Any, Any] | None:
    """The best and the worst of several answers, as turns: Nectar's, UltraFeedback's and distilabel's."""
    for key in ("completions", "answers", "generations"):
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
    if difference == 0:
        raise UselessRecord(NEITHER)
    return (first, second) if difference > 0 else (second, first)


def _to_number(value: Any) -> float:
    """A number, also as a table writes it; 0 for anything else, which makes no answer better."""
    try:
        return 0.0 if math.isnan(number := float(value)) else number
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _join_answers(prompts: Any, answers: Any) -> list[Any]:
    """Messages of questions and answers, each a text or a list of texts as JSON."""
    asked, given = (value if isinstance(value := parse_json(text), list) else [text] for text in (prompts, answers))
    pairs = zip(asked, given, strict=False)
    return [
        message
        for question, answer in pairs
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]
