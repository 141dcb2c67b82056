"""Dynamic loss scaling: float16 gradients that are too small to be represented are computed times a factor.

The factor doubles after many updates in a row that are finite, and is halved by one that is not (Micikevicius et al.,
Mixed Precision Training, arXiv:1710.03740, §3.2). It is a power of two, so that it rounds nothing.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gptjax.model.config import GPTConfig
from gptjax.sharding.axes import Count, Scalar

INITIAL_SCALE = 2.0**16
MAX_SCALE = 2.0**24
"""Gradients of weights are float32, and would overflow far beyond."""
GROWTH_INTERVAL = 2000
"""Finite updates in a row after which the scale doubles. These numbers are those of torch's GradScaler."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossScale:
    """The factor on the loss, and how long it has held."""

    scale: Scalar | Any
    """A float32 power of two, at least 1."""
    finite_steps: Count | Any
    """Finite updates in a row since the scale last changed."""

    @classmethod
    def create(cls) -> "LossScale":
        """The scale of step 0."""
        return cls(jnp.float32(INITIAL_SCALE), jnp.int32(0))

    def update(self, finite: Array) -> "LossScale":
        """The scale after an update that was finite, or was not."""
        count = jnp.where(finite, self.finite_steps + 1, 0)
        grows = count >= GROWTH_INTERVAL
        grown = jnp.where(grows, jnp.minimum(2.0 * self.scale, MAX_SCALE), self.scale)
        return LossScale(jnp.where(finite, grown, jnp.maximum(self.scale / 2.0, 1.0)), jnp.where(grows, 0, count))


def create_loss_scale(config: GPTConfig) -> LossScale | None:
    """The scale with which a model starts to train; None if it does not compute in float16."""
    return LossScale.create() if "float16" in (config.compute.dtype, config.compute.head_dtype) else None
