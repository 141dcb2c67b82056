"""Objectives: a model and a micro-batch become (summed loss, number of scored tokens)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.model.loss import LossOptions, next_token_loss
from gptjax.sharding.axes import BT, Count, DropoutKeys, Scalar

if TYPE_CHECKING:
    from gptjax.model import gpt
else:
    gpt = LazyModule("gptjax.model.gpt")  # imports flax

MicroBatch = dict[str, BT]
"""Rows of a micro-batch: `tokens`, `targets` and, for document masks, `segments` and `positions`; int32 (B, T) each."""


@runtime_checkable
class Objective(Protocol):
    """A training objective: a frozen dataclass with this method."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def sum_loss(
        self, model: "gpt.GPT", batch: MicroBatch, dropout_keys: DropoutKeys | None = None
    ) -> tuple[Scalar, Count]:
        """(loss, scored tokens), each summed over all rows on all devices. The step divides the two sums."""
        ...


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token: language modelling."""

    chunk_tokens: int = 8192
    """Tokens of one device whose logits are in memory at a time. GPUs need thousands to be busy. CPUs are fastest with
    100 to 200, whose logits nearly fit the cache."""
    z_loss: float = 0.0
    """Weight of (log Σ exp logits)², in the gradient only. Reported losses stay cross-entropy."""

    def __post_init__(self) -> None:
        if not 0 <= self.z_loss < math.inf:
            raise UserError(f"objective.z_loss is {self.z_loss}; it must not be negative, and finite.")
        if self.chunk_tokens < 1:
            raise UserError(f"objective.chunk_tokens is {self.chunk_tokens}; it must be at least 1.")

    def sum_loss(
        self, model: "gpt.GPT", batch: MicroBatch, dropout_keys: DropoutKeys | None = None
    ) -> tuple[Scalar, Count]:
        """(nats, scored targets), summed over all rows on all devices."""
        documents = gpt.DocumentIds(batch["segments"], batch["positions"]) if "segments" in batch else None
        return next_token_loss(
            model.hidden_states(batch["tokens"], dropout_keys, documents=documents),
            model.output_head,
            batch["targets"],
            options=LossOptions.from_config(
                model.config, chunk_tokens=self.chunk_tokens, mesh=model.mesh, z_loss=self.z_loss
            ),
        )
