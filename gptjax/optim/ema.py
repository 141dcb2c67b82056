"""An average of the weights along a run, to be judged, sampled and exported in their place.

The last weights carry the noise of the last batches; their mean over many steps carries less of it (Polyak & Juditsky
1992; Izmailov et al. 2018, arXiv:1803.05407). The one idea: it is the plain mean until its memory is full and forgets
exponentially from then on, so there is no bias to correct, and the step number alone says how much of it stays.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.errors import UserError
from gptjax.sharding.axes import Count


@dataclass(frozen=True)
class EMA:
    """Keep a float32 average of the weights beside them, sharded as they are; training does not look at it."""

    decay: float | None = None
    """Share of the average that stays each step: it looks back over about 1 / (1 - decay) steps; 1 forgets nothing.
    None: no average is kept."""
    fraction: float = 1.0
    """The part of the run, counted from its end, that is averaged; before it the average is the weights themselves."""

    def __post_init__(self) -> None:
        if self.decay is not None and not 0.0 <= self.decay <= 1.0:
            raise UserError(f"ema.decay is {self.decay}; it is a share, from 0 to 1.")
        if not 0.0 < self.fraction <= 1.0:
            raise UserError(f"ema.fraction is {self.fraction}: it is a part of the run, above 0 and at most 1.")

    @property
    def enabled(self) -> bool:
        """Whether there is an average at all."""
        return self.decay is not None

    def begin(self, *, steps: int) -> int:
        """The first update of a run of `steps` whose weights are averaged, counted from 0."""
        return steps - round(self.fraction * steps)

    def has_started(self, completed: int, *, steps: int) -> bool:
        """Whether the average holds other weights than the last, after so many updates."""
        return self.enabled and completed > self.begin(steps=steps) + 1

    def update(self, average: Any, weights: Any, step: Count | int, *, steps: int) -> Any:
        """The next average: of the one so far, and of the weights that update number `step` made."""
        assert self.decay is not None
        earlier = jnp.maximum(jnp.asarray(step, jnp.float32) - self.begin(steps=steps), 0.0)
        stays = jnp.minimum(self.decay, earlier / (earlier + 1.0))
        return jax.tree.map(lambda mean, new: stays * mean + (1.0 - stays) * new, average, weights)

    def describe(self, *, steps: int) -> str:
        """What is averaged in a run of `steps`, in words."""
        assert self.decay is not None
        reach = "forgetting nothing" if self.decay == 1 else f"looking back about {1 / (1 - self.decay):,.0f} steps"
        return f"the mean of the weights from step {self.begin(steps=steps) + 1:,} on, {reach}"
