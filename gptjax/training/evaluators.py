"""Is it any good? Judges of a model, chosen in the config; each opens on what it needs and maps a model to numbers.

A new one is a frozen dataclass with `due(step, steps=…)` and `open(material)`, listed in `config.py`.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from gptjax.core.errors import UserError
from gptjax.data.loader import iter_validation_batches, put_on_devices
from gptjax.data.sequences import ConcatSequences
from gptjax.data.source import DataSource
from gptjax.data.token_stream import TokenStream
from gptjax.model.config import GPTConfig
from gptjax.model.generation import generate
from gptjax.model.gpt import GPT
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer
from gptjax.training.bigram import bigram_loss
from gptjax.training.objective import NextToken
from gptjax.training.step import make_eval_step

EvaluatorFn = Callable[[GPT], dict[str, float | str]]


@dataclass(frozen=True)
class EvalContext:
    """What a judge may need besides the model."""

    data: DataSource
    tokenizer: Tokenizer | None
    model: GPTConfig
    objective: NextToken
    mesh: MeshConfig


@dataclass(frozen=True)
class ValidationLoss:
    """Loss on the validation split: fixed windows without overlap, in order, the same on any number of devices."""

    every: int = 1000
    """Steps between judgements; the start and the end are judged too."""
    tokens: int | None = None
    """How many next tokens are predicted, from the start of the split; None: all of it."""
    batch_size: int = 16
    """Windows per batch, over all devices; does not change the result."""

    def __post_init__(self) -> None:
        for name in ("every", "tokens", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"evaluators: {name} is {value}; it must be at least 1.")

    def should_run(self, step: int, *, steps: int) -> bool:
        return step % self.every == 0 or step == steps

    def open(self, material: EvalContext) -> EvaluatorFn:
        stream = material.data.open_stream("val")
        if stream is None:
            raise UserError("evaluators: the data has no validation split. Take ValidationLoss() out.")
        return ValidationEvaluator(stream, material, tokens=self.tokens, batch_size=self.batch_size)


class ValidationEvaluator:
    """The loss of a model on a token stream; `protocol` says in words what is measured."""

    def __init__(self, stream: TokenStream, material: EvalContext, *, tokens: int | None, batch_size: int) -> None:
        self.stream, self.material, self.tokens = stream, material, tokens
        devices = material.mesh.num_batch_shards
        self.batch_size = -(-batch_size // devices) * devices
        self._step = make_eval_step(material.objective)
        available = len(stream) - 1
        if available < 1:
            raise UserError(f"{stream.name} has {len(stream)} tokens; at least 2 are needed to predict one.")
        self.predicted = min(available, tokens or available)
        marks = stream.loss_mask
        self._marks = None if marks is None else np.asarray(marks[1 : 1 + self.predicted] == 1)
        self.scored = self.predicted if self._marks is None else int(self._marks.sum())
        if self.scored == 0:
            raise UserError(f"{stream.name}: none of its first {self.predicted:,} next tokens is scored. Take more.")
        self.bytes = self._count_bytes()
        end = material.tokenizer.end_of_text if material.tokenizer else None
        masked = material.model.intra_document_mask
        self._documents = ConcatSequences(stream, material.model.context_length, end_of_text=end) if masked else None

    @property
    def protocol(self) -> str:
        context_length = self.material.model.context_length
        together = "each document by itself" if self._documents else "documents run together"
        per_byte = f", bits per byte over {self.bytes:,} bytes" if self.bytes else ", no bits per byte: no tokenizer"
        return (
            f"{self.scored:,} of {len(self.stream) - 1:,} next tokens of {self.stream.name}, in order, in windows of "
            f"{context_length} without overlap ({together}), mean in nats per token{per_byte}"
        )

    def _count_bytes(self) -> int | None:
        """Bytes of text behind the scored tokens; special tokens have none."""
        tokenizer = self.material.tokenizer
        if tokenizer is None:
            return None
        ids = self.stream.read(1, self.predicted)
        ids = ids if self._marks is None else ids[self._marks]
        if int(ids.max()) >= tokenizer.vocab_size:
            return None  # the model's own check names the token, once it is read
        return int(tokenizer.bytes_per_token[ids].sum(dtype=np.int64))

    def __call__(self, model: GPT) -> dict[str, float | str]:
        config, mesh = self.material.model, self.material.mesh
        batches = iter_validation_batches(
            self.stream,
            config.context_length,
            vocab_size=config.resolved_vocab_size,
            batch_size=self.batch_size,
            tokens=self.predicted,
            documents=self._documents,
        )
        sums: deque[jax.Array] = deque()
        nats: list[float] = []
        for rows in batches:
            sums.append(self._step(model, put_on_devices(rows, mesh))[0])
            if len(sums) > 2:  # a few in flight keep the device busy without queueing a whole split's rows on it
                nats.append(float(sums.popleft()))
        nats.extend(map(float, sums))
        return to_metrics(math.fsum(nats), self.scored, self.bytes)


def to_metrics(nats: float, tokens: int, text_bytes: int | None) -> dict[str, float | str]:
    """Summed nats as loss per token, perplexity and, where bytes are known, bits per byte."""
    loss = nats / tokens
    values: dict[str, float | str] = {"val_loss": loss, "val_perplexity": math.exp(min(loss, 700.0))}
    return values | ({"val_bpb": nats / math.log(2) / text_bytes} if text_bytes else {})


@dataclass(frozen=True)
class BigramBaseline:
    """The same validation tokens, scored by a bigram fitted on the training split: a line for the model to cross."""

    def should_run(self, step: int, *, steps: int) -> bool:
        return step == 0

    def open(self, material: EvalContext) -> EvaluatorFn:
        data = material.data
        train_stream, val_stream = data.open_stream("train"), data.open_stream("val")
        if train_stream is None or val_stream is None:
            raise UserError("evaluators: the data has no single training text for a bigram. Take BigramBaseline() out.")

        def judge(model: GPT) -> dict[str, float | str]:
            ids = val_stream.read(0, len(val_stream))
            vocab_size = max(material.model.resolved_vocab_size, int(ids.max()) + 1)
            nats, constant = bigram_loss(train_stream.read(0, len(train_stream)), ids, vocab_size=vocab_size)
            values: dict[str, float | str] = {"bigram_loss": nats, "bigram_constant": constant}
            tokenizer = material.tokenizer
            if tokenizer is None:
                return values
            text_bytes = int(tokenizer.bytes_per_token[ids[1:]].sum(dtype=np.int64))
            return values | {"bigram_bpb": nats * (len(ids) - 1) / math.log(2) / text_bytes}

        return judge


@dataclass(frozen=True)
class Samples:
    """Text that the model writes, for the eye."""

    every: int = 1000
    """Steps between samples; one is drawn at the end too."""
    prompt: str = "\n"
    """What the text begins with."""
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = 200
    seed: int = 0

    def should_run(self, step: int, *, steps: int) -> bool:
        return step > 0 and (step % self.every == 0 or step == steps)

    def open(self, material: EvalContext) -> EvaluatorFn | None:
        """None without a tokenizer: foreign shards train all the same."""
        tokenizer = material.tokenizer
        if tokenizer is None:
            return None
        prompt = tokenizer.encode(self.prompt).tolist()
        room = material.model.context_length - len(prompt)
        if not prompt or room < 1:
            raise UserError(
                f"evaluators: a sample's prompt has {len(prompt)} tokens; 1 to {material.model.context_length - 1} fit."
            )

        def judge(model: GPT) -> dict[str, float | str]:
            rows = material.mesh.num_batch_shards
            ids = generate(
                model,
                [prompt] * rows,
                max_new_tokens=min(self.max_new_tokens, room),
                temperature=self.temperature,
                top_k=self.top_k,
                end_of_text=tokenizer.end_of_text,
                key=jax.random.key(self.seed),
            )
            return {"sample": tokenizer.decode(ids[0])}

        return judge
