"""What an evaluator is: a config whose `open` binds it to a run's data, and a function from a model to metrics."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.data.source import DataSource, ReadSpec
from gptjax.data.splits import WITHOUT_VALIDATION, MissingSplit
from gptjax.data.token_stream import TokenStream
from gptjax.model.config import GPTConfig
from gptjax.objectives.objective import Objective
from gptjax.process.console import print_once
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptjax.model import gpt
else:
    gpt = LazyModule("gptjax.model.gpt")  # imports flax

Metrics = dict[str, float | str]
"""Numbers, and texts such as samples, by name."""
OpenEvaluator = Callable[["gpt.GPT"], Metrics]


@dataclass(frozen=True)
class EvalContext:
    """A run's data and settings, for evaluators to open on."""

    data: DataSource
    tokenizer: Tokenizer | None
    model_config: GPTConfig
    objective: Objective
    mesh: MeshConfig
    frozen: "gpt.GPT | None" = None
    """The frozen model of the objective, if it has one."""
    read_spec: ReadSpec | None = None
    """What the run asks of its training data."""

    @functools.cached_property
    def validation(self) -> TokenStream:
        """The validation tokens of the run's data."""
        if (stream := self.data.open_stream("val")) is None:
            raise MissingSplit(f"evaluators: {type(self.data).__name__} has no validation split. {WITHOUT_VALIDATION}")
        return stream

    @property
    def validation_fingerprint(self) -> str | None:
        """Identity of the validation tokens, if an evaluator has opened them."""
        return self.validation.fingerprint if "validation" in vars(self) else None


@runtime_checkable
class Evaluator(Protocol):
    """An evaluation during training: a frozen dataclass with these two methods.

    The metric that `checkpoint.best_metric` names decides which checkpoint is the best.

    An evaluator may have `metrics`, a tuple: the names of all that it measures of the model, () for text alone. Or it
    has `metric_prefix`, with which they all begin, a loss among them. Then a `checkpoint.best_metric` that no evaluator
    measures is refused before the first step.

    It may also have `check(context)`, which raises a `UserError` for what `open` would refuse and is known at once, as
    that a file is missing. It is called without the frozen model of the objective, before anything is computed.
    """

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def should_run(self, step: int, *, steps: int) -> bool:
        """True if the weights after `step` updates of a run of `steps` are evaluated."""
        ...

    def open(self, context: EvalContext) -> OpenEvaluator | None:
        """A function from a model to metrics; None if this run cannot be evaluated so.

        It is called once, when the run holds its directory and the frozen model of its objective is there.
        """
        ...


@dataclass(frozen=True)
class Evaluators:
    """The evaluators of a run, opened."""

    opened: tuple[tuple[Evaluator, OpenEvaluator], ...]
    context: EvalContext

    @property
    def validation_fingerprint(self) -> str | None:
        """Identity of the validation tokens, if an evaluator reads them."""
        return self.context.validation_fingerprint

    def list_due(self, step: int, *, steps: int) -> list[OpenEvaluator]:
        """Those that run on the weights after `step` updates."""
        return [evaluate for config, evaluate in self.opened if config.should_run(step, steps=steps)]

    def describe(self) -> list[str]:
        """The protocol of each evaluator that has one."""
        texts = [getattr(evaluate, "describe", None) for _, evaluate in self.opened]
        return [describe() for describe in texts if describe is not None]


def passes_check(evaluator: Evaluator, context: EvalContext, *, is_required: bool) -> bool:
    """False for an evaluator whose `check` finds no validation split, which `open_or_skip` will skip.

    Raises `MissingSplit` for it if `is_required`.
    """
    try:
        getattr(evaluator, "check", lambda _: None)(context)
    except MissingSplit:
        if is_required:
            raise
        return False
    return True


def open_or_skip(evaluator: Evaluator, context: EvalContext, *, is_required: bool) -> OpenEvaluator | None:
    """The opened evaluator; None, with a note, for one that the run's data cannot have.

    Raises `MissingSplit` for data without a validation split if `is_required`.
    """
    lacks = "tokenizer.json beside it"
    try:
        run = evaluator.open(context)
    except MissingSplit:
        if is_required:
            raise
        run, lacks = None, "validation split"
    if run is None:
        print_once(f"note: {type(evaluator).__name__} is skipped: the data has no {lacks}")
    return run


def may_measure(evaluator: Evaluator, metric: str) -> bool:
    """False if an evaluator says that its metrics are others."""
    names: tuple[str, ...] | None = getattr(evaluator, "metrics", None)
    return metric.startswith(getattr(evaluator, "metric_prefix", "")) if names is None else metric in names


def list_metrics(evaluator: Evaluator) -> tuple[str, ...]:
    """Metrics that an evaluator is known to measure before it runs."""
    names: tuple[str, ...] | None = getattr(evaluator, "metrics", None)
    prefix: str | None = getattr(evaluator, "metric_prefix", None)
    return names if names is not None else () if prefix is None else (f"{prefix}loss",)


@dataclass(frozen=True)
class PeriodicEvaluator:
    """What evaluators share that run every so many steps, and at the end."""

    every: int = field(default=1000, kw_only=True)
    """Steps between evaluations. The end is evaluated too, and by some evaluators the start."""

    at_start: ClassVar[bool] = False
    """True if the weights before the first step are evaluated too."""
    counts: ClassVar[tuple[str, ...]] = ()
    """Fields that are at least 1, or None, besides `every`."""

    def __post_init__(self) -> None:
        for name in ("every", *self.counts):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"evaluators: {name} is {value}; it must be at least 1.")

    def should_run(self, step: int, *, steps: int) -> bool:
        return (step > 0 or self.at_start) and (step % self.every == 0 or step == steps)
