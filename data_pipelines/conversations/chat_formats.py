"""Conversations as people keep them, as messages: OpenAI's and ShareGPT's lists, bare lists, Alpaca's fields, pairs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipelines.conversations import public_sets
from data_pipelines.conversations.advice import suggest_grouping, suggest_names
from data_pipelines.conversations.chat_exports import TREE_FIELDS, find_branch
from data_pipelines.conversations.dialogue_text import split_question
from data_pipelines.conversations.field_names import ADDED, ANSWERS, LISTS, QUESTIONS, SYSTEM, TEXTS
from data_pipelines.conversations.unscored import is_unscored
from data_pipelines.readers.fields import (
    LABEL,
    list_hidden,
    rename_fields,
    suggest_command,
    suggest_path,
    suggest_prepare,
)
from gptjax.core.errors import quote
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.list_cells import begins_as_list, parse_json
from gptjax.tokenization.messages import (
    CONTENT_KEYS,
    NO_LIST,
    NO_TEXT,
    REASONING_KEYS,
    ROLE_KEYS,
    ROLE_NAMES,
    TOOL_ROLES,
    InvalidRecord,
    UselessRecord,
    as_list,
    as_message,
    check_turns,
    check_utf8,
    find_plain,
    find_role,
    has_reasoning,
    join_parts,
    read_messages,
)

FIELDS = (
    *(*LISTS, *QUESTIONS, *ANSWERS, *ADDED, *SYSTEM, "history", LABEL, *TREE_FIELDS, *TEXTS, *REASONING_KEYS),
    *(*public_sets.FIELDS, *public_sets.FORMAT_FIELDS),
)
"""In lower case; the names in files may have capitals and blanks."""
_KNOWN = frozenset(FIELDS)
_QUESTIONS, _ANSWERS, _NO_FIELDS = frozenset(QUESTIONS), frozenset(ANSWERS), frozenset((*LISTS, *TREE_FIELDS))
FORMS = (
    'a list of messages, or an object with "messages", with "conversations", with "instruction" and "output", with '
    '"prompt" and "completion", or with "question" and "answer"'
)
REASONING = "conversations have reasoning beside a content, which was left out"
OTHER_FIELD = "conversations have a second field of a question or of an answer, which was left out"
OTHER_SYSTEM = "conversations have a second text of the system, which was left out"
OTHER_CONTENT = "conversations have a text beside the messages, which was left out"
_SYSTEMS = frozenset((*SYSTEM, public_sets.META))
_BESIDE = frozenset(
    (*("prompt", "instruction", "question", "query", "problem", *ANSWERS[:5]), *ADDED, *TEXTS, "dialogue", "summary")
) | {"chosen", "rejected"}
"""Fields that are no part of a list of messages; `user` may be a name."""
_CONTENT = (*LISTS, *TEXTS, *QUESTIONS, *ANSWERS, *ADDED, "history", "summary")
"""Fields beside which the turns of another field are not the whole record."""
_TURN_NAMES = {"q": "question", "a": "answer", "gpt": "response", "bot": "response"}
"""Other names of fields in a turn that holds a question and its answer."""


class ParsedConversation(NamedTuple):
    """Messages, the numbers of those that are not scored (`unscored.SWITCHES`), and notes on what was left out."""

    messages: list[Message]
    unscored: frozenset[int] = frozenset()
    left_out: tuple[str, ...] = ()


def parse_conversation(record: Any, *, where: str, renamed: Mapping[str, str] = {}) -> ParsedConversation:
    """The messages of a record, in any of the known forms. The user begins, and the assistant has at least one.

    Fields in `renamed` have another name. Raises `InvalidRecord`, beginning with `where`, and `UselessRecord`.
    """
    hidden = list_hidden(record, renamed, where=where) & {*SYSTEM} if renamed else ()
    record = parse_lists(rename_fields(record, renamed, known=_KNOWN, where=where))
    if not isinstance(record, dict):
        return _parse(record, where=where)
    try:
        rewritten, is_chosen = public_sets.rewrite_chat(record, where=where)
        found = _parse(rewritten, where=where)
    except InvalidRecord as error:
        raise InvalidRecord(f"{error}{public_sets.name_format(record)}", error.note) from None
    others = [*[public_sets.SEVERAL] * is_chosen, *[OTHER_SYSTEM] * bool(hidden)]
    return found._replace(left_out=tuple(dict.fromkeys([*found.left_out, *others])))


def _parse(record: Any, *, where: str) -> ParsedConversation:
    found = _find_messages(record, where=where)
    messages = read_messages(found, where=where)
    if isinstance(record, dict) and messages[0].role != "system" and (system := find_system(record, where=where)):
        messages = [Message("system", check_utf8(system, where=where)), *messages]
        found = [None, *found]
    check_turns(messages, where=where)
    others = [(number, item) for number, item in enumerate(found) if find_plain(item) is None]
    answers = [(number, item) for number, item in others if messages[number].role == "assistant"]
    unscored = {number for number, item in answers if is_unscored(item, where=where)}
    if all(message.role != "assistant" or number in unscored for number, message in enumerate(messages)):
        raise UselessRecord("conversations skipped: all answers have weight 0, or another switch that is off")
    objects = [record, *(item for _, item in others)]
    notes = {
        REASONING: any(map(has_reasoning, objects)),
        OTHER_FIELD: any(map(_has_other_field, objects)),
        OTHER_CONTENT: _has_other_content(record, messages),
        OTHER_SYSTEM: _has_other_system(record, messages[0]),
    }
    return ParsedConversation(messages, frozenset(unscored), tuple(note for note, is_true in notes.items() if is_true))


def _has_other_field(record: Any) -> bool:
    """Whether a record of fields has more questions or answers than the one that is read of each."""
    if not isinstance(record, dict) or not record.keys().isdisjoint(_NO_FIELDS):
        return False
    return any(
        len(known := record.keys() & names) > 1
        and sum(isinstance(as_list(record[key]), str | list) and bool(record[key]) for key in known) > 1
        for names in (_QUESTIONS, _ANSWERS)
    )


def _has_other_content(record: Any, messages: list[Message]) -> bool:
    """Whether a record of messages has a text in a field that none of them holds."""
    if not isinstance(record, dict) or record.keys().isdisjoint(_BESIDE):
        return False
    texts = [text.strip() for key in record.keys() & _BESIDE if isinstance(text := record[key], str)]
    is_other = any(all(text not in message.content for message in messages) for text in texts)
    is_other = is_other or any(isinstance(record.get(side), list) for side in ("chosen", "rejected"))
    return is_other and any(isinstance(as_list(record.get(key)), list) for key in (*LISTS, *QUESTIONS))


def _has_other_system(record: Any, first: Message) -> bool:
    """Whether a record has a text of the system beside the one that is read, in a field or in a message."""
    texts = [record[key] for key in record.keys() & _SYSTEMS] if isinstance(record, dict) else []
    return any(isinstance(text, str) and text.strip() not in ("", first.content.strip()) for text in texts)


def _find_messages(record: Any, *, where: str) -> list[Any]:
    if isinstance(record, list):
        return record
    if not isinstance(record, dict):
        raise InvalidRecord(f"{where}: wanted {FORMS}, got {quote(repr(record), limit=80)}.")
    if (branch := find_branch(record, where=where)) is not None:
        return branch
    if (key := public_sets.find_list(record)) is not None:
        return _read_list(record, key, where=where)
    question, answer = _find_fields(record)
    if question is None or answer is None:
        for key in TEXTS:
            text = record.get(key)
            if isinstance(text, str) and (turns := public_sets.split_text(text, where=where)) is not None:
                if key != "text":  # a text repeats what other fields hold
                    _check_alone(record, key, where=where)
                return turns
        other = suggest_grouping(record, where=where) or suggest_path(record)
        other = other or suggest_command(set(record) - {*LISTS, *QUESTIONS, *ANSWERS}) or suggest_prepare(record)
        other = other or suggest_names(record, ("prompt", "completion"), where=where)
        other = "" if public_sets.name_format(record) else other
        raise InvalidRecord(f"{where}: wanted {FORMS}, got an object with {describe(record)}.{other}")
    if is_labelled(record) and str(record[LABEL]).lower() == "false":
        raise UselessRecord("completions skipped: their label is false (KTO's sets label good and bad ones)")
    return _join_turns(record, question, record[answer], where=where)


def _find_fields(record: dict[str, Any]) -> tuple[str | None, str | None]:
    """The fields of the question and of the answer."""
    question = next((key for key in (*QUESTIONS, *ADDED) if record.get(key) is not None), None)
    return question, next((key for key in ANSWERS if record.get(key) is not None), None)


def _read_list(record: dict[str, Any], key: str, *, where: str) -> list[Any]:
    """Messages of a list, of turns that hold question and answer, or of a text with marks of who speaks."""
    value = record[key]
    found = parse_json(value)
    if isinstance(found, list):
        if not found or not all(map(_is_turn, found)):
            return found
        _check_alone(record, key, where=where)
        return [message for turn in found for message in _read_turn(turn, where=where)]
    if (turns := public_sets.split_text(value, where=where)) is not None:
        _check_alone(record, key, where=where)
        return turns
    problem = f'{where}: "{key}": wanted a list of messages, got {quote(repr(value), limit=80)}.'
    raise InvalidRecord(f"{problem}{suggest_path(record)}", NO_LIST)


def _check_alone(record: dict[str, Any], key: str, *, where: str) -> None:
    """Raise where other fields may be part of the conversation that the field `key` holds."""
    others = [name for name in _CONTENT if name != key and isinstance(record.get(name), str | list | dict)]
    if others := [name for name in others if record[name]]:
        found = ", ".join(f'"{name}"' for name in others)
        raise InvalidRecord(
            f'{where}: has turns in "{key}" and other content in {found}; wanted one of them, or names that say how '
            "they belong together by --rename-fields, such as context for what a question is about."
        )


def _is_turn(turn: Any) -> bool:
    """Whether an item of a list holds both a question and its answer; a message has a role."""
    if not isinstance(turn, dict) or not turn.keys().isdisjoint(ROLE_KEYS):
        return False
    return None not in _find_fields(_rename_turn(turn))


def _rename_turn(turn: dict[str, Any]) -> dict[str, Any]:
    names = {old: new for old, new in _TURN_NAMES.items() if new not in turn}
    return {names.get(key, key): value for key, value in turn.items()}


def _read_turn(turn: dict[str, Any], *, where: str) -> list[Any]:
    """Messages of a turn such as `{"input": …, "output": …}`. The answer's message has the other fields of the turn."""
    turn = _rename_turn(turn)
    question, answer = _find_fields(turn)
    messages = _join_turns(turn, question or "", turn[answer or ""], where=where)
    system = find_system(turn, where=where)
    start = [{"role": "system", "content": system}] if system else []
    return [*start, *messages[:-1], *({**turn, **last} if isinstance(last, dict) else last for last in messages[-1:])]


