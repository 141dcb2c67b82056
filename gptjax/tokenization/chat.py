"""Conversations as tokens, by the chat template that preparation, sampling and export share.

A conversation is `<|endoftext|>`, then its messages (`chat_template.ChatTemplate`). `<|endoftext|>` comes first because
every document of pretraining begins with it; a tokenizer that has none, and a template that says so, omit it.

A role's header and the content are encoded together, as `transformers` encodes rendered text. The loss mask scores what
the model learns: the assistant's content and the token that ends it. A token that straddles the border between header
and content counts as the assistant's. Contents are ordinary text: one that spells a role token never acts as one.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from gptjax.core.errors import UserError
from gptjax.tokenization.chat_template import CHATML, ChatTemplate, Message, RoleFormat
from gptjax.tokenization.tokenizer import Tokenizer

CHAT_TOKENS = CHATML.special_tokens
RECENT = 16
"""Messages whose tokens are kept."""
Ids = Int32[np.ndarray, " _"]
ScoredIds = tuple[Ids, UInt8[np.ndarray, " _"]]
"""Tokens, and for each 1 if it is scored."""


class MaskedTokens(NamedTuple):
    """Tokens, and for each 1 if its prediction is scored, else 0."""

    tokens: Int32[np.ndarray, " T"]
    loss_mask: UInt8[np.ndarray, " T"]

    @classmethod
    def concatenate(cls, parts: Iterable[ScoredIds]) -> "MaskedTokens":
        """The parts, one after another."""
        ids, marks = zip(*parts, strict=True)
        return cls(np.concatenate(ids), np.concatenate(marks))


class _Border(NamedTuple):
    """What stands around a content: up to the last special token, its name, the rest of the header; what follows.

    There is no name where the message begins behind the special token of the one before.
    """

    start: Ids
    name: str | None
    header: str
    end: Ids


class ChatEncoder:
    """Writes conversations as tokens. `end` is the id that ends a message of the assistant.

    The template is the tokenizer's own unless one is given; ChatML for a tokenizer without one. Raises `UserError` if
    the tokenizer lacks a role token. Names in headers that it lacks are text, as they are in the data that it is from.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> None:
        self.template = template or tokenizer.chat_template or CHATML
        if self.template != tokenizer.chat_template:
            tokenizer = tokenizer.with_chat_template(self.template)
        missing = [name for name in self.template.role_tokens if name not in tokenizer.specials]
        if missing:
            raise UserError(
                f"the {tokenizer.name} tokenizer has no {' and no '.join(missing)}, which a chat needs. Add them: "
                "python -m data_pipelines.extend_tokenizer --help."
            )
        self.end = tokenizer.specials[self.template.assistant.end]
        self._tokenizer = tokenizer
        self._recent: dict[tuple[str | None, ...], tuple[Ids, int]] = {}
        self._first = to_ids(tokenizer.begin_of_text if self.template.begins else None)
        begin = tokenizer.begin_of_text_name or tokenizer.end_of_text_name
        self._begin_name = begin if self.template.begins else None
        self._borders = {style: self._encode_border(style) for style in self.template.formats}

    def encode_conversation(
        self, messages: Sequence[Message], *, scored_from: int = 0, unscored: Collection[int] = ()
    ) -> MaskedTokens:
        """All messages. Of those from number `scored_from` on, the assistant's are scored, but not the `unscored`."""
        answers = [
            number >= scored_from and message.role == "assistant" and number not in unscored
            for number, message in enumerate(messages)
        ]
        turns = list(self.template.iter_turns(messages))
        # A system message that is added or merged stands at the beginning, where nothing is scored.
        scored = [False] * (len(turns) - len(answers)) + answers[max(0, len(answers) - len(turns)) :]
        parts, spans, length, after = [self._first], list[slice](), len(self._first), self._begin_name
        following = [style.start for style, _ in turns[1:]] + [self.template.assistant.start]
        for (style, message), is_learned, next_start in zip(turns, scored, following, strict=True):
            start, name, header, end = self._borders[style]
            before = style.end or next_start or None
            text, context = self._encode_turn(header, message.content, name or after, before)
            after = style.end
            if is_learned:
                first = length + len(start) + context
                spans.append(slice(first, length + len(start) + len(text) + 1))
            parts += (start, text, end)
            length += len(start) + len(text) + len(end)
        marks = np.zeros(length, np.uint8)
        for span in spans:
            marks[span] = 1
        return MaskedTokens(np.concatenate(parts), marks)

    def _encode_turn(self, header: str, content: str, after: str | None, before: str | None) -> tuple[Ids, int]:
        """Ids of a header's text with a content, and how many are the header's. Recent ones are kept: the two
        conversations of a pair begin alike, and many conversations have the same system message."""
        key = header, content, after, before
        if (found := self._recent.get(key)) is None:
            found = self._tokenizer.encode_pair(header, content, after=after, before=before)
            if len(self._recent) >= RECENT:
                self._recent.clear()
            self._recent[key] = found
        return found

    def encode_prompt(self, messages: Sequence[Message]) -> Int32[np.ndarray, " T"]:
        """All messages, then the header of the assistant's answer, which generation continues."""
        start, name, header, _ = self._borders[self.template.assistant]
        *turns, _ = self.template.iter_turns([*messages, Message("assistant", "")])
        ends = [self._begin_name, *(style.end for style, _ in turns)]
        text, _ = self._tokenizer.encode_pair(header, "", after=name or ends[-1])
        return np.concatenate([self.encode_conversation(messages).tokens, start, text])

    def _encode_border(self, style: RoleFormat) -> _Border:
        names = [name for name in self._tokenizer.specials if name in style.header]
        cut = max((style.header.rindex(name) + len(name) for name in names), default=0)
        parts = style.start + style.header[:cut], style.end + style.after
        start, end = (self._tokenizer.encode_with_specials(part) for part in parts)
        last = max(filter(parts[0].endswith, self._tokenizer.specials), key=len) if parts[0] else None
        return _Border(start, last, style.header[cut:], end)


