"""Messages out of JSON, under the names that OpenAI, ShareGPT and others use, and what is refused."""

import itertools
from collections.abc import Sequence
from typing import Any

from gptjax.core.errors import UserError, quote
from gptjax.core.unicode import replace_surrogates
from gptjax.tokenization.chat_template import FOLLOWERS, ROLES, Message

ROLE_NAMES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
ROLE_NAMES |= {"chatbot": "assistant", "model": "assistant", "ai": "assistant", "developer": "system"}
ROLE_NAMES |= {role: role for role in ROLES}
"""Names of roles in public sets, and those here."""
ROLE_KEYS, CONTENT_KEYS = (
    ("role", "from", "speaker", "sender", "type"),
    ("content", "value", "text", "parts", "utterance"),
)
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
TOOLS = "skipped: tools are called, for which the chat template has no place; docs/chat.md makes text of the calls"
OTHER_PARTS = "skipped: images or other parts are no text"
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thoughts")
"""Fields of a message that no chat template here writes."""
_NO_REASONING = (None, "", False, [], "on", "off")
"""Nemotron's sets have a switch of this name."""
_REASONING, _CONTENT = frozenset(REASONING_KEYS), frozenset(CONTENT_KEYS)
REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning")

SKIPPED = "invalid records skipped: "
NO_TEXT, SURROGATE = f"{SKIPPED}a content that is no text", f"{SKIPPED}a surrogate without a partner"
NO_LIST, NO_ROLE = f"{SKIPPED}no list of messages", f"{SKIPPED}no known role"
WRONG_TURNS, NO_ANSWER = f"{SKIPPED}turns out of order", f"{SKIPPED}the assistant says nothing"


class UselessRecord(UserError):
    """A valid record from which nothing can be learned; it is skipped in strict mode, too. The text is the note."""


class InvalidRecord(UserError):
    """A record that is wrong. It is counted under `note`, one for each kind of fault."""

    def __init__(self, problem: str, note: str = f"{SKIPPED}of another form") -> None:
        super().__init__(problem)
        self.note = note


