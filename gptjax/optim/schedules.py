"""Values as functions of the step: what a learning rate (or any other hyper-parameter) is multiplied by.

A schedule describes a shape, not an amount: `schedule(step, steps=length_of_run)` lies between 0 and 1, and
whoever owns the hyper-parameter multiplies its peak by it. It works on a traced step, so it is compiled into
the training step, and there is nothing to remember: the step number alone decides.

All four warm up alike, `(step + 1) / (warmup_steps + 1)` for the first `warmup` steps (as nanoGPT does), so that
step 0 already moves. They differ in what follows.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Int

from gptjax.core.errors import UserError
from gptjax.sharding.axes import Scalar

Step = Int[Array, ""] | int
"""Completed updates so far; may be traced."""


@dataclass(frozen=True)
class Constant:
    """Warm up, then stay at the peak."""

    warmup_steps: int = 0
    """Steps of warm-up."""

    def __post_init__(self) -> None:
        _check(self, warmup_steps=self.warmup_steps)

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        """The multiplier at `step`; `steps`, the length of the run, makes no difference here."""
        return _warmed(step, self.warmup_steps, jnp.float32(1.0))


@dataclass(frozen=True)
class Cosine:
    """Warm up, then fall along half a cosine to `min_ratio` (arXiv:1608.03983, without the restarts)."""

    warmup_steps: int = 0
    """Steps of warm-up."""
    min_ratio: float = 0.1
    """The last value, as a fraction of the peak."""
    decay_steps: int | None = None
    """The step at which the floor is reached, warm-up included; None: the end of the run."""

    def __post_init__(self) -> None:
        _check(self, warmup_steps=self.warmup_steps, min_ratio=self.min_ratio, decay_steps=self.decay_steps)

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        """The multiplier at `step` in a run of `steps`."""
        end = steps if self.decay_steps is None else self.decay_steps
        return _warmed(
            step, self.warmup_steps, _fall(step, self.warmup_steps, end, min_ratio=self.min_ratio, shape="cosine")
        )


@dataclass(frozen=True)
class Linear:
    """Warm up, then fall along a straight line to `min_ratio`."""

    warmup_steps: int = 0
    """Steps of warm-up."""
    min_ratio: float = 0.0
    """The last value, as a fraction of the peak."""
    decay_steps: int | None = None
    """The step at which the floor is reached, warm-up included; None: the end of the run."""

    def __post_init__(self) -> None:
        _check(self, warmup_steps=self.warmup_steps, min_ratio=self.min_ratio, decay_steps=self.decay_steps)

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        """The multiplier at `step` in a run of `steps`."""
        end = steps if self.decay_steps is None else self.decay_steps
        return _warmed(
            step, self.warmup_steps, _fall(step, self.warmup_steps, end, min_ratio=self.min_ratio, shape="linear")
        )


@dataclass(frozen=True)
class WarmupStableDecay:
    """Warm up, stay at the peak, and fall to `min_ratio` over the last part of the run (arXiv:2404.06395).

    The stable part does not depend on the length of the run, so a checkpoint from it can be continued, or
    finished, at any length.
    """

    warmup_steps: int = 0
    """Steps of warm-up."""
    decay_fraction: float = 0.2
    """The part of the run, counted from its end, over which the value falls."""
    min_ratio: float = 0.0
    """The last value, as a fraction of the peak."""
    shape: Literal["linear", "cosine"] = "linear"
    """How it falls."""

    def __post_init__(self) -> None:
        _check(self, warmup_steps=self.warmup_steps, min_ratio=self.min_ratio)
        if not 0.0 <= self.decay_fraction <= 1.0:
            raise UserError(
                f"WarmupStableDecay.decay_fraction is {self.decay_fraction}: it is a part of the run, from 0 to 1."
            )
        if self.shape not in ("linear", "cosine"):
            raise UserError(f"WarmupStableDecay.shape is {self.shape!r}: use 'linear' or 'cosine'.")

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        """The multiplier at `step` in a run of `steps`."""
        start = max(self.warmup_steps, steps - round(self.decay_fraction * steps))
        return _warmed(step, self.warmup_steps, _fall(step, start, steps, min_ratio=self.min_ratio, shape=self.shape))


Schedule = Constant | Cosine | Linear | WarmupStableDecay


def _warmed(step: Step, warmup_steps: int, after: Scalar) -> Scalar:
    """The warm-up during its steps, `after` from then on."""
    rising = (jnp.asarray(step, jnp.float32) + 1.0) / (warmup_steps + 1.0)
    return jnp.where(step < warmup_steps, rising, after)


def _fall(step: Step, start: int, end: int, *, min_ratio: float, shape: Literal["linear", "cosine"]) -> Scalar:
    """1 until `start`, then down to `min_ratio`, reached at `end` and kept; with no room to fall, a drop."""
    progress = (jnp.asarray(step, jnp.float32) - start) / max(end - start, 1)
    progress = jnp.clip(progress, 0.0, 1.0)
    height = 1.0 - progress if shape == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < end, min_ratio + (1.0 - min_ratio) * height, min_ratio)


def _check(schedule: object, *, warmup_steps: int, min_ratio: float = 0.0, decay_steps: int | None = None) -> None:
    name = type(schedule).__name__
    if warmup_steps < 0:
        raise UserError(f"{name}.warmup_steps is {warmup_steps} steps: use 0 (no warm-up) or more.")
    if not 0.0 <= min_ratio <= 1.0:
        raise UserError(f"{name}.min_ratio is {min_ratio}: it is a fraction of the peak, from 0 to 1.")
    if decay_steps is not None and decay_steps <= warmup_steps:
        raise UserError(
            f"{name}.decay_steps is {decay_steps} and warmup_steps is {warmup_steps}: the decay ends after the warm-up. "
            "Use a larger decay_steps, or None for the end of the run."
        )
