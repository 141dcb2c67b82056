"""A moving average of the weights, which is evaluated, sampled from and exported instead of the last weights.

The last weights carry the noise of the last batches; an average over many steps carries less of it (Polyak & Juditsky
1992; Izmailov et al. 2018, arXiv:1803.05407). The average is the plain mean at first and an exponential moving average
once that remembers less, so it needs no bias correction and no state besides the step number.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.errors import UserError
from gptjax.optim.schedules import Step


@dataclass(frozen=True)
class EMA:
    """Keep a float32 average of the weights, sharded like them. Training itself does not use it."""

    decay: float | None = None
    """Fraction of the average that is kept each step; about 1 / (1 - decay) steps count. 1 is the plain mean.
    None keeps no average."""
    fraction: float = 1.0
    """Fraction of the run, at its end, that is averaged. Until it begins, the average equals the weights."""

    def __post_init__(self) -> None:
        if self.decay is not None and not 0.0 <= self.decay <= 1.0:
            raise UserError(f"ema.decay is {self.decay}; it must be from 0 to 1.")
        if not 0.0 < self.fraction <= 1.0:
            raise UserError(f"ema.fraction is {self.fraction}; it must be above 0 and at most 1.")

    @property
    def enabled(self) -> bool:
        """Whether the run keeps an average."""
        return self.decay is not None

    def start_step(self, *, steps: int) -> int:
        """Index (from 0) of the first step of a run of `steps` whose weights are averaged."""
        return steps - round(self.fraction * steps)

    def has_started(self, completed: int, *, steps: int) -> bool:
        """Whether the average differs from the last weights after `completed` of `steps` steps."""
        return self.enabled and completed > self.start_step(steps=steps) + 1

    def update(self, average: Any, weights: Any, *, step: Step, steps: int) -> Any:
        """The average after the `weights` that step number `step` (from 0) of `steps` has produced."""
        assert self.decay is not None
        averaged = jnp.maximum(jnp.asarray(step, jnp.float32) - self.start_step(steps=steps), 0.0)
        kept = jnp.minimum(self.decay, averaged / (averaged + 1.0))
        return jax.tree.map(lambda mean, new: kept * mean + (1.0 - kept) * new, average, weights)

    def describe(self, *, steps: int) -> str:
        """One line about the average of a run of `steps`, for the log."""
        assert self.decay is not None
        window = "all steps alike" if self.decay == 1 else f"looking back about {1 / (1 - self.decay):,.0f} steps"
        return f"the mean of the weights from step {self.start_step(steps=steps) + 1:,} on, {window}"
