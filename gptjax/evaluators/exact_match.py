"""An evaluator of chats: questions are answered greedily, and answers compared with those that are right."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.core.lazy import LazyModule
from gptjax.evaluators.evaluator import EvalContext, Metrics, OpenEvaluator, PeriodicEvaluator
from gptjax.tokenization.chat import ChatEncoder, take_until
from gptjax.tokenization.messages import UselessRecord, read_messages

if TYPE_CHECKING:
    from gptjax.generation import generate as generation
    from gptjax.model import gpt
else:
    generation = LazyModule("gptjax.generation.generate")  # imports flax


@dataclass(frozen=True)
class ExactMatch(PeriodicEvaluator):
    """Share of questions that are answered exactly, and the length of the answers.

    A line of the file is `{"messages": [...], "answers": ["...", ...]}`: a conversation that the user ends, and all
    answers that are right.
    """

    path: str
    """JSONL file with the questions."""
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


def read_questions(path: Path) -> Any:
    """Yield (messages, answers) of each line; a `UserError` names a line that has none."""
    try:
        # Not `splitlines`: a text may hold other separators, such as U+2028.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"evaluators: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"evaluators: {path} is not UTF-8: {error.reason} at byte {error.start}.") from None
    if lines == [""]:
        raise UserError(f"evaluators: {path} has no questions.")
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError:
            raise UserError(f"{where}: not JSON.") from None
        answers = record.get("answers") if isinstance(record, dict) else None
        if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
            raise UserError(f'{where}: wanted "answers", a list of texts.')
        try:
            messages = read_messages(record.get("messages"), where=f'{where}: "messages"')
        except UselessRecord:
            raise UserError(f"{where}: a message calls tools or is not only text, and cannot be asked.") from None
        if messages[-1].role != "user":
            raise UserError(f"{where}: wanted messages that the user ends, got a last one of the {messages[-1].role}.")
        yield messages, answers
