"""A run in stages: batch, attention windows and learning rate may be others from a step on, and nothing else is.

The one idea: a stage says only in what it differs from the config. What is judged, sampled and exported is the model of
the config, whatever the stage: windows alter no weights. Resolved, a run is a few `Phase`s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptjax.data import Batch
from gptjax.errors import UserError
from gptjax.gpt_config import GPTConfig


@dataclass(frozen=True)
class Stage:
    """What a run does otherwise from a step on, until the next stage. What is None is as the config says."""

    begin: int
    """The step from which it holds, counted in completed updates; 0 is the start."""
    sequences: int | None = None
    """Windows per optimizer step, instead of batch.sequences."""
    accumulate: int | None = None
    """Groups into which they are divided, instead of batch.accumulate."""
    long_window: int | None = None
    """Tokens that layers marked L see, instead of model.long_window."""
    short_window: int | None = None
    """Tokens that layers marked S see, instead of model.short_window."""
    rate: float = 1.0
    """Factor on all learning rates, besides the schedule's."""

    def __post_init__(self) -> None:
        if self.begin < 0:
            raise UserError(f"stages: one begins at step {self.begin}; the first step is 0.")
        if not 0 < self.rate < math.inf:
            raise UserError(f"stages: from step {self.begin} on rate is {self.rate}; it must be above 0 and finite.")


@dataclass(frozen=True)
class Phase:
    """A part of a run in which nothing changes: all that a stage may say, resolved."""

    begin: int
    batch: Batch
    model: GPTConfig
    rate: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch.sequences * self.model.context

    @property
    def learning(self) -> str:
        """All that makes a difference to what is learned."""
        spans = (("long", self.model.long_window), ("short", self.model.short_window))
        seen = [f"{name} attention windows of {window:,}" for name, window in spans if window is not None]
        rate = [] if self.rate == 1 else [f"learning rate × {self.rate}"]
        return ", ".join([f"{self.batch.sequences} rows = {self.tokens:,} tokens a step", *seen, *rate])

    def described(self) -> str:
        return f"from step {self.begin:,} on {self.learning}"


def phases(batch: Batch, model: GPTConfig, stages: Sequence[Stage]) -> tuple[Phase, ...]:
    """The parts of a run, in order, from step 0 on; a UserError names the stage that cannot be."""
    begins = [stage.begin for stage in stages]
    if begins != sorted(set(begins)):
        raise UserError(f"stages begin at the steps {begins}; wanted ascending ones, no two the same.")
    found = [] if begins[:1] == [0] else [Phase(0, batch, model)]
    for stage in stages:
        sizes, windows = _given(stage, ("sequences", "accumulate")), _given(stage, ("long_window", "short_window"))
        try:
            found.append(Phase(stage.begin, replace(batch, **sizes), replace(model, **windows), stage.rate))
        except UserError as error:
            raise UserError(f"stages: from step {stage.begin} on {error}") from None
    return tuple(found)


def _given(stage: Stage, names: Sequence[str]) -> dict[str, int]:
    """The fields of these names that the stage says."""
    return {name: value for name in names if (value := getattr(stage, name)) is not None}
