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
from gptjax.run_dir import CHECKPOINTS, run_lock, write_run_files
from gptjax.startup import Evaluators
from gptjax.training.checkpoint import CheckpointManager
from gptjax.training.evaluators import Metrics
from gptjax.training.nonfinite import NonFiniteGuard
from gptjax.training.preemption import GracefulShutdown
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
        CheckpointManager(config.directory / CHECKPOINTS, config.checkpoint) as checkpoints,
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
        metadata = {"config": to_json(config), "fingerprints": fingerprints}
        with startup.open_logger(config, mesh, start) as log:
            with log.measure("compile"):
                train_step = startup.compile_steps(config, mesh, state, batches, start=start)
            loop = TrainingLoop(config, state, batches, train_step, evaluators, checkpoints, metadata, log, shutdown)
            del state  # the loop replaces it
            stopped = loop.run()
            with log.measure("checkpoint"):
                checkpoints.wait()
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
    checkpoints: CheckpointManager
    metadata: dict[str, Any]
    """Saved with each checkpoint."""
    log: MetricLogger
    shutdown: GracefulShutdown

    def run(self) -> int | None:
        """Train to the last step, or until a signal, which is returned. The last weights are saved in either case."""
        config, log, start = self.config, self.log, int(self.state.step)
        batches = self.batches.iterate_from(start)
        guard = NonFiniteGuard(self.checkpoints, steps=config.steps, limit=config.max_consecutive_skips)
        for step in range(start, config.steps + 1):  # one more turn, to evaluate and save the last weights
            stopped = self.shutdown.get_signal(step)
            metrics = {} if stopped else self.evaluate(step)
            if step > start and (stopped or guard.should_save(config.checkpoint, step, state=self.state)):
                self.save(step, metrics)
            if stopped or step == config.steps:
                return stopped
            with log.measure("data"):
                batch = next(batches)
            self.state, step_metrics = self.train_step(step)(self.state, batch)  # dispatched, not awaited
            log.step(step + 1, step_metrics | self.batches.epochs(step + 1))  # writes the step before
            guard.check(step, step_metrics)
        return None

    def evaluate(self, step: int) -> Metrics:
        """Metrics of the evaluators that run on the weights after `step` updates."""
        metrics: Metrics = {}
        for evaluator in self.evaluators.list_due(step, steps=self.config.steps):
            with self.log.measure("evaluate"):
                found = startup.evaluate_state(evaluator, self.state, self.config)
            self.log.write(step, found)
            metrics |= found
        return metrics

    def save(self, step: int, metrics: Metrics) -> None:
        """Save a checkpoint. Its `val_loss`, if there is one, decides whether it is the best."""
        val_loss = metrics.get("val_loss")
        assert not isinstance(val_loss, str)
        with self.log.measure("checkpoint"):
            self.checkpoints.save(step, self.state, metadata=self.metadata, val_loss=val_loss)
