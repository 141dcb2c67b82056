"""Whether the files that a run reads are as they were when it began to read them."""

from collections.abc import Callable

from gptjax.config import TrainConfig
from gptjax.data.source import DataSource
from gptjax.objectives.preference import ReferenceObjective
from gptjax.runs.reference import watch_reference


def make_data_check(config: TrainConfig) -> Callable[[], None]:
    """A function that raises a `UserError` if what the run or an evaluator reads has changed since it was opened."""
    others = (getattr(evaluator, "data", None) for evaluator in config.evaluators)
    sources = [config.data, *(data.resolve() for data in others if isinstance(data, DataSource))]
    checks = [source.check for source in sources]
    if isinstance(config.objective, ReferenceObjective):
        checks.append(watch_reference(config.directory))

    def check() -> None:
        for each in checks:
            each()

    return check