def read_messages(value: Any, *, where: str) -> list[Message]:
    """Messages from a list of objects with a role and a content, under the names of OpenAI or of ShareGPT.

    Raises `InvalidRecord`, beginning with `where`, for an empty list, an unknown role and a content that is no text.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRecord(f"{where}: wanted a list of messages, got {quote(repr(value), limit=80)}.", NO_LIST)
    if len(value) > 1 and all(isinstance(item, str) for item in value):  # UltraChat: the user begins
        if all(map(_is_name, value[::2])):
            form = 'wanted a list of messages, such as [["user", "…"], ["assistant", "…"]]'
            raise InvalidRecord(f"{where}: {quote(repr(value), limit=80)} is one message; {form}.", NO_LIST)
        roles = itertools.cycle(("user", "assistant"))
        value = [{"role": role, "content": text} for role, text in zip(roles, value, strict=False)]
    return [_read_message(item, where=f"{where}: message {number}") for number, item in enumerate(value, start=1)]


def find_plain(item: Any) -> Message | None:
    """The message that is an object of a known role and a text alone, as most are; None for others."""
    if not isinstance(item, dict) or len(item) != 2:
        return None
    role, content = (item["role"], item.get("content")) if "role" in item else (item.get("from"), item.get("value"))
    if isinstance(role, str) and isinstance(content, str) and role in ROLE_NAMES:
        return Message(ROLE_NAMES[role], content)
    return None


def _read_message(item: Any, *, where: str) -> Message:
    if (plain := find_plain(item)) is not None:
        return Message(plain.role, check_utf8(plain.content, where=where))
    if (item := as_message(given := item)) is None:
        problem = f'{where}: wanted an object with "role" and "content", got {quote(repr(given), limit=80)}.'
        raise InvalidRecord(problem, NO_LIST)
    # Tables of several forms have the keys of all, and nulls in them.
    known = {key: value for key, value in item.items() if value is not None}
    role, content = (next((known[key] for key in keys if key in known), None) for keys in (ROLE_KEYS, CONTENT_KEYS))
    if item.get("tool_calls") or item.get("function_call") or role in TOOL_ROLES:
        raise UselessRecord(f"conversations {TOOLS}")
    name = ROLE_NAMES.get(role.lower()) if isinstance(role, str) else None
    if name is None:
        advice = "" if role is None else " Write the one that it stands for in its place."
        wanted = f"wanted {', '.join(ROLES)}.{advice}"
        raise InvalidRecord(f"{where}: its role is {quote(repr(role), limit=80)}; {wanted}", NO_ROLE)
    if isinstance(content, list):
        content = join_parts(content)
    if not isinstance(content, str):
        names = [f'"{key}"' for key in item if key not in ROLE_KEYS]
        found = f" under {', '.join(CONTENT_KEYS)}; it has {', '.join(names)}" if names and content is None else ""
        wanted = f"wanted a string{quote(found, limit=160)}."
        raise InvalidRecord(f"{where}: its content is {quote(repr(content), limit=80)}; {wanted}", NO_TEXT)
    return Message(name, check_utf8(content, where=where))


def _is_name(text: Any) -> bool:
    """Whether a text is the name of a role."""
    return isinstance(text, str) and text.lower() in {*ROLE_NAMES, *TOOL_ROLES}


def as_message(item: Any) -> dict[str, Any] | None:
    """A message in any form as an object, of `["human", "Hi"]` and `{"human": "Hi"}`, too; None for what is none.

    Keys with capitals become small. An object without a role stays one.
    """
    parts = item
    if isinstance(item, dict):
        known = {key: value for key, value in item.items() if value is not None}
        if not known.keys().isdisjoint(ROLE_KEYS):
            return item
        parts = next(iter(known.items())) if len(known) == 1 else None
    match parts:
        case [str(role), str(content)] if _is_name(role):
            return {"role": role.lower(), "content": content}
    return {str(key).lower(): value for key, value in item.items()} if isinstance(item, dict) else None


def as_list(part: Any) -> Any:
    """A list of the message that a value is, in any form; other values as they are."""
    message = as_message(part) or {}
    return [part] if any(message.get(key) is not None for key in ROLE_KEYS) else part


def find_role(item: Any) -> str | None:
    """The role of a message as it is in a file, under its name here; None where it has none that is known."""
    message = as_message(item) or {}
    given = next((message[key] for key in ROLE_KEYS if message.get(key) is not None), "")
    return ROLE_NAMES.get(str(given).lower())


def has_reasoning(item: Any) -> bool:
    """Whether a message, or the record of a pair, has reasoning beside what it says."""
    if not isinstance(item, dict):
        return False
    if any(item[key] not in _NO_REASONING for key in item.keys() & _REASONING):
        return True
    lists = (item[key] for key in item.keys() & _CONTENT if isinstance(item[key], list))
    return any(map(_is_reasoning, itertools.chain.from_iterable(lists)))


def _is_reasoning(part: Any) -> bool:
    """Claude's parts have a type for it, Gemini's a mark."""
    return isinstance(part, dict) and (part.get("type") in REASONING_PARTS or part.get("thought") is True)


def join_parts(parts: list[Any] | dict[str, Any]) -> str | None:
    """The texts of OpenAI's, Claude's or Gemini's parts, without reasoning; None for what is no text.

    Raises `UselessRecord` for images and the like, and where there is reasoning alone.
    """
    if isinstance(parts, dict):
        parts = parts["parts"] if isinstance(parts.get("parts"), list) else [parts.get("text")]
    said = [part for part in parts if not _is_reasoning(part)]
    kinds = {_find_kind(part) for part in said if isinstance(part, dict)}
    if not kinds <= {"text", "input_text", "output_text"} or (parts and not said):
        raise UselessRecord(f"conversations {OTHER_PARTS}")
    texts = [part.get("text") if isinstance(part, dict) else part for part in said]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if texts and len(known) == len(texts) else None


def _find_kind(part: dict[str, Any]) -> str:
    """Gemini's parts, and those of ChatGPT's images, have no type."""
    return str(part.get("type") or ("text" if "text" in part else "other"))


def check_utf8(text: str, *, where: str) -> str:
    """The text, with pairs of surrogates as their character. A surrogate without a partner is an `InvalidRecord`."""
    whole = replace_surrogates(text)
    if whole is text:
        return text
    if whole.count("\ufffd") > text.count("\ufffd"):
        raise InvalidRecord(f"{where}: has a surrogate without a partner, which UTF-8 cannot represent.", SURROGATE)
    return whole


def check_turns(messages: Sequence[Message], *, where: str) -> None:
    """Raise unless, after at most one system message, the user begins and the assistant answers.

    Two messages of one role in a row are two turns, as transformers' templates write them.
    """
    first = 1 if messages and messages[0].role == "system" else 0
    for number, message in enumerate(messages[first:], start=first):
        wanted = FOLLOWERS[messages[number - 1].role if number else "system"]
        if message.role not in wanted:
            raise InvalidRecord(
                f"{where}: message {number + 1} is of the {message.role}, wanted {' or '.join(wanted)}: after at most "
                "one system message, the user begins.",
                WRONG_TURNS,
            )
    if all(message.role != "assistant" for message in messages):
        raise InvalidRecord(f"{where}: the assistant says nothing, so there is nothing to learn.", NO_ANSWER)