def parse_lists(record: Any) -> Any:
    """A record with the lists of messages that a table holds as text; other texts that are lists stay texts."""
    if not isinstance(record, dict) or not any(begins_as_list(value) for value in record.values()):
        return record
    found = {key: parse_json(value) for key, value in record.items() if begins_as_list(value)}
    return record | {
        key: value for key, value in found.items() if isinstance(value, list) and value and all(map(_speaks, value))
    }


def _speaks(item: Any) -> bool:
    """Whether a value is a message of a role that is known."""
    message = as_message(item) or {}
    role = next((str(message[key]).lower() for key in ROLE_KEYS if message.get(key) is not None), None)
    return (role in ROLE_NAMES or role in TOOL_ROLES) and not message.keys().isdisjoint(CONTENT_KEYS)


def is_labelled(record: dict[str, Any]) -> bool:
    """Whether a record says if its answer is a good one, as TRL's sets for KTO do."""
    return str(record.get(LABEL)).lower() in ("true", "false")


def find_system(record: dict[str, Any], *, where: str) -> str:
    """The text of the system, or an empty one."""
    text = next((text for key in SYSTEM if (text := _read_text(record, key, where=where))), "")
    return text if text.strip() else ""


def add_context(record: dict[str, Any], question: str, *, where: str) -> str:
    """The text of the field `question`, and of the fields that follow it."""
    added = (_read_text(record, key, where=where) for key in ADDED if key != question)
    return "\n\n".join([record[question], *(text for text in added if text.strip())])


