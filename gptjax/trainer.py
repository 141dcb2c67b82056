"""The training loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from gptjax import report, startup
from gptjax.config import TrainConfig
from gptjax.core.serialization import Modules, to_json
from gptjax.data.loader import BatchLoader
from gptjax.metrics.logger import MetricLogger
from gptjax.run_dir import CHECKPOINTS, METRICS, run_lock, write_run_files
from gptjax.startup import Evaluators
from gptjax.training.checkpoint import CheckpointManager
from gptjax.training.nonfinite import NonFiniteGuard
from gptjax.training.preemption import GracefulShutdown
from gptjax.training.saver import Saver
from gptjax.training.state import TrainState


def train(
    config: TrainConfig,
    *,
    modules: Modules | None = None,
    source: str | None = None,
    command: str = "python -m gptjax.train",
) -> int:
    """Train to the last step, or until a signal. Everything is saved in either case.

    Args:
        modules: where a saved config of this run finds classes of the user's own, besides those of `config`.
        source: text of the config file, kept with the run.
        command: what a person typed, for the summary.

    Returns:
        0, or 130 after Ctrl-C and 143 after SIGTERM (in several processes, after either).
    """
    config, tokenizer = startup.prepare_config(config, modules)
    read_spec = startup.make_read_spec(config, tokenizer)
    reader = config.data.open(read_spec)
    mesh = config.mesh.resolve(jax.device_count())
    config = startup.prepare_device(config)
    config.check_mesh(mesh)
    with (
        mesh.activate(),
        run_lock(config.directory),
        GracefulShutdown() as shutdown,
        CheckpointManager(
            config.directory / CHECKPOINTS, config.checkpoint, record=config.directory / METRICS
        ) as checkpoints,
    ):
        evaluators = startup.open_evaluators(config, tokenizer, mesh)
        fingerprints = startup.collect_fingerprints(config.data, reader, evaluators, tokenizer)
        state = startup.restore_state(config, checkpoints, fingerprints, mesh, modules)
        state = state or startup.initialize_state(config, mesh)
        start = int(state.step)
        if jax.process_index() == 0:
            write_run_files(config.directory, config, tokenizer, source=source)
        batches = BatchLoader(reader, read_spec, mesh=mesh)
        report.describe_run(config, mesh, batches, evaluators)
        with startup.open_logger(config, mesh, start) as log:
            with log.measure("compile"):
                train_step = startup.compile_steps(config, mesh, state, batches, start=start)
            metadata = {"config": to_json(config), "fingerprints": fingerprints}
            saver = Saver(checkpoints, config.checkpoint, steps=config.steps, metadata=metadata)
            guard = NonFiniteGuard(checkpoints, steps=config.steps, limit=config.max_consecutive_skips)
            loop = TrainingLoop(config, state, batches, train_step, evaluators, saver, guard, log, shutdown)
            del state  # the loop replaces it
            stopped = loop.run()
    report.print_summary(config, command, stopped=stopped)
    return 128 + stopped if stopped else 0


@dataclass
class TrainingLoop:
    """The loop over the steps, with all that it reads."""

    config: TrainConfig
    state: TrainState
    batches: BatchLoader
    train_step: Callable[[int], Any]
    """Step number → the compiled training step."""
    evaluators: Evaluators
    saver: Saver
    guard: NonFiniteGuard
    log: MetricLogger
    shutdown: GracefulShutdown

    def run(self) -> int | None:
        """Train to the last step, or until a signal, which is returned. The last weights are saved in either case."""
        config, log, start = self.config, self.log, int(self.state.step)
        batches = self.batches.iterate_from(start)
        for step in range(start, config.steps + 1):  # one more turn, to evaluate and save the last weights
            stopped = self.shutdown.get_signal(step)
            loss = None if stopped else self.evaluate(step)
            if step > start and (stopped or self.should_save(step)):
                with log.measure("checkpoint"):
                    self.saver.save(step, self.state, loss=loss)
            if stopped or step == config.steps:
                if step > start:
                    with log.measure("checkpoint"):
                        self.saver.finish(step, self.state, loss=loss)
                return stopped
            with log.measure("data"):
                batch = next(batches)
            self.state, metrics = self.train_step(step)(self.state, batch)  # dispatched, not awaited
            log.step(step + 1, metrics | self.batches.epochs(step + 1))  # writes the step before
            self.guard.check(step, metrics)
        return None

    def should_save(self, step: int) -> bool:
        return self.saver.is_due(step) and self.guard.allows_save(step, state=self.state)

    def evaluate(self, step: int) -> Any:
        """Run the evaluators that are due after `step` updates. Returns the metric by which the best is chosen."""
        loss = None
        for evaluator in self.evaluators.list_due(step, steps=self.config.steps):
            with self.log.measure("evaluate"):
                metrics = startup.evaluate_state(evaluator, self.state, self.config)
            self.log.write(step, metrics)
            loss = metrics.get(self.config.checkpoint.best_metric, loss)
        return loss
