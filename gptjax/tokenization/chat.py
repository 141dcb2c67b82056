"""Conversations as tokens: the one chat template that preparation and generation share.

The one idea: a conversation is `<|endoftext|>` and then its messages, each

    <|im_start|>ROLE
    CONTENT<|im_end|>

with a line end after it. This is ChatML, the most widely used template, which inference servers and `transformers` know
by name. It needs two special tokens whatever the roles, for a role is a word of ordinary text. `<|endoftext|>` stands
first because every document of pretraining begins with it; a tokenizer without it leaves it out.

What the model is to learn, the content of the assistant and the `<|im_end|>` by which it stops, is marked as scored.
Roles, content and line ends are encoded each for itself, so that a token never lies across the border between what is
given and what is to be generated, and a text that contains the name of a special token can never act as one.
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
Piece = tuple[Ids, bool]
"""Some tokens, and whether they are scored."""


class Message(NamedTuple):
    """What one side says; `role` is one of ROLES."""

    role: str
    content: str


class MaskedTokens(NamedTuple):
    """Tokens, and for each 1 where its prediction counts, else 0."""

    tokens: Int32[np.ndarray, " T"]
    scored: UInt8[np.ndarray, " T"]

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> "MaskedTokens":
        """One after another."""
        ids, marks = zip(*pieces, strict=True)
        return cls(np.concatenate(ids), np.repeat(np.array(marks, np.uint8), [len(piece) for piece in ids]))


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
        self._first = one_id(tokenizer.end_of_text)
        self._end, self._line_end = one_id(self.end), tokenizer.encode("\n")
        start = one_id(tokenizer.specials[IM_START])
        self._headers = {role: np.concatenate([start, tokenizer.encode(f"{role}\n")]) for role in ROLES}

    def conversation(self, messages: Sequence[Message], *, scored_from: int = 0) -> MaskedTokens:
        """All messages; scored are the assistant's, of those from number `scored_from` on."""
        pieces: list[Piece] = [(self._first, False)]
        for number, message in enumerate(messages):
            pieces += self._turn(message, scored=message.role == "assistant" and number >= scored_from)
        return MaskedTokens.of(pieces)

    def prompt(self, messages: Sequence[Message]) -> Int32[np.ndarray, " T"]:
        """All messages, and then as far as the assistant's first word: what generation is to continue."""
        given = self.conversation(messages, scored_from=len(messages)).tokens
        return np.concatenate([given, self._headers["assistant"]])

    def _turn(self, message: Message, *, scored: bool) -> Iterator[Piece]:
        yield self._headers[message.role], False
        yield self._tokenizer.encode(message.content), scored
        yield self._end, scored
        yield self._line_end, False


def one_id(token: int | None) -> Ids:
    """One id as an array; none for None."""
    return np.array([] if token is None else [token], np.int32)


def read_messages(value: Any, *, where: str) -> list[Message]:
    """Messages out of JSON: a list of `{"role": ..., "content": ...}`; other fields of a message are not read.

    Raises `UserError` beginning with `where` unless there is one at least, all roles are known and no content is blank.
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
    return Message(role, whole_text(content, where=where))


def whole_text(text: str, *, where: str) -> str:
    """The text, if UTF-8 can hold it; a surrogate without a partner is a `UserError`."""
    whole = replace_surrogates(text)
    if whole.count("\ufffd") > text.count("\ufffd"):
        raise UserError(f"{where}: has a surrogate without a partner, which UTF-8 cannot hold.")
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
