"""The loss on the validation split."""

import math
from collections import defaultdict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError, count_of
from gptjax.core.lazy import LazyModule
from gptjax.data.loader import iter_validation_batches, put_on_devices
from gptjax.data.row_readers import check_token_ids
from gptjax.data.sequences import ConcatSequences
from gptjax.data.source import DataSource
from gptjax.data.splits import WITHOUT_VALIDATION, MissingSplit
from gptjax.data.token_stream import TokenStream
from gptjax.evaluators.evaluator import EvalContext, Metrics, PeriodicEvaluator
from gptjax.evaluators.metric_names import to_metrics
from gptjax.objectives.objective import get_nats_metric, get_row_kind
from gptjax.objectives.preference import ReferenceObjective
from gptjax.tokenization.difference import check_made_for

if TYPE_CHECKING:
    from gptjax.model import gpt
    from gptjax.training import step as training_step
else:  # a config needs none of these, which import flax
    gpt = LazyModule("gptjax.model.gpt")
    training_step = LazyModule("gptjax.training.step")


@dataclass(frozen=True)
class ValidationLoss(PeriodicEvaluator):
    """Loss on the validation split: fixed sequences without overlap, in order, the same on any number of devices."""

    tokens: int | None = None
    """Tokens to predict, from the start of the split. None: all."""
    batch_size: int = 16
    """Sequences per batch, over all devices. Does not change the result."""
    name: str = "val"
    """Metrics are called `NAME_loss` and so on. `checkpoint.best_metric` says which of them decides `best`."""
    data: DataSource | None = None
    """The data whose validation split is read. None: that of the run."""

    at_start: ClassVar[bool] = True
    counts: ClassVar[tuple[str, ...]] = ("tokens", "batch_size")

    @property
    def metric_prefix(self) -> str:
        return f"{self.name}_"

    def check(self, context: EvalContext) -> None:
        _ = self._choose_data(context).validation

    def open(self, context: EvalContext) -> Any:
        """A `ValidationEvaluator`, or a `RowsEvaluator` for objectives that read whole documents."""
        context = self._choose_data(context)
        options = {"name": self.name, "tokens": self.tokens, "batch_size": self.batch_size}
        if get_row_kind(context.objective) != "text":
            return RowsEvaluator(context, **options)
        return ValidationEvaluator(context.validation, context, **options)

    def _choose_data(self, context: EvalContext) -> EvalContext:
        """The context with the data that is read."""
        if self.data is not None:
            context = replace(context, data=self.data.resolve())
            name, advice = (
                f"evaluators: the data of ValidationLoss {self.name!r}",
                "Prepare it with the run's tokenizer",
            )
            check_made_for(context.tokenizer, context.data.load_tokenizer(), name=name, advice=advice)
            if isinstance(context.objective, ReferenceObjective) and context.objective.store_reference:
                problem = "has data of its own, but the reference is stored for the run's"
                advice = "Compute it in every step: --objective.no-store-reference"
                raise UserError(f"evaluators: ValidationLoss {self.name!r} {problem}. {advice}.")
        return context


