"""The training loop."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax

from gptjax.checkpoints.checkpoint import CheckpointManager
from gptjax.checkpoints.saver import Saver
from gptjax.config import TrainConfig
from gptjax.core.serialization import Modules, to_json
from gptjax.data.loader import BatchLoader
from gptjax.data.source import ReadSpec, RowReader
from gptjax.evaluators.evaluator import Evaluators, may_measure
from gptjax.evaluators.metric_names import check_best_metric
from gptjax.metrics.logger import MetricLogger
from gptjax.process import restarts
from gptjax.process.console import print_once
from gptjax.process.early_exit import stop_status
from gptjax.process.lost_signals import unwrap
from gptjax.process.process_end import exit_process, has_peers
from gptjax.runs import report, startup
from gptjax.runs.data_check import make_data_check
from gptjax.runs.reference import FrozenModel, prepare_frozen_model
from gptjax.runs.refused_start import check_place, hold_run
from gptjax.runs.resume import Fingerprints, choose_saved_run, restore_state
from gptjax.runs.rollback import roll_back
from gptjax.runs.run_dir import CHECKPOINTS
from gptjax.runs.run_sums import begin_run, list_logs, seal_run
from gptjax.runs.same_command import check_same_command, check_same_content
from gptjax.sharding.distributed import count_processes, name_process
from gptjax.sharding.mesh import MeshConfig
from gptjax.supervision.divergence import Diverged, DivergenceGuard
from gptjax.supervision.signals import GracefulShutdown, StopRequested
from gptjax.supervision.stopping import Stop, StopRules
from gptjax.supervision.watchdog import Watchdog
from gptjax.tokenization.tokenizer import Tokenizer
from gptjax.training.state import TrainState


def train(
    config: TrainConfig,
    *,
    modules: Modules | None = None,
    source: str | None = None,
    command: str = "python -m gptjax.train",
    explicit_fields: Collection[str] = (),
) -> int:
    """Train to the last step, or until a signal. Everything is saved in either case.

    Args:
        modules: where a saved config of this run finds classes of the user's own, besides those of `config`.
        source: text of the config file, kept with the run.
        command: what resumes the run, for messages.
        explicit_fields: paths of fields that the command line has set, such as `model.context_length`.

    Returns:
        0, or the status of `stop_status` after a signal: 130 after Ctrl-C, 143 after SIGTERM, 75 after SIGUSR1.
    """
    watchdog = Watchdog(config.hang_seconds, resume=command, process=name_process(), several=count_processes() > 1)
    with contextlib.ExitStack() as held:  # until the last sums, no other command writes to the run
        with GracefulShutdown() as shutdown, watchdog:
            try:
                with unwrap(StopRequested):
                    config, stopped = _train(
                        config,
                        modules,
                        source=source,
                        explicit_fields=explicit_fields,
                        shutdown=shutdown,
                        watchdog=watchdog,
                        held=held,
                    )
            except StopRequested as stop:
                shutdown.wait_for_announcement()
                return _stop_before_begin(stop, shutdown.place, command)
        if stopped is not None and stopped.signal is None:
            print_once(f"stopped: {stopped.reason}")
        report.print_summary(config, command, stopped=stopped)
        if jax.process_index() == 0:
            seal_run(config.directory)
    return 0 if stopped is None else stopped.status


def _stop_before_begin(stop: StopRequested, place: str, command: str) -> int:
    """Say that nothing was to be saved, and return the status."""
    print_once(f"stopped {place}: nothing was to be saved. Resume with: {command}")
    if has_peers():
        exit_process(stop_status(stop.number), f"stopped {place} by {signal.Signals(stop.number).name}")
    return stop_status(stop.number)


def _train(
    config: TrainConfig,
    modules: Modules | None,
    *,
    source: str | None,
    explicit_fields: Collection[str],
    shutdown: GracefulShutdown,
    watchdog: Watchdog,
    held: contextlib.ExitStack,
) -> tuple[TrainConfig, Stop | None]:
    """Train; returns the resolved config and why the run ended early, if it did. `held` takes the run's lock."""
    started_at = time.monotonic()
    config, tokenizer = startup.prepare_config(config, modules, explicit_fields=explicit_fields)
    read_spec = startup.make_read_spec(config, tokenizer)
    reader = config.data.open(read_spec)
    mesh = config.mesh.resolve(jax.device_count())
    config = startup.prepare_device(config, modules)
    validation = _check_parts(config, tokenizer, mesh)
    end_start = held.enter_context(hold_run(config.directory))
    with mesh.activate(), _open_checkpoints(config) as checkpoints:
        report.keep_output(config)
        fingerprints = startup.collect_fingerprints(config.data, reader, tokenizer)
        fingerprints["validation"] = validation
        check_same_command(config, fingerprints)
        config, saved = choose_saved_run(config, checkpoints, fingerprints, modules)
        frozen = prepare_frozen_model(config, read_spec, mesh, saved=saved, modules=modules)
        if frozen.fingerprints:
            read_spec, reader = frozen.read_spec, config.data.open(frozen.read_spec)
        evaluators = startup.open_evaluators(config, tokenizer, mesh, frozen=frozen.model, read_spec=read_spec)
        opened = {"validation": evaluators.validation_fingerprint} | frozen.fingerprints
        check_same_content(opened)
        fingerprints |= opened
        return _Run(
            mesh=mesh,
            tokenizer=tokenizer,
            evaluators=evaluators,
            frozen=frozen,
            fingerprints=fingerprints,
            checkpoints=checkpoints,
            shutdown=shutdown,
            watchdog=watchdog,
            started_at=started_at,
            end_start=end_start,
            modules=modules,
            source=source,
        ).train(config, reader, read_spec, step=saved and saved.step)


