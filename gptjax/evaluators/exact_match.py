"""An evaluator of chats: questions are answered greedily, and answers compared with those that are right."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.core.lazy import LazyModule
from gptjax.data.readers import import_reader
from gptjax.evaluators.evaluator import EvalContext, Metrics, OpenEvaluator, PeriodicEvaluator
from gptjax.tokenization.chat import ChatEncoder, take_until
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.list_cells import begins_as_list, parse_list
from gptjax.tokenization.messages import UselessRecord, read_messages

if TYPE_CHECKING:
    from gptjax.generation import generate as generation
    from gptjax.model import gpt
else:
    generation = LazyModule("gptjax.generation.generate")  # imports flax

_FIELDS = ("messages", "answers")
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class ExactMatch(PeriodicEvaluator):
    """Share of questions that are answered exactly, and the length of the answers.

    A record is `{"messages": [...], "answers": ["...", ...]}`: a conversation that the user ends, and all answers that
    are right.
    """

    path: str
    """File of records with the questions, in any format that `data_pipelines.prepare_chat` reads."""
    max_new_tokens: int = 32
    """Longest answer, in tokens."""
    opening: str | None = None
    """Also measure the share of answers that begin with this text."""
    batch_size: int = 32
    """Questions that are answered at a time."""

    at_start: ClassVar[bool] = True
    counts: ClassVar[tuple[str, ...]] = ("max_new_tokens", "batch_size")

    def check(self, context: EvalContext) -> None:
        if context.tokenizer is not None:
            _ = list(read_questions(expand_path(self.path)))

    def open(self, context: EvalContext) -> OpenEvaluator | None:
        """None without a tokenizer."""
        tokenizer = context.tokenizer
        if tokenizer is None:
            return None
        encoder, questions = ChatEncoder(tokenizer), list(read_questions(expand_path(self.path)))
        prompts = [encoder.encode_prompt(messages) for messages, _ in questions]
        room = context.model_config.context_length - max(map(len, prompts))
        if room < 1:
            raise UserError(
                f"{self.path}: a question leaves no room for an answer in {context.model_config.context_length} tokens."
            )
        length, batch_size = min(self.max_new_tokens, room), context.mesh.round_up_rows(self.batch_size)

        def answer(model: "gpt.GPT") -> list[str]:
            texts = []
            for begin in range(0, len(prompts), batch_size):
                batch = prompts[begin : begin + batch_size]
                filled = [*batch, *[batch[-1]] * (batch_size - len(batch))]
                ids = generation.generate(
                    model, filled, max_new_tokens=length, temperature=0.0, end_of_text=encoder.end
                )
                for prompt, row in zip(batch, ids, strict=False):
                    answer = take_until(row[len(prompt) : len(prompt) + length], encoder.end)
                    texts.append(tokenizer.decode_after(prompt.tolist(), answer.tolist()))
            return texts

        def evaluate(model: "gpt.GPT") -> Metrics:
            texts = answer(model)
            right = [text in known for text, (_, known) in zip(texts, questions, strict=True)]
            found: Metrics = {"exact_match": float(np.mean(right)), "answer_length": float(np.mean([*map(len, texts)]))}
            if self.opening is not None:
                found["opening_share"] = float(np.mean([text.startswith(self.opening) for text in texts]))
            return found

        return evaluate


def read_questions(path: Path) -> Iterator[tuple[list[Message], list[str]]]:
    """Yield (messages, answers) of each record, as `data_pipelines.prepare_chat` reads files.

    A cell of a table holds them as a list in text, of JSON or of pandas; one that is no list is the only answer. Where
    the messages are a list, a text is an answer, whatever it holds. A `UserError` names a record without.
    """
    count = 0
    for block in import_reader("record_sources").open_records(str(path)).iter_blocks(_FIELDS, _BLOCK_BYTES):
        for where, record in block.read():
            if isinstance(record, UserError):
                raise record
            count += 1
            yield _read_question(record, where=where)
    if count == 0:
        raise UserError(f"evaluators: {path} has no questions.")


def _read_question(record: Any, *, where: str) -> tuple[list[Message], list[str]]:
    asked, answers = (record.get(name) if isinstance(record, dict) else None for name in _FIELDS)
    if begins_as_list(asked):  # a row of a table
        asked, answers = parse_list(asked), parse_list(answers)
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
        raise UserError(f'{where}: wanted "answers", a list of texts.')
    try:
        messages = read_messages(asked, where=f'{where}: "messages"')
    except UselessRecord:
        raise UserError(f"{where}: a message calls tools or is not only text, and cannot be asked.") from None
    if messages[-1].role != "user":
        raise UserError(f"{where}: wanted messages that the user ends, got a last one of the {messages[-1].role}.")
    return messages, answers
