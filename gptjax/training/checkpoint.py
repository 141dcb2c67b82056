"""Saves training states while a run goes on, and restores them completely or not at all.

Orbax writes in the background. A kill at any moment leaves complete checkpoints, and loses at most the one that is
being written. `gptjax.training.checkpoint_format` describes what is on disk.
"""

import math
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.experimental import multihost_utils

from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.training.checkpoint_format import (
    COUNTERS,
    EMA_ITEM,
    LOSS_SCALE,
    MODEL,
    OPTIMIZER,
    NamedArrays,
    complete_steps,
    find_best_step,
    flatten_by_name,
    has_item,
    is_complete,
    make_handlers,
    make_save_args,
    read_items,
    read_metadata,
    report_write_errors,
    unflatten_by_name,
)

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

    from gptjax.model import gpt
    from gptjax.training import loss_scale
    from gptjax.training import state as training_state
else:
    # A config needs `CheckpointConfig` only.
    ocp = LazyModule("orbax.checkpoint")
    gpt = LazyModule("gptjax.model.gpt")
    loss_scale = LazyModule("gptjax.training.loss_scale")
    training_state = LazyModule("gptjax.training.state")

_ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"
_DELETED = ".deleted"


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves its state, and which checkpoints it keeps."""

    every: int | None = 1000
    """Steps between checkpoints. None saves only at the end and on a signal."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest validation loss."""

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"checkpoint.{name} is {value}; it must be at least 1.")

    def should_save(self, step: int, *, steps: int) -> bool:
        """Whether a checkpoint is due after `step` of `steps`. After the last step one always is."""
        return step == steps or (self.every is not None and step % self.every == 0)


class CheckpointManager:
    """The checkpoints of one run while it trains. As a context manager it waits for pending writes at the end."""

    def __init__(self, directory: Path, config: CheckpointConfig) -> None:
        """Open the directory and clear what a killed process left behind. All processes must call this."""
        self._directory = Path(directory).absolute()
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            _clear_unfinished(self._directory)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints cleared")
        # In the background, a directory that cannot be created is noticed only after minutes of waiting for it.
        async_options = ocp.AsyncOptions(create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(create=False, async_options=async_options)
        self._manager = ocp.CheckpointManager(self._directory, item_handlers=make_handlers(), options=options)
        self._config = config
        self._background = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._manager.close()

    def save(
        self, step: int, state: "training_state.TrainState", *, metadata: dict[str, Any], val_loss: float | None
    ) -> None:
        """Save in the background. Returns once `state` may be donated; a step that exists already is not saved again.

        `metadata` is JSON. Raises a UserError if the previous save failed, or if a later step exists.
        """
        self.wait()
        existing = self._manager.all_steps()
        if step in existing:
            return
        if existing and step < max(existing):
            raise UserError(
                f"{self._directory} has step {max(existing)}, which is later than step {step} to be saved. Two runs "
                "would be mixed. Move the later checkpoints away, or choose another --name."
            )
        loss = None if val_loss is None or not math.isfinite(val_loss) else float(val_loss)
        with self._report_failed_save():
            args = make_save_args(_collect_items(state), metadata, step=step, val_loss=loss)
            self._manager.save(step, args=args, force=True)
        self._pending = self._background.submit(self._finish)

    def wait(self) -> None:
        """Wait until all saves are on disk. Raises a UserError if one could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._report_failed_save():
                pending.result()

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            _prune(self._directory, self._config)

    @contextmanager
    def _report_failed_save(self) -> Iterator[None]:
        """Report a failed save once, and let the same step be saved again."""
        try:
            with report_write_errors(self._directory):
                yield
        except Exception:
            with suppress(Exception):  # Orbax raises once in each thread, and would raise in this one at the next save
                self._manager.wait_until_finished()
            self._manager.reload()
            raise

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
        """The metadata that was saved at `step`, with `step`, `val_loss` and `format_version`."""
        return read_metadata(self._directory, step)

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


def restore_model(directory: Path, abstract_model: "gpt.GPT", *, step: int, item: str = MODEL) -> "gpt.GPT":
    """Read only the weights of a checkpoint, or their average (`item=EMA_ITEM`), sharded as `abstract_model` is.

    Call it under `mesh.activate()`.
    """
    target = jax.tree.map(training_state.with_sharding, abstract_model)
    return unflatten_by_name(target, read_items(directory, step, items={item: flatten_by_name(target)})[item])


def save_model(directory: Path, model: "gpt.GPT", *, step: int, metadata: dict[str, Any]) -> None:
    """Write a checkpoint with weights only. Returns when it is on disk."""
    args = make_save_args({MODEL: flatten_by_name(model)}, metadata, step=step)
    handler = ocp.CompositeCheckpointHandler(**make_handlers())
    with report_write_errors(directory), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(Path(directory).absolute() / str(step), args=args)


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


def _prune(directory: Path, config: CheckpointConfig) -> None:
    """Delete the checkpoints that need not be kept.

    Each is renamed first: a deletion in place that is killed would leave a directory that looks complete. Orbax can
    rename too, but never deletes afterwards, and would need a second copy of the validation loss.
    """
    steps = complete_steps(directory)
    kept = {*steps[-config.keep :], *([find_best_step(directory)] if config.keep_best else [])}
    for step in set(steps) - kept:
        renamed = directory / f"{step}{_DELETED}"
        (directory / str(step)).rename(renamed)
        shutil.rmtree(renamed)


def _clear_unfinished(directory: Path) -> None:
    """Delete the remains of killed saves and deletions; rename an incomplete step, such as an unfinished copy."""
    for path in directory.iterdir():
        if _ORBAX_TEMPORARY in path.name or path.name.endswith(_DELETED):
            shutil.rmtree(path)
        elif path.name.isdecimal() and not is_complete(path):
            renamed = path.with_name(f"{path.name}.incomplete")
            shutil.rmtree(renamed, ignore_errors=True)
            path.rename(renamed)
