"""Distillation: a student learns from a larger model's distribution over the next token, besides the text itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp

from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.model.loss import LossOptions
from gptjax.objectives.objective import LossSums, MicroBatch, run_rows
from gptjax.sharding.axes import BT, BTD, DropoutKeys, Scalar

if TYPE_CHECKING:
    from gptjax.model import distillation_loss, gpt
else:
    distillation_loss = LazyModule("gptjax.model.distillation_loss")
    gpt = LazyModule("gptjax.model.gpt")  # imports flax


@dataclass(frozen=True)
class Distillation:
    """A weighted sum of three means over the scored tokens. The default weights are those of DistilGPT-2.

    - `kl`: KL(teacher ‖ student) of the next token, both at a temperature; its weight is times temperature².
    - `cross_entropy` of the next token, as in pretraining.
    - `cosine`: 1 - cosine of the final hidden states of student and teacher.

    `val_loss` is the same sum, so compare its parts with other runs: `val_cross_entropy` is their `val_loss`.
    """

    teacher: str = "runs/gpt2"
    """Run, a checkpoint of it (RUN@best), or a directory in Hugging Face's format: a model of the same vocabulary."""
    temperature: float = 2.0
    """Logits of both models are divided by it before `kl` compares them."""
    kl_weight: float = 5.0
    """Weight of `kl`, times temperature²."""
    cross_entropy_weight: float = 2.0
    """Weight of `cross_entropy`."""
    cosine_weight: float = 1.0
    """Weight of `cosine`. Needs a teacher of the same width, unless it is 0."""
    chunk_tokens: int = 8192
    """Tokens of one device whose logits, of both models, are in memory at a time."""

    nats_metric: ClassVar[str | None] = "cross_entropy"

    def __post_init__(self) -> None:
        for name in ("kl_weight", "cross_entropy_weight", "cosine_weight"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"objective.{name} is {value}; it must not be negative, and finite.")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"objective.temperature is {self.temperature}; it must be above 0 and finite.")
        if self.chunk_tokens < 1:
            raise UserError(f"objective.chunk_tokens is {self.chunk_tokens}; it must be at least 1.")

    def load_frozen_model(self, load: Callable[[str | None], "gpt.GPT"]) -> "gpt.GPT":
        """The teacher."""
        return load(self.teacher)

    def sum_loss(
        self,
        model: "gpt.GPT",
        batch: MicroBatch,
        dropout_keys: DropoutKeys | None = None,
        *,
        frozen: "gpt.GPT | None" = None,
    ) -> LossSums:
        """(weighted loss, scored tokens) with the sums of its terms, over all rows on all devices."""
        assert frozen is not None
        self._check_width(model, frozen)
        hidden = run_rows(model, batch, dropout_keys)
        teacher_hidden, teacher_head = jax.lax.stop_gradient((run_rows(frozen, batch), frozen.output_head))
        options = distillation_loss.DistillationOptions(
            *(LossOptions.from_config(m.config, chunk_tokens=self.chunk_tokens, mesh=m.mesh) for m in (model, frozen)),
            temperature=self.temperature,
            kl_weight=self.kl_weight,
            cross_entropy_weight=self.cross_entropy_weight,
        )
        sums = distillation_loss.distillation_loss(
            hidden,
            model.output_head,
            batch["targets"],
            teacher_hidden=teacher_hidden,
            teacher_head=teacher_head,
            options=options,
        )
        metrics = {"kl": sums.kl, "cross_entropy": sums.cross_entropy}
        loss = sums.loss
        if self.cosine_weight > 0:
            metrics["cosine"] = sum_cosine_distance(hidden, teacher_hidden, batch["targets"])
            loss = loss + self.cosine_weight * metrics["cosine"]
        return LossSums(loss, jnp.sum(batch["targets"] != IGNORE_INDEX), metrics)

    def _check_width(self, model: "gpt.GPT", teacher: "gpt.GPT") -> None:
        width, wanted = model.config.embed_dim, teacher.config.embed_dim
        if self.cosine_weight > 0 and width != wanted:
            raise UserError(
                f"objective.cosine_weight is {self.cosine_weight}, but the student has {width} channels and the "
                f"teacher {wanted}. Give --objective.cosine-weight=0."
            )


def sum_cosine_distance(hidden: BTD, teacher_hidden: BTD, targets: BT) -> Scalar:
    """1 - cosine of two vectors for each scored token, summed, in float32."""
    one, other = hidden.astype(jnp.float32), teacher_hidden.astype(jnp.float32)
    product, lengths = jnp.sum(one * other, axis=-1), jnp.sum(one**2, axis=-1) * jnp.sum(other**2, axis=-1)
    distance = 1 - product * jax.lax.rsqrt(jnp.maximum(lengths, 1e-16))
    return jnp.sum(jnp.where(targets != IGNORE_INDEX, distance, 0.0))
