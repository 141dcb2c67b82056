"""The training loop."""

from typing import Any

import jax

from gptjax import report, startup
from gptjax.config import TrainConfig
from gptjax.core.serialization import Modules, to_json
from gptjax.data.loader import BatchLoader
from gptjax.run_dir import CHECKPOINTS, METRICS, run_lock, write_run_files
from gptjax.training.checkpoint import CheckpointManager
from gptjax.training.nonfinite import NonFiniteGuard
from gptjax.training.preemption import GracefulShutdown
from gptjax.training.saver import Saver


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
            batch_iterator = batches.iterate_from(start)
            guard = NonFiniteGuard(checkpoints, steps=config.steps, limit=config.max_consecutive_skips)
            metadata = {"config": to_json(config), "fingerprints": fingerprints}
            saver = Saver(checkpoints, config.checkpoint, steps=config.steps, metadata=metadata)
            stopped, loss, step = None, None, start
            for step in range(start, config.steps + 1):  # one more turn, to evaluate and save the last weights
                stopped = shutdown.get_signal(step)
                metrics: dict[str, Any] = {}
                for evaluator in evaluators.list_due(step, steps=config.steps) if not stopped else ():
                    with log.measure("evaluate"):
                        found = startup.evaluate_state(evaluator, state, config)
                    log.write(step, found)
                    metrics |= found
                loss = metrics.get(config.checkpoint.best_metric)
                if step > start and (stopped or (saver.is_due(step) and guard.allows_save(step, state=state))):
                    with log.measure("checkpoint"):
                        saver.save(step, state, loss=loss)
                if stopped or step == config.steps:
                    break
                with log.measure("data"):
                    batch = next(batch_iterator)
                state, step_metrics = train_step(step)(state, batch)  # dispatched, not awaited
                log.step(step + 1, step_metrics | batches.epochs(step + 1))  # writes the step before
                guard.check(step, step_metrics)
            if step > start:
                with log.measure("checkpoint"):
                    saver.finish(step, state, loss=loss)
    report.print_summary(config, command, stopped=stopped)
    return 128 + stopped if stopped else 0