class ValidationEvaluator:
    """The loss of a model on a token stream."""

    def __init__(
        self, stream: TokenStream, context: EvalContext, *, tokens: int | None, batch_size: int, name: str = "val"
    ) -> None:
        # A run with an average of its weights also reports this metric of the raw weights, as `val_loss_last`.
        self.name, self.compared_metric = name, f"{name}_loss"
        self.stream, self.context, self.tokens = stream, context, tokens
        self.batch_size = context.mesh.round_up_rows(batch_size)
        self._step = training_step.make_eval_step(context.objective)
        available = len(stream) - 1
        if available < 1:
            raise UserError(f"{stream.name} has {count_of(len(stream), 'tokens')}; at least 2 are needed.")
        self.predicted = min(available, tokens or available)
        ids = stream.read(0, 1 + self.predicted)
        check_token_ids(ids, context.model_config.resolved_vocab_size, source=stream.name)
        mask = stream.loss_mask
        scored = ids[1:] if mask is None else ids[1:][mask[1 : 1 + self.predicted] == 1]
        self.scored = len(scored)
        if self.scored == 0:
            raise UserError(f"{stream.name}: none of its first {self.predicted:,} next tokens is scored. Take more.")
        self.bytes = self._count_bytes(scored)
        end = context.tokenizer.end_of_text if context.tokenizer else None
        masked = context.model_config.intra_document_mask
        self._documents = (
            ConcatSequences(stream, context.model_config.context_length, end_of_text=end) if masked else None
        )

    def describe(self) -> str:
        """The protocol in words: which tokens are predicted, how, and in which unit."""
        length = self.context.model_config.context_length
        together = "each document by itself" if self._documents else "documents run together"
        if (nats := get_nats_metric(self.context.objective)) is None:
            unit = "mean loss"
        else:
            unit = "mean in nats per token" if nats == "loss" else f"mean loss; nats per token in {self.name}_{nats}"
            kept = self.context.tokenizer is None or self.context.tokenizer.keeps_text
            what = "bytes" if kept else "bytes that its tokens are decoded to"
            per_byte = f"bits per byte over {self.bytes:,} {what}" if self.bytes else "no bits per byte: no tokenizer"
            unit += f", {per_byte}"
        return (
            f"{self.scored:,} of {len(self.stream) - 1:,} next tokens of {self.stream.name}, in order, in sequences of "
            f"{length} without overlap ({together}), {unit}"
        )

    def _count_bytes(self, scored: np.ndarray) -> int | None:
        """Bytes of text behind the scored tokens; special tokens have none."""
        tokenizer = self.context.tokenizer
        if tokenizer is None or int(scored.max()) >= tokenizer.vocab_size:  # a model may have more rows than tokens
            return None
        return int(tokenizer.bytes_per_token[scored].sum(dtype=np.int64))

    def __call__(self, model: "gpt.GPT") -> Metrics:
        config, mesh = self.context.model_config, self.context.mesh
        batches = iter_validation_batches(
            self.stream,
            config.context_length,
            vocab_size=config.resolved_vocab_size,
            batch_size=self.batch_size,
            tokens=self.predicted,
            documents=self._documents,
        )
        sums: deque[dict[str, jax.Array]] = deque()
        found: dict[str, list[float]] = defaultdict(list)

        def add(values: dict[str, jax.Array]) -> None:
            for name, value in values.items():
                found[name].append(float(value))

        for rows in batches:
            batch_sums = self._step(model, put_on_devices(rows, mesh), self.context.frozen)
            sums.append({"loss": batch_sums.loss, **batch_sums.metrics})
            if len(sums) > 2:  # a few in flight keep the device busy without queueing a whole split's rows on it
                add(sums.popleft())
        for values in sums:
            add(values)
        return to_metrics(
            {name: math.fsum(each) for name, each in found.items()},
            self.scored,
            self.bytes,
            nats_metric=get_nats_metric(self.context.objective),
            name=self.name,
        )


class RowsEvaluator:
    """The objective's mean and its other metrics on whole validation documents, packed into rows, each once."""

    def __init__(self, context: EvalContext, *, tokens: int | None, batch_size: int, name: str = "val") -> None:
        """Raise `UserError` if the data has no such rows. `tokens` are those of whole rows, scored or not."""
        self.name, self.compared_metric = name, f"{name}_loss"
        assert context.read_spec is not None
        _ = context.validation  # its fingerprint is the run's
        if (rows := context.data.open_rows("val", context.read_spec)) is None:
            name = type(context.data).__name__
            raise MissingSplit(f"evaluators: {name} has no validation rows. {WITHOUT_VALIDATION}")
        self.rows, self.context = rows, context
        self.batch_size = context.mesh.round_up_rows(batch_size)
        length = context.model_config.context_length
        self.count = len(rows) if tokens is None else min(len(rows), -(-tokens // length))
        self._step = training_step.make_eval_step(context.objective)

    def describe(self) -> str:
        unit = "pair" if get_row_kind(self.context.objective) == "pairs" else "scored token"
        return (
            f"{self.count:,} of {count_of(len(self.rows), 'rows')} of {self.rows.stream.name}, whole documents that do "
            f"not see each other; the mean over each {unit}" + "".join(f"; {note}" for note in self.rows.notes)
        )

    def __call__(self, model: "gpt.GPT") -> Metrics:
        totals: dict[str, float] = defaultdict(float)
        for start in range(0, self.count, self.batch_size):
            sums = self._step(model, put_on_devices(self._read(start), self.context.mesh), self.context.frozen)
            for name, value in {"loss": sums.loss, "count": sums.scored, **sums.metrics}.items():
                totals[name] += float(value)
        count = totals.pop("count")
        if count == 0:
            raise UserError(f"{self.rows.stream.name}: nothing in these rows is scored. Take more of them.")
        return {f"{self.name}_{key}": total / count for key, total in totals.items()}

    def _read(self, start: int) -> dict[str, np.ndarray]:
        """A batch (1, B, T) of rows; what is beyond the last row is padding."""
        numbers = np.arange(start, min(start + self.batch_size, self.count))
        missing = self.batch_size - len(numbers)
        rows = self.rows.read(numbers, with_documents=True)
        fill = {"targets": IGNORE_INDEX}
        padded = {
            name: np.pad(a, ((0, missing), (0, 0)), constant_values=fill.get(name, 0)) for name, a in rows.items()
        }
        return {name: array[None] for name, array in padded.items()}
