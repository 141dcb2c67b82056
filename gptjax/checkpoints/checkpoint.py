"""Saves training states while a run goes on, and restores them completely or not at all.

Orbax writes in the background. A kill or a power cut at any moment leaves complete checkpoints, and loses at most the
one that is being written. `gptjax.checkpoints.checkpoint_format` describes what is on disk.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.experimental import multihost_utils

from gptjax.checkpoints.checkpoint_format import (
    COUNTERS,
    DEFAULT_METRIC,
    EMA_ITEM,
    LOSS_SCALE,
    MODEL,
    OPTIMIZER,
    NamedArrays,
    check_path,
    find_best_step,
    flatten_by_name,
    has_item,
    make_save_args,
    read_items,
    read_metadata,
    report_write_errors,
    unflatten_by_name,
)
from gptjax.checkpoints.disk_space import check_space, count_bytes, describe_lack
from gptjax.checkpoints.integrity import UNFINISHED, commit_checkpoint, complete_steps, measure_logs, suggest_anew
from gptjax.checkpoints.joint_save import JointCheckpointer
from gptjax.checkpoints.rotation import ALL_DAMAGED, Choice, choose_step, clear_unfinished, list_kept, make_way, prune
from gptjax.core.directory_identity import DirectoryIdentity
from gptjax.core.errors import UserError
from gptjax.core.files import make_directories
from gptjax.core.lazy import LazyModule
from gptjax.process.console import print_once

if TYPE_CHECKING:
    from gptjax.model import gpt
    from gptjax.training import loss_scale
    from gptjax.training import state as training_state
else:
    # A config needs `CheckpointConfig` only.
    gpt = LazyModule("gptjax.model.gpt")
    loss_scale = LazyModule("gptjax.training.loss_scale")
    training_state = LazyModule("gptjax.training.state")


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves its state, and which checkpoints it keeps."""

    every: int | None = 1000
    """Steps between checkpoints. None saves only at the end, on a signal and by `every_minutes`."""
    every_minutes: float | None = None
    """Also save when this much time has passed since the last save."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint whose weights had the lowest `best_metric`."""
    keep_every: int | None = None
    """Also keep the checkpoints of all steps that this number divides, for good."""
    best_metric: str = DEFAULT_METRIC
    """The evaluation's metric that decides which checkpoint is `best`. Lower is better."""

    def __post_init__(self) -> None:
        for name in ("every", "keep", "keep_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"checkpoint.{name} is {value}; it must be at least 1.")
        if self.every_minutes is not None and not 0 < self.every_minutes < math.inf:
            raise UserError(f"checkpoint.every_minutes is {self.every_minutes}; it must be above 0 and finite.")

    def count_saves(
        self, existing: Collection[int], *, best: int | None, evaluates: bool, start: int, steps: int
    ) -> int:
        """The most checkpoints that a run from `start` on adds to these at a time, the one in writing included.

        `best` is the best of these, if one is. A run that `evaluates` may find another. It may save each step with
        `every_minutes`.
        """
        if start >= steps:
            return 0
        intervals = (None if self.every_minutes is None else 1, self.every, self.keep_every)
        due = {step for every in intervals if every for step in range(start - start % every + every, steps, every)}
        may_be_best = [step for step in existing if step == best]
        may_be_best += sorted(due) if self.keep_best and evaluates else []
        best = next((step for step in may_be_best if self.keep_every is None or step % self.keep_every), None)
        # No later save leaves fewer, so the last one finds most; or the first one does, before old ones are deleted.
        kept = list_kept([*existing, *due], best=best, keep=self.keep, keep_every=self.keep_every)
        return 1 + max(0, len(kept) - len(existing))

    @property
    def savings(self) -> list[str]:
        """The options with which a run keeps fewer checkpoints."""
        options = {"keep": self.keep > 1, "keep-best=False": self.keep_best, "keep-every=None": bool(self.keep_every)}
        return [f"--checkpoint.{option}" for option, saves in options.items() if saves]

    def should_save(self, step: int, *, steps: int) -> bool:
        """Whether a checkpoint is due after `step` of `steps`. After the last step one always is."""
        intervals = (self.every, self.keep_every)
        return step == steps or any(interval is not None and step % interval == 0 for interval in intervals)


class CheckpointManager:
    """The checkpoints of one run while it trains. As a context manager it waits for pending writes at the end."""

    def __init__(
        self, directory: Path, config: CheckpointConfig, *, list_logs: Callable[[], Iterable[Path]] = tuple
    ) -> None:
        """Open the directory. All processes must call this, and `clear` before the first save.

        `list_logs` finds the run's files to which lines are only added. What they hold at a save reaches the disk
        before the checkpoint counts.
        """
        check_path(directory)
        self._directory = Path(directory).absolute()
        self._list_logs = list_logs
        self._run: DirectoryIdentity | None = None
        """The first process, which names and removes directories, makes sure that they are still this run's."""
        if jax.process_index() == 0:
            make_directories(self._directory)
            self._run = DirectoryIdentity.read(self._directory.parent)
        self._config = config
        self._checkpointer = JointCheckpointer()
        self._background = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None
        self._attempts: Counter[int] = Counter()
        """How often each step was tried to save; the same in all processes."""
        self._choice = Choice()
        self._bytes = 0

    def check_space(self, state: "training_state.TrainState", *, steps: int, evaluates: bool) -> None:
        """See `disk_space.check_space`. It looks before the first save of a start, in the first process."""
        self._bytes, start = count_bytes(state), int(state.step)
        if jax.process_index() == 0 and not self._attempts:
            existing = [step for step in self.steps if step <= start]
            best = self.best if self._config.keep_best else None
            count = self._config.count_saves(existing, best=best, evaluates=evaluates, start=start, steps=steps)
            check_space(self._directory, count, nbytes=self._bytes, savings=self._config.savings)

    def clear(self, begin: Callable[[], object] = lambda: None) -> None:
        """Clear what a killed process left behind, and set aside what the chosen step does not go on from.

        All processes must call this. Each calls `begin` once all have come, and before anything moves.
        """
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints read")  # nothing moves while others read
        begin()
        if jax.process_index() == 0:
            clear_unfinished(self._directory, reported=self._choice.passed_over)
            make_way(self._directory, self._choice)
            self._choice = Choice()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._checkpointer.close()

    def save(
        self,
        step: int,
        state: "training_state.TrainState",
        *,
        metadata: dict[str, Any],
        best_value: float | None,
    ) -> None:
        """Save in the background. Returns once `state` may be donated; a step that exists already is not saved again.

        `metadata` is JSON. `best_value` is the value of `best_metric`. Raises a UserError if the previous save
        failed, or if a later step exists.
        """
        self.wait()
        newest = self._agree_on_newest()
        if step == newest:
            return
        if step < newest:
            raise UserError(
                f"{self._directory} has step {newest}, which is later than step {step} to be saved. Two runs "
                "would be mixed. Move the later checkpoints away, or choose another --name."
            )
        value = None if best_value is None or not math.isfinite(best_value) else float(best_value)
        path = self._directory / str(step)
        # Writes of a failed attempt may still end. They must not end in the directory of the next one.
        attempt, self._attempts[step] = self._attempts[step], self._attempts[step] + 1
        unfinished = self._directory / f"{step}{f'.{attempt}' if attempt else ''}{UNFINISHED}"
        self._bytes = count_bytes(state)
        with self._report_failed_save():
            args = make_save_args(
                _collect_items(state), metadata, step=step, best_value=value, best_metric=self._config.best_metric
            )
            self._checkpointer.save(unfinished, args, name=f"save {step} {attempt}", run=self._run)
        self._pending = self._background.submit(self._finish, path, unfinished, measure_logs(self._list_logs()))

    def check_place(self) -> None:
        """Raise an OSError on the first process if the run was moved. Another one may have its path."""
        if self._run is not None:
            self._run.check()

    def wait(self) -> None:
        """Wait until all saves are on disk. Raises a UserError if one could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._report_failed_save():
                pending.result()

    @property
    def has_finished(self) -> bool:
        """Whether a save that `wait` has not seen yet has ended, well or not."""
        return self._pending is not None and self._pending.done()

    def _finish(self, path: Path, unfinished: Path, logs: dict[Path, int]) -> None:
        def commit() -> None:
            self.check_place()
            commit_checkpoint(unfinished, path, logs=logs)

        self._checkpointer.finish(commit)
        if jax.process_index() == 0:
            config = self._config
            try:
                prune(self._directory, keep=config.keep, keep_best=config.keep_best, keep_every=config.keep_every)
                clear_unfinished(self._directory)  # of a save that failed
            except OSError as error:  # the step is saved
                where = error.filename or self._directory
                print_once(f"warning: checkpoints older than {path.name} cannot be deleted: {where}: {error.strerror}")

    @contextmanager
    def _report_failed_save(self) -> Iterator[None]:
        """Report a failed save once, remove what it wrote, and let the same step be saved again."""
        try:
            with report_write_errors(self._directory):
                yield
        except Exception as error:
            self._checkpointer.settle()
            with suppress(OSError):
                if self._run is not None and not self._run.is_replaced():
                    clear_unfinished(self._directory)
            lack = describe_lack(self._directory, str(error), nbytes=self._bytes)
            if isinstance(error, UserError) and lack:
                raise UserError(f"{error}{lack}") from error.__cause__
            raise

    def choose_step(self, back_to: int | None = None) -> int | None:
        """The newest step to go on from, agreed on by all processes; None if nothing was saved.

        It is `back_to` if that is given, once: where a `STEP.after_BACK_TO` exists, the run has gone back already and
        goes on. Damaged ones are passed over with a warning. Reads every byte of the chosen step. Nothing moves before
        `clear`.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        if jax.process_index() == 0:
            self._choice = choose_step(self._directory, back_to)
        chosen = self._choice.step
        if jax.process_count() > 1:
            chosen = int(multihost_utils.broadcast_one_to_all(-1 if chosen is None else chosen))
            chosen = None if chosen == -1 else chosen
        if chosen == ALL_DAMAGED:
            raise UserError(f"{self._directory} has no undamaged checkpoint left. {suggest_anew(self._directory)}")
        return chosen

    def restore(self, abstract: "training_state.TrainState", step: int) -> "training_state.TrainState":
        """Read the state of `step`, with the shapes, types and shardings of `abstract` (see `abstract_state`).

        A checkpoint of a run that was not in float16 has no scale of the loss, so it begins anew.
        """
        has_scale = has_item(self._directory, step, item=LOSS_SCALE)
        expected = abstract if has_scale else replace(abstract, loss_scale=None)
        items = read_items(self._directory, step, items=_collect_items(expected))
        counters = items[COUNTERS]
        return training_state.TrainState(
            step=counters["step"],
            model=unflatten_by_name(abstract.model, items[MODEL]),
            optimizer=unflatten_by_name(abstract.optimizer, items[OPTIMIZER]),
            skipped=counters["skipped"],
            consecutive_skips=counters["consecutive_skips"],
            ema=unflatten_by_name(abstract.ema, items.get(EMA_ITEM, {})),
            loss_scale=unflatten_by_name(expected.loss_scale, items.get(LOSS_SCALE, {}))
            if has_scale
            else _begin_loss_scale(abstract.loss_scale),
        )

    def has_ema_item(self, step: int) -> bool:
        """Whether an average of the weights was saved at `step`."""
        return has_item(self._directory, step, item=EMA_ITEM)

    def read_metadata(self, step: int) -> dict[str, Any]:
        """The metadata that was saved at `step`, with `step`, `best_value` and `format_version`."""
        return read_metadata(self._directory, step)

    def _agree_on_newest(self) -> int:
        """The newest complete step; -1 without any. Other hosts may see a shared disk as it was seconds before."""
        is_known = self._run is not None and not self._run.is_replaced()
        newest = self.latest if is_known and self.latest is not None else -1
        return int(multihost_utils.broadcast_one_to_all(newest)) if jax.process_count() > 1 else newest

    @property
    def steps(self) -> list[int]:
        """The complete steps on disk, ascending."""
        return complete_steps(self._directory)

    @property
    def latest(self) -> int | None:
        """The newest complete step; None if there is none."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step with the lowest validation loss; None if no step has one."""
        return find_best_step(self._directory)


def _collect_items(state: "training_state.TrainState") -> dict[str, NamedArrays]:
    items = {
        MODEL: flatten_by_name(state.model),
        OPTIMIZER: flatten_by_name(state.optimizer),
        COUNTERS: {"step": state.step, "skipped": state.skipped, "consecutive_skips": state.consecutive_skips},
    }
    optional = {EMA_ITEM: state.ema, LOSS_SCALE: state.loss_scale}
    return items | {item: flatten_by_name(tree) for item, tree in optional.items() if tree is not None}


def _begin_loss_scale(abstract: "loss_scale.LossScale | None") -> "loss_scale.LossScale | None":
    """A new scale with the shardings of `abstract`; None if that is."""
    if abstract is None:
        return None
    place = lambda array, target: jax.device_put(array, target.sharding)
    return jax.tree.map(place, loss_scale.LossScale.create(), abstract)