def _check_parts(config: TrainConfig, tokenizer: Tokenizer | None, mesh: MeshConfig) -> str | None:
    """Refuse what can be refused before anything is written or computed; returns the identity of the validation."""
    check_place(config.directory)
    config.check_mesh(mesh)
    config.log.check()
    return startup.check_evaluators(config, tokenizer, mesh)


def _open_checkpoints(config: TrainConfig) -> CheckpointManager:
    """The checkpoints of a run, whose logs reach the disk before one of them counts."""
    logs = partial(list_logs, config.directory)
    return CheckpointManager(config.directory / CHECKPOINTS, config.checkpoint, list_logs=logs)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same when a run goes back."""

    mesh: MeshConfig
    tokenizer: Tokenizer | None
    evaluators: Evaluators
    frozen: FrozenModel
    fingerprints: Fingerprints
    checkpoints: CheckpointManager
    shutdown: GracefulShutdown
    watchdog: Watchdog
    started_at: float
    """When this process began, by `time.monotonic`."""
    end_start: Callable[[], None]
    """Called before the run's files are written: from then on they stay."""
    modules: Modules | None
    source: str | None
    programs: startup.Programs = field(default_factory=dict)

    def train(
        self, config: TrainConfig, reader: RowReader, read_spec: ReadSpec, *, step: int | None
    ) -> tuple[TrainConfig, Stop | None]:
        """Train from the checkpoint at `step`, and go back after a divergence as often as the config allows."""
        record: dict[str, Any] | None = None
        while True:
            try:
                batches = BatchLoader(reader, read_spec, mesh=self.mesh)
                return config, self._train_from_checkpoint(config, batches, step, rollback_record=record)
            except Diverged as divergence:
                self.shutdown.pause_training("while going back")
                with self.watchdog.doing("start"):
                    config, record = roll_back(
                        config, self.checkpoints, divergence, tokenizer=self.tokenizer, source=self.source
                    )
                    step = self.checkpoints.choose_step()
            read_spec = replace(read_spec, row_offsets=config.row_offsets)
            reader = config.data.open(read_spec)

    def _train_from_checkpoint(
        self, config: TrainConfig, batches: BatchLoader, step: int | None, *, rollback_record: Mapping[str, Any] | None
    ) -> Stop | None:
        """Train from the checkpoint at `step`, or from step 0; returns why the run ends early, if it does.

        `rollback_record` is recorded at the step from which the run goes on. Raises `Diverged` to go back.
        """
        mesh, checkpoints = self.mesh, self.checkpoints
        started_at = self.started_at if rollback_record is None else time.monotonic()
        with self.watchdog.doing("start"):
            state = restore_state(config, checkpoints, step, self.fingerprints, mesh, self.modules)
            state = state or startup.initialize_state(config, mesh, modules=self.modules)
            start = int(state.step)
            checkpoints.check_space(state, steps=config.steps, evaluates=bool(self.evaluators.opened))
            checkpoints.clear(self.end_start)  # until all have their state, one that is refused undoes the start
        if rollback_record is None:
            begin_run(config, self.tokenizer, source=self.source)
            report.describe_run(config, mesh, batches, self.evaluators, start=start)
        with startup.open_logger(config, mesh, start, seconds=time.monotonic() - started_at) as log:
            if rollback_record is not None:
                log.write(start, rollback_record, is_event=True)
            with log.measure("compile"), self.watchdog.doing("compile"):
                train_step = startup.compile_steps(
                    config, mesh, state, batches, start=start, frozen=self.frozen.model, programs=self.programs
                )
            metadata = {"config": to_json(config), "fingerprints": self.fingerprints}
            loop = _Loop(
                config=config,
                evaluators=self.evaluators,
                batches=batches,
                train_step=train_step,
                log=log,
                saver=_make_saver(config, checkpoints, metadata),
                guard=_make_guard(config, checkpoints, start=start, rollback_record=rollback_record),
                watchdog=self.watchdog,
            )
            began_at = restarts.began_at() or self.started_at  # max_time counts all starts of one command
            return loop.run(state, self.shutdown, _make_rules(config, self.shutdown, start=start, began_at=began_at))


