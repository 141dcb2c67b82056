"""Objectives: a model and a micro-batch become sums of the loss, of what it is averaged over, and of other metrics."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.data.source import RowKind
from gptjax.model.loss import LossOptions, next_token_loss
from gptjax.sharding.axes import BTD, Count, DropoutKeys, Scalar

if TYPE_CHECKING:
    from gptjax.finetuning import adapters
    from gptjax.model import gpt
else:
    adapters = LazyModule("gptjax.finetuning.adapters")
    gpt = LazyModule("gptjax.model.gpt")  # imports flax

MicroBatch = dict[str, Any]
"""Rows of a micro-batch: `tokens`, `targets` and, for document masks, `segments` and `positions`; int32 (B, T) each.
With a stored reference also its log-probability of each target, `reference`, float32 (B, T)."""


class LossSums(NamedTuple):
    """Sums over all rows of a micro-batch on all devices. The step adds micro-batches up, and divides once."""

    loss: Scalar
    scored: Count
    """What the loss is averaged over: scored tokens, or pairs."""
    metrics: Mapping[str, Scalar] = MappingProxyType({})
    """Other sums, by the name of their mean. They are divided by `scored`, too."""


@runtime_checkable
class Objective(Protocol):
    """A training objective: a frozen dataclass with this method.

    It may have class variables `rows` (`data.source.RowKind`) and `nats_metric` (`get_nats_metric`), and be a
    `FrozenModelObjective`.
    """

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def sum_loss(
        self, model: "gpt.GPT", batch: MicroBatch, dropout_keys: DropoutKeys | None = None
    ) -> LossSums | tuple[Scalar, Count] | tuple[Scalar, Count, Mapping[str, Scalar]]:
        """(loss, scored tokens), each summed over all rows on all devices. The step divides the two sums."""
        ...


@runtime_checkable
class FrozenModelObjective(Protocol):
    """An objective that needs a second model, which is not trained: a reference, or a teacher.

    `sum_loss` gets it as `frozen=`.
    """

    def load_frozen_model(self, load: Callable[[str | None], "gpt.GPT"]) -> "gpt.GPT | None":
        """The model, on the run's mesh; None if the loss does without.

        Called once before the first step of a new or resumed run. `load` returns the weights of a run directory, or for
        None those that the run starts from.
        """
        ...


def get_row_kind(objective: Objective) -> RowKind:
    """The kind of rows that an objective reads; a class without `row_kind` takes any."""
    return getattr(objective, "row_kind", "text")


def get_nats_metric(objective: Objective) -> str | None:
    """The metric of an objective that is the cross-entropy of the next token, in nats: `loss`, or another of its sums.

    Perplexity and bits per byte are given of this one. A class without `nats_metric` has none.
    """
    return getattr(objective, "nats_metric", None)


def compute_sums(
    objective: Objective,
    model: "gpt.GPT",
    batch: MicroBatch,
    dropout_keys: DropoutKeys | None = None,
    *,
    frozen: "gpt.GPT | None" = None,
) -> LossSums:
    """The sums of any objective, which may return a plain tuple."""
    extra: dict[str, Any] = {"frozen": frozen} if isinstance(objective, FrozenModelObjective) else {}
    found: Any = objective.sum_loss(adapters.apply_adapters(model), batch, dropout_keys, **extra)
    sums = LossSums(*found)
    return sums._replace(metrics=dict(sums.metrics))


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token: language modelling."""

    chunk_tokens: int = 8192
    """Most tokens of one device whose logits are in memory at a time. GPUs need thousands to be busy. CPUs take as many
    as have 256 k logits, or 128 if that is more."""
    z_loss: float = 0.0
    """Weight of (log Σ exp logits)², in the gradient only. Reported losses stay cross-entropy."""

    nats_metric: ClassVar[str | None] = "loss"

    def __post_init__(self) -> None:
        if not 0 <= self.z_loss < math.inf:
            raise UserError(f"objective.z_loss is {self.z_loss}; it must not be negative, and finite.")
        if self.chunk_tokens < 1:
            raise UserError(f"objective.chunk_tokens is {self.chunk_tokens}; it must be at least 1.")

    def sum_loss(
        self, model: "gpt.GPT", batch: MicroBatch, dropout_keys: DropoutKeys | None = None
    ) -> tuple[Scalar, Count]:
        """(nats, scored targets), summed over all rows on all devices."""
        return next_token_loss(
            run_rows(model, batch, dropout_keys),
            model.output_head,
            batch["targets"],
            options=LossOptions.from_config(
                model.config,
                chunk_tokens=self.chunk_tokens,
                mesh=model.mesh,
                skip_unscored=get_row_kind(self) == "answers",
                z_loss=self.z_loss,
            ),
        )


def run_rows(model: "gpt.GPT", batch: MicroBatch, dropout_keys: DropoutKeys | None = None) -> BTD:
    """The final hidden states of the rows of a micro-batch."""
    documents = gpt.DocumentIds(batch["segments"], batch["positions"]) if "segments" in batch else None
    return model.hidden_states(batch["tokens"], dropout_keys, documents=documents)


@dataclass(frozen=True)
class SFT(NextToken):
    """Supervised fine-tuning: cross-entropy of the answers only, given all that stands before them.

    Rows hold whole conversations that do not see each other. The loss is the sum of nats over the number of scored
    tokens of the whole batch, over all rows, micro-batches and devices. So a part of the batch without a scored token
    changes nothing, and a long answer counts more than a short one. The logged `loss` is this mean.
    """

    row_kind: ClassVar[RowKind] = "answers"
