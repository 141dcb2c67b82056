"""Schedules: multipliers in [0, 1] for a learning rate or another hyperparameter, as functions of the step.

The owner of the hyperparameter multiplies its peak value by `schedule(step, steps=total_steps)`. Schedules have no
state and accept a traced step, so they are compiled into the training step.

All schedules here warm up linearly, `(step + 1) / (warmup_steps + 1)` as in nanoGPT, so that step 0 already trains.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Int

from gptjax.core.errors import UserError
from gptjax.sharding.axes import Scalar

Step = Int[Array, ""] | int
"""Number of completed steps; may be traced."""
DecayShape = Literal["linear", "cosine"]


@runtime_checkable
class Schedule(Protocol):
    """A multiplier as a function of the step. A config file may define its own class; nothing registers it."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        """The multiplier at `step` (may be traced) of a run of `steps`."""
        ...


@dataclass(frozen=True)
class Constant:
    """Warm up, then stay at the peak."""

    warmup_steps: int = 0
    """Steps of linear warm-up."""

    def __post_init__(self) -> None:
        _check(self, self.warmup_steps)

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        del steps
        return _warm_up(step, self.warmup_steps, later=jnp.float32(1.0))


@dataclass(frozen=True)
class Cosine:
    """Warm up, then decay along half a cosine to `min_ratio` (arXiv:1608.03983, without restarts)."""

    warmup_steps: int = 0
    """Steps of linear warm-up."""
    min_ratio: float = 0.1
    """Final value, as a fraction of the peak."""
    decay_steps: int | None = None
    """Step at which the decay ends, warm-up included; None: the end of the run."""

    def __post_init__(self) -> None:
        _check(self, self.warmup_steps, min_ratio=self.min_ratio, decay_steps=self.decay_steps)

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        end = steps if self.decay_steps is None else self.decay_steps
        decay = _decay(step, self.warmup_steps, end=end, min_ratio=self.min_ratio, shape="cosine")
        return _warm_up(step, self.warmup_steps, later=decay)


@dataclass(frozen=True)
class Linear:
    """Warm up, then decay along a straight line to `min_ratio`."""

    warmup_steps: int = 0
    """Steps of linear warm-up."""
    min_ratio: float = 0.0
    """Final value, as a fraction of the peak."""
    decay_steps: int | None = None
    """Step at which the decay ends, warm-up included; None: the end of the run."""

    def __post_init__(self) -> None:
        _check(self, self.warmup_steps, min_ratio=self.min_ratio, decay_steps=self.decay_steps)

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        end = steps if self.decay_steps is None else self.decay_steps
        decay = _decay(step, self.warmup_steps, end=end, min_ratio=self.min_ratio, shape="linear")
        return _warm_up(step, self.warmup_steps, later=decay)


@dataclass(frozen=True)
class WarmupStableDecay:
    """Warm up, stay at the peak, then decay to `min_ratio` over the last part of the run (arXiv:2404.06395).

    The stable part does not depend on the length of the run, so a checkpoint from it can be continued to any length.
    """

    warmup_steps: int = 0
    """Steps of linear warm-up."""
    decay_fraction: float = 0.2
    """Fraction of the run, at its end, over which the value decays."""
    min_ratio: float = 0.0
    """Final value, as a fraction of the peak."""
    shape: DecayShape = "linear"
    """Shape of the decay."""

    def __post_init__(self) -> None:
        _check(self, self.warmup_steps, min_ratio=self.min_ratio)
        if not 0.0 <= self.decay_fraction <= 1.0:
            raise UserError(
                f"WarmupStableDecay.decay_fraction is {self.decay_fraction}; it must be a fraction from 0 to 1."
            )
        if self.shape not in ("linear", "cosine"):
            raise UserError(f"WarmupStableDecay.shape is {self.shape!r}; use 'linear' or 'cosine'.")

    def __call__(self, step: Step, *, steps: int) -> Scalar:
        start = max(self.warmup_steps, steps - round(self.decay_fraction * steps))
        decay = _decay(step, start, end=steps, min_ratio=self.min_ratio, shape=self.shape)
        return _warm_up(step, self.warmup_steps, later=decay)


def _warm_up(step: Step, warmup_steps: int, *, later: Scalar) -> Scalar:
    """A linear rise during the first `warmup_steps`, `later` after them."""
    rising = (jnp.asarray(step, jnp.float32) + 1.0) / (warmup_steps + 1.0)
    return jnp.where(step < warmup_steps, rising, later)


def _decay(step: Step, start: int, *, end: int, min_ratio: float, shape: DecayShape) -> Scalar:
    """1 until `start`, falling to `min_ratio` at `end` and constant after it; a jump if `end <= start`."""
    progress = (jnp.asarray(step, jnp.float32) - start) / max(end - start, 1)
    progress = jnp.clip(progress, 0.0, 1.0)
    height = 1.0 - progress if shape == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < end, min_ratio + (1.0 - min_ratio) * height, min_ratio)


def _check(schedule: object, warmup_steps: int, *, min_ratio: float = 0.0, decay_steps: int | None = None) -> None:
    name = type(schedule).__name__
    if warmup_steps < 0:
        raise UserError(f"{name}.warmup_steps is {warmup_steps}; use 0 (no warm-up) or more.")
    if not 0.0 <= min_ratio <= 1.0:
        raise UserError(f"{name}.min_ratio is {min_ratio}; it must be a fraction of the peak, from 0 to 1.")
    if decay_steps is not None and decay_steps <= warmup_steps:
        raise UserError(
            f"{name}.decay_steps is {decay_steps}, but warmup_steps is {warmup_steps}: the decay must end after the "
            "warm-up. Use a larger decay_steps, or None for the end of the run."
        )