def _read_text(record: dict[str, Any], key: str, *, where: str) -> str:
    """A field of a record that belongs to its question; empty if it is absent."""
    value = record.get(key) or ""
    text = join_parts(value) if isinstance(value, list | dict) else value
    if not isinstance(text, str):
        raise InvalidRecord(f'{where}: "{key}": wanted a text, got {quote(repr(value), limit=80)}.', NO_TEXT)
    return text


def read_history(record: dict[str, Any], *, where: str) -> list[Any]:
    """Messages of the turns before the question: Alpaca's pairs, or messages."""
    history = record.get("history")
    history = (parse_json(history) if not isinstance(history, str) or history.strip() else None) or []
    said = [turn for turn in history if as_message(turn) is not None] if isinstance(history, list) else []
    if said == history:
        return said
    if said or not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        shown = quote(repr(history), limit=80)
        raise InvalidRecord(f'{where}: "history": wanted a list of pairs or of messages, got {shown}.', NO_LIST)
    return [
        {"role": role, "content": text}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def add_history(history: list[Any], turns: list[Any]) -> list[Any]:
    """The turns after those before them, unless they repeat these. A message of the system stays the first."""
    count = int(bool(turns) and find_role(turns[0]) == "system")
    first, spoken = turns[:count], turns[count:]
    earlier = history[1:] if first and history[:1] == first else history
    return turns if spoken[: len(earlier)] == earlier else [*first, *earlier, *spoken]


def _join_turns(record: dict[str, Any], key: str, answer: Any, *, where: str) -> list[Any]:
    """Messages of fields: Alpaca's `input` follows the instruction, and its `history` of pairs comes before both."""
    question, turns = record[key], None
    question, answer = as_list(question), as_list(answer)
    if isinstance(question, list):  # TRL's
        turns = question
    elif isinstance(question, str):
        question = add_context(record, key, where=where)
        if (turns := split_question(question, where=where)) is not None and isinstance(answer, str):
            answer = answer.strip()  # a blank is part of the mark before it
    asked = [{"role": "user", "content": question}] if turns is None else turns
    answers = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    return add_history(read_history(record, where=where), [*asked, *answers])


def describe(record: dict[str, Any]) -> str:
    """The keys of a record, for messages."""
    return quote(", ".join(map(str, record)), limit=80) or "no keys"
