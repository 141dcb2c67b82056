"""Stages: the batch size, the attention windows and the learning rate may change at given steps of a run.

A stage inherits what it leaves unset. Evaluation, sampling and export always use the config's own model, because
windows change no weights. `resolve_phases` turns the stages of a run into phases, in which nothing changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptjax.core.errors import UserError
from gptjax.data.batch_size import BatchSize
from gptjax.model.config import GPTConfig


@dataclass(frozen=True)
class Stage:
    """Settings from a step on, until the next stage. Unset fields (None) fall back to the config's."""

    begin: int
    """The step from which the stage holds, in completed updates. 0 is the start."""
    batch_size: int | None = None
    """Sequences per optimizer step, instead of `batch_size`."""
    grad_accum: int | None = None
    """Micro-batches of a step, instead of `grad_accum`."""
    long_window: int | None = None
    """Tokens that layers marked L attend to, instead of `model.long_window`."""
    short_window: int | None = None
    """Tokens that layers marked S attend to, instead of `model.short_window`."""
    lr_scale: float = 1.0
    """Factor on all learning rates, besides the schedule's."""

    def __post_init__(self) -> None:
        if self.begin < 0:
            raise UserError(f"stages: a stage begins at step {self.begin}; the first step is 0.")
        if not 0 < self.lr_scale < math.inf:
            raise UserError(
                f"stages: from step {self.begin} on, lr_scale is {self.lr_scale}; it must be above 0 and finite."
            )


@dataclass(frozen=True)
class Phase:
    """A part of a run in which nothing changes, with all settings of its stage resolved."""

    begin: int
    batch: BatchSize
    model_config: GPTConfig
    lr_scale: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch.size * self.model_config.context_length

    @property
    def summary(self) -> str:
        """The settings that influence what is learned, in words. Gradient accumulation does not."""
        windows = (("long", self.model_config.long_window), ("short", self.model_config.short_window))
        spans = [f"{name} attention windows of {window:,}" for name, window in windows if window is not None]
        scale = [] if self.lr_scale == 1 else [f"learning rate × {self.lr_scale}"]
        return ", ".join([f"{self.batch.size} rows = {self.tokens:,} tokens a step", *spans, *scale])

    def describe(self) -> str:
        return f"from step {self.begin:,} on {self.summary}"


def resolve_phases(batch: BatchSize, model: GPTConfig, stages: Sequence[Stage]) -> tuple[Phase, ...]:
    """Return the phases of a run in order, from step 0 on. The UserError of an invalid stage names its step."""
    begins = [stage.begin for stage in stages]
    if begins != sorted(set(begins)):
        raise UserError(f"stages begin at the steps {begins}; these must be ascending and distinct.")
    phases = [] if begins[:1] == [0] else [Phase(0, batch, model)]
    for stage in stages:
        size = batch.size if stage.batch_size is None else stage.batch_size
        grad_accum = batch.grad_accum if stage.grad_accum is None else stage.grad_accum
        windows = {n: w for n in ("long_window", "short_window") if (w := getattr(stage, n)) is not None}
        try:
            phases.append(Phase(stage.begin, BatchSize(size, grad_accum), replace(model, **windows), stage.lr_scale))
        except UserError as error:
            raise UserError(f"stages: from step {stage.begin} on, {error}") from None
    return tuple(phases)
