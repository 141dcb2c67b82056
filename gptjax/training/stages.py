"""A run in stages: batch, attention windows and learning rate may be others from a step on, and nothing else is.

The one idea: a stage says only in what it differs from the config. What is judged, sampled and exported is the model of
the config, whatever the stage: windows alter no weights. Resolved, a run is a few `Phase`s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptjax.core.errors import UserError
from gptjax.data.batch_size import BatchSize
from gptjax.model.config import GPTConfig


@dataclass(frozen=True)
class Stage:
    """Changes of a run from a step on, until the next stage. None inherits the config's value."""

    begin: int
    """The step from which it holds, counted in completed updates; 0 is the start."""
    batch_size: int | None = None
    """Windows per optimizer step, instead of batch_size."""
    grad_accum: int | None = None
    """Groups into which they are divided, instead of grad_accum."""
    long_window: int | None = None
    """Tokens that layers marked L see, instead of model.long_window."""
    short_window: int | None = None
    """Tokens that layers marked S see, instead of model.short_window."""
    lr_scale: float = 1.0
    """Factor on all learning rates, besides the schedule's."""

    def __post_init__(self) -> None:
        if self.begin < 0:
            raise UserError(f"stages: one begins at step {self.begin}; the first step is 0.")
        if not 0 < self.lr_scale < math.inf:
            raise UserError(
                f"stages: from step {self.begin} on rate is {self.lr_scale}; it must be above 0 and finite."
            )


@dataclass(frozen=True)
class Phase:
    """A part of a run in which nothing changes: all that a stage may say, resolved."""

    begin: int
    batch: BatchSize
    model: GPTConfig
    lr_scale: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch.size * self.model.context_length

    @property
    def learning(self) -> str:
        """All that makes a difference to what is learned."""
        spans = (("long", self.model.long_window), ("short", self.model.short_window))
        seen = [f"{name} attention windows of {window:,}" for name, window in spans if window is not None]
        rate = [] if self.lr_scale == 1 else [f"learning rate × {self.lr_scale}"]
        return ", ".join([f"{self.batch.size} rows = {self.tokens:,} tokens a step", *seen, *rate])

    def describe(self) -> str:
        return f"from step {self.begin:,} on {self.learning}"


def phases(batch: BatchSize, model: GPTConfig, stages: Sequence[Stage]) -> tuple[Phase, ...]:
    """The parts of a run, in order, from step 0 on; a UserError names the stage that cannot be."""
    begins = [stage.begin for stage in stages]
    if begins != sorted(set(begins)):
        raise UserError(f"stages begin at the steps {begins}; wanted ascending ones, no two the same.")
    found = [] if begins[:1] == [0] else [Phase(0, batch, model)]
    for stage in stages:
        size = batch.size if stage.batch_size is None else stage.batch_size
        grad_accum = batch.grad_accum if stage.grad_accum is None else stage.grad_accum
        windows = {n: w for n in ("long_window", "short_window") if (w := getattr(stage, n)) is not None}
        try:
            found.append(Phase(stage.begin, BatchSize(size, grad_accum), replace(model, **windows), stage.lr_scale))
        except UserError as error:
            raise UserError(f"stages: from step {stage.begin} on {error}") from None
    return tuple(found)
