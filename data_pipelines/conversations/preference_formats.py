"""Preference pairs as people keep them: with or without a prompt, as strings, messages or dialogue text."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.conversations.advice import suggest_label, suggest_names
from data_pipelines.conversations.chat_formats import (
    add_context,
    describe,
    find_system,
    is_labelled,
    parse_conversation,
    parse_lists,
    read_history,
)
from data_pipelines.conversations.dialogue_text import split_question, split_speakers
from data_pipelines.conversations.field_names import ADDED, QUESTIONS, SYSTEM
from data_pipelines.conversations.public_pairs import FIELDS as PUBLIC_FIELDS
from data_pipelines.conversations.public_pairs import find_public_pair, parse_texts
from data_pipelines.readers.fields import LABEL, list_hidden, rename_fields, suggest_command, suggest_prepare
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.list_cells import parse_json
from gptjax.tokenization.messages import (
    SKIPPED,
    WRONG_TURNS,
    InvalidRecord,
    UselessRecord,
    as_list,
    check_turns,
    check_utf8,
    find_role,
    read_messages,
)

SIDES = ("chosen", "rejected")
SIDE_NAMES = {
    "chosen": ("chosen", "chosen_response", "preferred", "response_j", "accepted", "win"),
    "rejected": ("rejected", "rejected_response", "non_preferred", "response_k", "lose"),
}
"""Fields of each side in public sets; `response_j` and `response_k` are StackExchange's."""
_NAMES = tuple(name for names in SIDE_NAMES.values() for name in names)
_OWN = ("conversations", "preferred_output", "non_preferred_output", "completions", LABEL)
FIELDS = (*_NAMES, *QUESTIONS, *ADDED, *SYSTEM, *_OWN, *PUBLIC_FIELDS)
_KNOWN = frozenset(FIELDS)
EQUAL = "pairs skipped: chosen and rejected are equal"
OTHER_SYSTEM = "pairs have a second text of the system, which was left out"
OTHER_CONTENT = "pairs have a text beside the prompt and the two answers, which was left out"
_BESIDE = ("prompt", "instruction", "question", "query", "problem", *ADDED)
"""Fields of questions. A third answer is no part of a pair."""
NO_PROMPT, BLANK = f"{SKIPPED}nothing in common, and no prompt", f"{SKIPPED}a blank text"
FORMS = '"prompt", "chosen", "rejected" as three strings or three lists, or "chosen" and "rejected" with one beginning'
_SPEAKER = re.compile(r"(?:\n\n)?(?:Human|Assistant):")


class Pair(NamedTuple):
    """A prompt and two completions: three strings, or three lists of messages."""

    prompt: Any
    chosen: Any
    rejected: Any


def parse_pair(record: Any, *, where: str, renamed: Mapping[str, str] = {}) -> Pair:
    """The pair of a record in any of the known forms (docs/chat.md). Fields in `renamed` have another name.

    Raises `InvalidRecord`, beginning with `where`, and `UselessRecord`.
    """
    return read_pair(record, where=where, renamed=renamed)[0]


def read_pair(
    record: Any, *, where: str, renamed: Mapping[str, str] = {}, keeps_text: bool = False, as_turns: bool = False
) -> tuple[Pair, tuple[str, ...]]:
    """`parse_pair`, with notes on what was left out. `keeps_text`: marks of who speaks stay a part of the texts.

    `as_turns`: a prompt and answers of plain text are turns of the user and of the assistant.
    """
    hidden = list_hidden(record, renamed, where=where) & {*SYSTEM} if renamed else ()
    record = parse_lists(rename_fields(record, renamed, known=_KNOWN, where=where))
    if not isinstance(record, dict):
        raise InvalidRecord(f"{where}: wanted an object with {FORMS}.")
    given = _find_sides(record, where=where)
    if given.chosen is not None and given.chosen == given.rejected:
        raise UselessRecord(EQUAL)
    is_alone = _is_prompt(record.get("history")) and given.prompt in (None, record["history"])
    history = [] if is_alone else read_history(record, where=where)
    is_text = keeps_text and not as_turns and not history and not any(isinstance(part, list) for part in given)
    turns = given if is_text else _make_turns(given, history, as_turns=as_turns, where=where)
    if (pair := _split_sides(turns, where=where)) is None:
        raise _explain_sides(record, *given, where=where)
    if as_turns and isinstance(pair.prompt, str):
        raise InvalidRecord(f'{where}: has no "prompt", which would be the turn of the user.', NO_PROMPT)
    pair = _add_before(pair, history, find_system(record, where=where), where=where)
    used = given.prompt if isinstance(given.prompt, str) and turns.prompt is not given.prompt else ""
    has_system = bool(hidden) or _has_other_system(record, pair)
    found = {OTHER_SYSTEM: has_system, OTHER_CONTENT: _has_other_content(record, pair, used)}
    return pair, tuple(note for note, is_true in found.items() if is_true)


