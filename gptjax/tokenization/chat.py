"""Conversations as tokens: the chat template that preparation and generation share.

A conversation is `<|endoftext|>`, then its messages, each

    <|im_start|>ROLE
    CONTENT<|im_end|>

with a line end after it. This is ChatML, which inference servers and `transformers` know by name. It needs two special
tokens, for a role is a word of ordinary text. `<|endoftext|>` comes first because every document of pretraining begins
with it; a tokenizer that has none omits it.

The loss mask scores what the model learns: the assistant's content and the `<|im_end|>` that ends it. Roles, content
and line ends are encoded separately. So no token crosses from the prompt into the answer, and a text that contains the
name of a special token never acts as one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from gptjax.core.errors import UserError
from gptjax.tokenization.tokenizer import Tokenizer, replace_surrogates

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
CHAT_TOKENS = (IM_START, IM_END)
ROLES = ("system", "user", "assistant")

Ids = Int32[np.ndarray, "_"]
ScoredIds = tuple[Ids, bool]
"""Tokens, and whether they are scored."""


class Message(NamedTuple):
    """One message; `role` is one of ROLES."""

    role: str
    content: str


class MaskedTokens(NamedTuple):
    """Tokens, and for each 1 if its prediction is scored, else 0."""

    tokens: Int32[np.ndarray, " T"]
    loss_mask: UInt8[np.ndarray, " T"]

    @classmethod
    def concatenate(cls, parts: Iterable[ScoredIds]) -> "MaskedTokens":
        """The parts, one after another."""
        ids, marks = zip(*parts, strict=True)
        return cls(np.concatenate(ids), np.repeat(np.array(marks, np.uint8), [len(part) for part in ids]))


class ChatTemplate:
    """Writes conversations with a tokenizer; raises if it lacks the special tokens. `end` is the id of `<|im_end|>`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [name for name in CHAT_TOKENS if name not in tokenizer.specials]
        if missing:
            raise UserError(
                f"the {tokenizer.name} tokenizer has no {' and no '.join(missing)}, which a chat needs. Add them: "
                "python -m data_pipelines.extend_tokenizer --help."
            )
        self.end = tokenizer.specials[IM_END]
        self._tokenizer = tokenizer
        self._first = to_ids(tokenizer.end_of_text)
        self._end, self._line_end = to_ids(self.end), tokenizer.encode("\n")
        start = to_ids(tokenizer.specials[IM_START])
        self._headers = {role: np.concatenate([start, tokenizer.encode(f"{role}\n")]) for role in ROLES}

    def encode_conversation(self, messages: Sequence[Message], *, scored_from: int = 0) -> MaskedTokens:
        """All messages. Of those from number `scored_from` on, the assistant's are scored."""
        parts: list[ScoredIds] = [(self._first, False)]
        for number, message in enumerate(messages):
            parts += self._encode_turn(message, scored=message.role == "assistant" and number >= scored_from)
        return MaskedTokens.concatenate(parts)

    def encode_prompt(self, messages: Sequence[Message]) -> Int32[np.ndarray, " T"]:
        """All messages, then the header of the assistant's answer, which generation continues."""
        given = self.encode_conversation(messages, scored_from=len(messages)).tokens
        return np.concatenate([given, self._headers["assistant"]])

    def _encode_turn(self, message: Message, *, scored: bool) -> Iterator[ScoredIds]:
        yield self._headers[message.role], False
        yield self._tokenizer.encode(message.content), scored
        yield self._end, scored
        yield self._line_end, False


def to_ids(token: int | None) -> Ids:
    """An array of one id; an empty one for None."""
    return np.array([] if token is None else [token], np.int32)


def read_messages(value: Any, *, where: str) -> list[Message]:
    """Messages from JSON: a list of `{"role": ..., "content": ...}`; other fields of a message are not read.

    Raises `UserError`, beginning with `where`, for an empty list, an unknown role and blank content.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: wanted a list of messages, got {_short(value)}.")
    return [_read_message(item, where=f"{where}: message {number}") for number, item in enumerate(value, start=1)]


def _read_message(item: Any, *, where: str) -> Message:
    if not isinstance(item, dict):
        raise UserError(f'{where}: wanted an object with "role" and "content", got {_short(item)}.')
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise UserError(f"{where}: its role is {_short(role)}; wanted {', '.join(ROLES)}.")
    if not isinstance(content, str) or not content.strip():
        raise UserError(f"{where}: its content is {_short(content)}; wanted a string that is not blank.")
    return Message(role, check_utf8(content, where=where))


def check_utf8(text: str, *, where: str) -> str:
    """The text, with pairs of surrogates as their character. A surrogate without a partner is a `UserError`."""
    whole = replace_surrogates(text)
    if whole.count("\ufffd") > text.count("\ufffd"):
        raise UserError(f"{where}: has a surrogate without a partner, which UTF-8 cannot represent.")
    return whole


def check_turns(messages: Sequence[Message], *, where: str) -> None:
    """Raise unless, after at most one system message, user and assistant take turns and the assistant has one."""
    first = 1 if messages and messages[0].role == "system" else 0
    for number, message in enumerate(messages[first:]):
        wanted = ("user", "assistant")[number % 2]
        if message.role != wanted:
            raise UserError(
                f"{where}: message {first + number + 1} is of the {message.role}, wanted {wanted}: after at most one "
                "system message, user and assistant take turns."
            )
    if len(messages) < first + 2:
        raise UserError(f"{where}: the assistant says nothing, so there is nothing to learn.")


def _short(value: Any) -> str:
    return repr(value)[:80]