def _make_saver(config: TrainConfig, checkpoints: CheckpointManager, metadata: dict[str, Any]) -> Saver:
    check = make_data_check(config)
    return Saver(checkpoints, config.checkpoint, steps=config.steps, metadata=metadata, check_data=check)


def _make_guard(
    config: TrainConfig, checkpoints: CheckpointManager, *, start: int, rollback_record: Mapping[str, Any] | None
) -> DivergenceGuard:
    """Losses up to step `start` and earlier rollbacks count, so that a resumed run decides as an uninterrupted one."""
    records = (
        [rollback_record["rollbacks"]]
        if rollback_record
        else startup.read_values(config, "rollbacks", before=start + 1)
    )
    has_median = config.rollback.spike_factor is not None
    return DivergenceGuard(
        checkpoints,
        steps=config.steps,
        limit=config.max_consecutive_skips,
        rollback=config.rollback,
        rollbacks=int(max(filter(math.isfinite, records), default=0)),
        losses=startup.read_values(config, "loss", before=start + 1) if has_median else (),
    )


def _make_rules(config: TrainConfig, shutdown: GracefulShutdown, *, start: int, began_at: float) -> StopRules:
    """The reasons to stop early; evaluations before `start` count."""
    return StopRules(
        shutdown,
        max_seconds=config.max_seconds,
        patience=config.patience,
        history=startup.read_values(config, config.checkpoint.best_metric, before=start),
        began_at=began_at,
    )


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """What the steps of a run need."""

    config: TrainConfig
    evaluators: Evaluators
    batches: BatchLoader
    train_step: Callable[[int], Any]
    log: MetricLogger
    saver: Saver
    guard: DivergenceGuard
    watchdog: Watchdog

    def run(self, state: TrainState, shutdown: GracefulShutdown, rules: StopRules) -> Stop | None:
        """Train from `state` to the last step, or until there is a reason to stop. The end is saved."""
        start, steps = int(state.step), self.config.steps
        batch_iterator = self.batches.iterate_from(start)
        for step in range(start, steps + 1):  # one more turn, to evaluate and save the last weights
            loss, stopped = None, rules.check(step, is_first=step == start)
            if stopped is None:
                loss, stopped = self._evaluate(step, state, shutdown)
                stopped = stopped or rules.check_loss(loss)
            if step > start and (stopped or self._should_save(step, state)):
                with self._measure("checkpoint"):
                    self.saver.save(step, state, loss=loss)
            if stopped or step == steps:
                self.watchdog.finish()
                if step > start:
                    with self._measure("checkpoint"):
                        self.saver.finish(step, state, loss=loss)
                    print_once(f"saved step {step:,} in {self.config.directory}")
                return stopped
            if step == start:  # there was nothing to save before
                shutdown.begin_training()
            with self._measure("data"):
                batch = next(batch_iterator)
            state, metrics = self.train_step(step)(state, batch)  # dispatched, not awaited
            self.log.step(step + 1, metrics | self.batches.epochs(step + 1))  # writes the step before
            self.guard.check(step, metrics)
            self.watchdog.begin_step(step + 1)
        return None

    @contextlib.contextmanager
    def _measure(self, kind: str) -> Iterator[None]:
        """What the main thread does, for the log and for the watchdog."""
        with self.log.measure(kind), self.watchdog.doing(kind):
            yield

    def _evaluate(self, step: int, state: TrainState, shutdown: GracefulShutdown) -> tuple[float | None, Stop | None]:
        """(the value of `best_metric`, if it was measured, the signal that cut the evaluation short)."""
        loss, measured = None, set[str]()
        for evaluator in self.evaluators.list_due(step, steps=self.config.steps):
            try:
                with self._measure("evaluate"), shutdown.interruptible():
                    found = startup.evaluate_state(evaluator, state, self.config)
            except StopRequested as stop:
                return loss, Stop.by_signal(stop.number)
            self.log.write(step, found)
            measured |= {name for name, value in found.items() if isinstance(value, float)}
            value = found.get(self.config.checkpoint.best_metric)
            loss = value if isinstance(value, float) else loss
        if measured and loss is None and step < self.config.steps:  # at the end it would only cost the last save
            self._check_best_metric(step, measured)
        return loss, None

    def _check_best_metric(self, step: int, measured: set[str]) -> None:
        """Refuse a metric that nothing measures, once all evaluators have run that could."""
        config, metric = self.config, self.config.checkpoint.best_metric
        possible = [evaluator for evaluator in config.evaluators if may_measure(evaluator, metric)]
        is_known = bool(startup.read_values(config, metric, before=step))
        if not is_known and all(evaluator.should_run(step, steps=config.steps) for evaluator in possible):
            check_best_metric(metric, measured, patience=config.patience)

    def _should_save(self, step: int, state: TrainState) -> bool:
        return self.saver.is_due(step) and self.guard.allows_save(step, state=state)