def _find_sides(record: dict[str, Any], *, where: str) -> Pair:
    """Prompt, chosen and rejected as the record has them, under the names of public sets; None for what it lacks."""
    if "preferred_output" in record:  # OpenAI's
        given = record.get("input")
        prompt = given.get("messages") if isinstance(given, dict) else given
        sides = [record["preferred_output"], record.get("non_preferred_output")]
    else:
        sides = [next((record[name] for name in names if name in record), None) for names in SIDE_NAMES.values()]
        found = find_public_pair(record, has_sides=None not in sides, where=where)
        prompt, *sides = found or (None, *sides)
        prompt = _find_prompt(record, where=where) if prompt is None else prompt
    history = record.get("history")
    if prompt is None and _is_prompt(history) and not _are_dialogues(None, sides):
        prompt = history  # SHP's
    return Pair(*map(as_list, (prompt, *sides)))


def _find_prompt(record: dict[str, Any], *, where: str) -> Any:
    """The prompt with what belongs to it, such as Alpaca's `input`."""
    key = next((key for key in (*QUESTIONS, "conversations", "input") if record.get(key) is not None), None)
    if key is None or (key == "input" and not isinstance(record["input"], str)):
        return None
    return add_context(record, key, where=where) if isinstance(record[key], str) else record[key]


def _is_prompt(history: Any) -> bool:
    """Whether a history is a text, and no list of turns."""
    return isinstance(history, str) and bool(history.strip()) and not isinstance(parse_json(history), list)


def _are_dialogues(prompt: Any, sides: Sequence[Any]) -> bool:
    """Whether both sides are HH-RLHF's texts, which hold their prompt, and repeat one that is beside them."""
    start = prompt.rstrip() if isinstance(prompt, str) else ""
    return (prompt is None or bool(start)) and all(
        isinstance(side, str) and _SPEAKER.match(side) is not None and side.startswith(start) for side in sides
    )


def _make_turns(given: Pair, history: list[Any], *, as_turns: bool, where: str) -> Pair:
    """Lists of messages where a part is such a list, holds earlier turns or follows a history; texts for others."""
    prompt, *sides = given
    if _are_dialogues(prompt, sides):
        sides = [split_speakers(side, where=where) for side in sides]
    if any(isinstance(side, list) and find_role((side or [None])[0]) != "assistant" for side in sides):
        return Pair(prompt, *sides)  # the sides hold it
    turns = split_question(prompt, where=where) if isinstance(prompt, str) else prompt or history or None
    if turns is None and prompt is not None and (as_turns or history or all(isinstance(side, list) for side in sides)):
        turns = [{"role": "user", "content": prompt}]
    if not isinstance(turns, list):
        return Pair(prompt, *sides)
    named = zip(SIDES, sides, strict=True)
    return Pair(
        turns,
        *(_answer(side, where=f'{where}: "{name}"') if isinstance(side, str) else side for name, side in named),
    )


def _answer(text: str, *, where: str) -> list[Any]:
    """A text as the assistant's message, without the blank that is part of a mark before it."""
    if not text.strip():
        raise InvalidRecord(f"{where} is blank.", BLANK)
    return [{"role": "assistant", "content": text.strip()}]


def _split_sides(given: Pair, *, where: str) -> Pair | None:
    """The pair of a prompt, which may be missing, and two sides; None for values of other types."""
    match given:
        case Pair(list() as prompt, list() as chosen, list() as rejected):
            return _split_lists(prompt, chosen, rejected, where=where)
        case Pair(str() | None, list() as chosen, list() as rejected):
            return _split_by_common_turns(chosen, rejected, where=where)
        case Pair(str() | None as prompt, str() as chosen, str() as rejected):
            return _check_strings(prompt, chosen, rejected, where=where)
    return None


def _add_before(pair: Pair, history: list[Any], system: str, *, where: str) -> Pair:
    """The pair with the turns before its prompt, unless it repeats these, and with the text of the system in front,
    unless it begins with one."""
    if isinstance(pair.prompt, str):
        return pair._replace(prompt=check_utf8(f"{system}\n\n{pair.prompt}", where=where)) if system else pair
    before = read_messages(history, where=f'{where}: "history"') if history else []
    (first, spoken), (own, earlier) = _split_system(pair.prompt), _split_system(before)
    first = [*dict.fromkeys((*first, *own))]  # two of them are refused
    if system and not first:
        first = [Message("system", check_utf8(system, where=where))]
    earlier = [] if spoken[: len(earlier)] == earlier else earlier
    return _check_messages(pair._replace(prompt=[*first, *earlier, *spoken]), where=where)


def _explain_sides(record: dict[str, Any], prompt: Any, chosen: Any, rejected: Any, *, where: str) -> InvalidRecord:
    """The error for a record that is no pair."""
    if chosen is rejected is None and is_labelled(record):
        return InvalidRecord(
            f"{where}: has a completion with a label, as KTO's sets do, and no pair. Those with a true label are for "
            "python -m data_pipelines.prepare_chat."
        )
    are_texts = all(isinstance(value, str) for value in record.values())  # others may say which text is better
    renaming = suggest_names(record, ("prompt", *SIDES), where=where) if are_texts else ""
    renaming = (suggest_label(record) if chosen is rejected is None else "") or renaming
    found = ", ".join("none" if value is None else type(value).__name__ for value in (prompt, chosen, rejected))
    return InvalidRecord(
        f"{where}: wanted {FORMS}, got {found} in an object with {describe(record)}."
        f"{_suggest_chat(record) or suggest_command(set(record) - {*SIDES}) or suggest_prepare(record) or renaming}"
    )


