"""One conversation with a model: its messages, what of them fits the context, and answers as they are written."""

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import numpy as np

from gptjax.core.errors import UserError
from gptjax.core.unicode import replace_surrogates
from gptjax.serving.text_generation import Completion, TextGenerator
from gptjax.tokenization.chat import ChatEncoder
from gptjax.tokenization.chat_template import CHAT_TEMPLATE_FILE, CHATML, Message

DEFAULT_ANSWER = 256
"""Tokens of an answer at most, where the context has room."""


def check_template(generator: TextGenerator) -> None:
    """Raise `UserError` for a model without a chat template."""
    if generator.tokenizer.chat_template is not None:
        return
    jinja, name = generator.jinja_template, generator.options.checkpoint
    advice = "Continue texts with python -m gptjax.sample --interactive"
    if jinja is not None:
        raise UserError(
            f"{name} has a chat template in Jinja, which is not executed, and which is not ChatML "
            f"({' … '.join(CHATML.special_tokens)}). {advice}, or put a {CHAT_TEMPLATE_FILE} that says the same beside "
            "its tokenizer (docs/chat.md)."
        )
    raise UserError(
        f"{name} was not trained on chats: it has no chat template. {advice}, or fine-tune it on chats first "
        "(docs/chat.md)."
    )


@dataclass
class Conversation:
    """Messages and answers. `begin` is the number of the first message that the model still reads."""

    generator: TextGenerator
    system_prompt: str | None = None
    max_new_tokens: int | None = None
    messages: list[Message] = field(default_factory=list)
    begin: int = 0
    note: str | None = None
    """What happened to the last message that its author should know."""

    def __post_init__(self) -> None:
        check_template(self.generator)
        tokenizer = self.generator.tokenizer
        self._encoder = ChatEncoder(tokenizer)
        ends = (self._encoder.end, tokenizer.end_of_text)
        self._ends = [end for end in ends if end is not None]
        shortest, context = len(self._encode([Message("user", "")])), self.generator.context_length
        if shortest >= context:
            raise UserError(
                f"the system prompt and an empty message have {shortest:,} tokens, and the model's context has "
                f"{context:,}. Shorten the system prompt."
            )

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the answer in parts. Message and answer join the history when the answer ends, or is no longer read.

        Raises:
            UserError: the message alone is too long for the context, or blank.
        """
        if not text.strip():
            raise UserError("the message is blank.")
        question, self.note = Message("user", replace_surrogates(text)), None  # what `to_json_line` can write
        prompt = self._fit(question)
        room = self.generator.context_length - len(prompt)
        stream = self.generator.complete(
            [prompt],
            max_new_tokens=min(room, self.max_new_tokens or DEFAULT_ANSWER),
            ends=self._ends,
            seed=(self.generator.options.seed + len(self.messages)) % 2**32,
        )
        return self._follow(question, stream)

    @property
    def num_turns(self) -> int:
        """Messages of the user that were answered."""
        return len(self.messages) // 2

    def reset(self) -> None:
        """Forget all messages."""
        self.messages, self.begin, self.note = [], 0, None

    def to_json_line(self) -> str:
        """All messages as a line that `prepare_chat` reads."""
        messages = [message._asdict() for message in [*self._system(), *self.messages]]
        return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"

    def _follow(self, question: Message, stream: Iterator[list[Completion]]) -> Generator[str, None, None]:
        completion = None
        try:
            for [completion] in stream:
                if completion.new_text:
                    yield completion.new_text
        finally:  # also where the reader stopped
            if completion is not None and completion.text:
                self.messages += [question, Message("assistant", completion.text)]
        if completion is not None and completion.finish_reason == "length":
            self._add_note("the answer was cut off after its last token")
        if completion is not None and not completion.text:
            self._add_note("the model answered nothing; the message was not kept")

    def _system(self) -> list[Message]:
        return [] if self.system_prompt is None else [Message("system", self.system_prompt)]

    def _encode(self, messages: list[Message]) -> np.ndarray:
        return self._encoder.encode_prompt([*self._system(), *messages])

    def _fit(self, question: Message) -> np.ndarray:
        """The prompt. The oldest turns leave until an answer has room."""
        context, before = self.generator.context_length, self.begin
        wanted = min(self.max_new_tokens or DEFAULT_ANSWER, context // 4)
        while True:
            prompt = self._encode([*self.messages[self.begin :], question])
            if len(prompt) + wanted <= context or self.begin >= len(self.messages):
                break
            self.begin += 2
        if len(prompt) >= context:
            self.begin = before
            raise UserError(
                f"the message makes a prompt of {len(prompt):,} tokens, and the model's context has {context:,}. "
                "Shorten it."
            )
        if gone := (self.begin - before) // 2:
            turns, them = ("turn has", "it") if gone == 1 else (f"{gone} turns have", "them")
            left = f"the oldest {turns} left the context of {context:,} tokens"
            self._add_note(f"{left}; the model no longer knows {them}")
        return prompt

    def _add_note(self, note: str) -> None:
        self.note = note if self.note is None else f"{self.note}; {note}"