def with_chatml(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, with ChatML as its template if it has none but has the tokens of ChatML."""
    is_ready = tokenizer.chat_template is None and {*CHAT_TOKENS} <= {*tokenizer.specials, *tokenizer.text_tokens}
    return tokenizer.with_chat_template(CHATML) if is_ready else tokenizer


def write_jinja(tokenizer: Tokenizer) -> str | None:
    """The tokenizer's template in Jinja, for others to begin a conversation as `ChatEncoder` does; None without one."""
    begin = tokenizer.begin_of_text_name or tokenizer.end_of_text_name
    return None if tokenizer.chat_template is None else tokenizer.chat_template.to_jinja(begin=begin)


def with_jinja(tokenizer: Tokenizer, jinja: str | None) -> Tokenizer:
    """The tokenizer, with ChatML as its template where a Jinja template, which is not executed, writes its tokens."""
    if jinja is None or tokenizer.chat_template is not None or not all(token in jinja for token in CHAT_TOKENS):
        return tokenizer
    found, begin = with_chatml(tokenizer), tokenizer.begin_of_text_name or tokenizer.end_of_text_name
    begins = "bos_token" in jinja or (begin is not None and begin not in CHAT_TOKENS and begin in jinja)
    return found if found.chat_template is None else found.with_chat_template(replace(CHATML, begins=begins))


def encode_together(tokenizer: Tokenizer, context: str, scored: str) -> MaskedTokens:
    """Two texts as one. A token is scored if any of its bytes is of the second."""
    tokens, border = tokenizer.encode_pair(context, scored)
    marks = np.ones(len(tokens), np.uint8)
    marks[:border] = 0
    return MaskedTokens(tokens, marks)


def mark(tokens: Ids, scored: bool) -> ScoredIds:
    """Tokens that are all scored, or all not."""
    return tokens, (np.ones if scored else np.zeros)(len(tokens), np.uint8)


def to_ids(token: int | None) -> Ids:
    """An array of one id; an empty one for None."""
    return np.array([] if token is None else [token], np.int32)


def take_until(ids: np.ndarray, end: int) -> np.ndarray:
    """The ids before the first `end`."""
    ends = np.flatnonzero(ids == end)
    return ids[: ends[0]] if len(ends) else ids