def _suggest_chat(record: dict[str, Any]) -> str:
    """What a message adds for a record that is a conversation."""
    with contextlib.suppress(InvalidRecord):
        with contextlib.suppress(UselessRecord):
            parse_conversation(record, where="")
        return " Conversations are for python -m data_pipelines.prepare_chat."
    return ""


def _has_other_system(record: dict[str, Any], pair: Pair) -> bool:
    """Whether a text of the system in a field is not that of the pair."""
    first = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[0].content
    texts = [text.strip() for key in SYSTEM if isinstance(text := record.get(key), str)]
    return any(text not in first for text in texts)


def _has_other_content(record: dict[str, Any], pair: Pair, used: str) -> bool:
    """Whether a record has a question in a field that no part of the pair holds, nor the text that became turns."""
    said = [used] + [
        item if isinstance(item, str) else item.content
        for part in pair
        for item in ([part] if isinstance(part, str) else part)
    ]
    names = (*_BESIDE, "history") if _is_prompt(record.get("history")) else _BESIDE
    texts = [text for key in names for text in _find_texts(record.get(key))]
    return any(all(text.strip() not in held for held in said) for text in texts)


def _find_texts(value: Any) -> list[str]:
    """A text, or those of the turns or of the list that it holds."""
    turns: list[Any] | None = None
    with contextlib.suppress(InvalidRecord):
        turns = split_question(value, where="")
    texts = [turn["content"] for turn in turns] if turns else parse_texts(value) or [value]
    return [text for text in texts if isinstance(text, str)] if isinstance(value, str) else []


def _split_by_common_turns(chosen: list[Any], rejected: list[Any], *, where: str) -> Pair:
    """The messages that both begin with are the prompt."""
    sides = zip(SIDES, (chosen, rejected), strict=True)
    return _split_messages(*(read_messages(side, where=f'{where}: "{name}"') for name, side in sides), where=where)


def _split_messages(first: list[Message], second: list[Message], *, where: str) -> Pair:
    if first == second:
        raise UselessRecord(EQUAL)
    count = count_common(first, second)
    # The prompt ends with the user: a longer common beginning is part of both completions.
    while count and first[count - 1].role != "user":
        count -= 1
    if count == 0:
        raise InvalidRecord(
            f'{where}: "chosen" and "rejected" begin with different messages, so there is no prompt.', NO_PROMPT
        )
    return Pair(first[:count], first[count:], second[count:])


def count_common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _split_lists(prompt: list[Any], chosen: list[Any], rejected: list[Any], *, where: str) -> Pair:
    """A prompt that both sides repeat is there once. A system's message may stand in the prompt or in the sides."""
    lists = zip(("prompt", *SIDES), (prompt, chosen, rejected), strict=True)
    given, *sides = (read_messages(messages, where=f'{where}: "{name}"') for name, messages in lists)
    (system, spoken), *bare = (_split_system(messages) for messages in (given, *sides))
    if spoken and all(rest[: len(spoken)] == spoken for _, rest in bare):
        return _split_messages(*([*(system or own), *rest] for own, rest in bare), where=where)
    return Pair(given, *sides)


def _split_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system's message that a conversation may begin with, and the others."""
    count = int(bool(messages) and messages[0].role == "system")
    return messages[:count], messages[count:]


def _check_messages(pair: Pair, *, where: str) -> Pair:
    for name in SIDES:
        completion: list[Message] = getattr(pair, name)
        check_turns([*pair.prompt, *completion], where=f'{where}: "prompt" with "{name}"')
        if pair.prompt[-1].role != "user" or completion[-1].role != "assistant":
            raise InvalidRecord(
                f'{where}: wanted a "prompt" that the user ends, and a "{name}" that the assistant ends.', WRONG_TURNS
            )
    return pair


def _check_strings(prompt: str | None, chosen: str, rejected: str, *, where: str) -> Pair:
    """Without a prompt, it is what both begin with, up to the last white space."""
    if prompt is None:
        common = chosen[: count_common(chosen, rejected)]
        length = max((found.end() for found in re.finditer(r"\s(?=\S)", common)), default=0)
        prompt = common[: max(0, length - 1)]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt.strip():
            raise InvalidRecord(
                f'{where}: "chosen" and "rejected" have no common beginning, and there is no "prompt".', NO_PROMPT
            )
    for field, text in zip(("prompt", *SIDES), (prompt, chosen, rejected), strict=True):
        if not text.strip():
            raise InvalidRecord(f'{where}: "{field}" is blank.', BLANK)
        check_utf8(text, where=f'{where}: "{field}"')
    return Pair(*(check_utf8(text, where=where) for text in (prompt, chosen, rejected)))
