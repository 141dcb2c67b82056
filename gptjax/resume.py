"""What a run that resumes takes over from the run it goes on with."""

from dataclasses import replace
from typing import Any

from gptjax.config import TrainConfig
from gptjax.core.console import print_once
from gptjax.core.errors import UserError
from gptjax.core.serialization import Modules, from_json
from gptjax.run_dir import CHECKPOINTS
from gptjax.training.checkpoint_format import read_metadata
from gptjax.training.checkpoint_integrity import list_steps
from gptjax.training.stages import Stage


def read_saved_config(content: Any, config: TrainConfig, step: int, *, modules: Modules | None) -> TrainConfig:
    """The config of a checkpoint. A `UserError` says which class is missing."""
    try:
        return from_json(content, TrainConfig, modules=modules, trusted=config, where="its config")
    except UserError as error:
        raise UserError(
            f"{config.directory} cannot be resumed from step {step}: {error} "
            "Or resume with the config file of this run, if that defines it."
        ) from None


def find_saved_config(config: TrainConfig, modules: Modules | None = None) -> tuple[int, TrainConfig] | None:
    """(step, config) of the checkpoint that a run will go on from, if it can be read; damage is reported later."""
    for step in reversed(list_steps(config.directory / CHECKPOINTS)):
        if isinstance(config.resume, int) and step != config.resume:
            continue
        try:
            content = read_metadata(config.directory / CHECKPOINTS, step).get("config", {})
            return step, read_saved_config(content, config, step, modules=modules)
        except UserError:
            continue
    return None


def adopt_history(config: TrainConfig, modules: Modules | None = None) -> TrainConfig:
    """The config with the length of its schedules, and with the batches of the steps so far where a resume is forced.

    A schedule is as long as the steps at the run's first start, unless `schedule_steps` says otherwise. With
    `--resume=force` and another batch size, the steps so far become stages, so that no row is skipped or repeated.
    """
    found = find_saved_config(config, modules)
    if found is None:
        return replace(config, schedule_steps=config.schedule_length)
    step, saved = found
    if config.schedule_steps is None:
        config = replace(config, schedule_steps=saved.schedule_length)
    if config.resume == "force" and saved.history_until(step) != config.history_until(step):
        config = _keep_batches(saved, config, step)
    return config


def _keep_batches(saved: TrainConfig, wanted: TrainConfig, step: int) -> TrainConfig:
    """The wanted config from this step on, with the saved batches before it."""
    before = tuple(stage for stage in saved.stages if stage.begin < step)
    now = next(phase for phase in reversed(wanted.phases) if phase.begin <= step)
    change = Stage(
        step,
        batch_size=now.batch.size,
        grad_accum=now.batch.grad_accum,
        long_window=now.model.long_window,
        short_window=now.model.short_window,
        lr_scale=now.lr_scale,
    )
    later = tuple(stage for stage in wanted.stages if stage.begin > step)
    # Stages that leave the batch unset take the config's, which is the saved one from now on.
    later = tuple(
        replace(
            stage,
            batch_size=wanted.batch_size if stage.batch_size is None else stage.batch_size,
            grad_accum=wanted.grad_accum if stage.grad_accum is None else stage.grad_accum,
        )
        for stage in later
    )
    print_once(f"  --resume=force: the first {step:,} steps keep their batches; what follows reads the rows after them")
    return replace(wanted, batch_size=saved.batch_size, grad_accum=saved.grad_accum, stages=(*before, change, *later))


def describe_rate_change(saved: TrainConfig, config: TrainConfig, step: int) -> list[str]:
    """A line if the learning rate of the next step is not what it would have been."""
    old, new = (_rate_at(one, step) for one in (saved, config))
    if abs(old - new) <= 1e-6 * max(abs(old), abs(new)):
        return []
    return [f"  the learning rate of step {step + 1:,} is {new:.3e}; without the change it would be {old:.3e}"]


def _rate_at(config: TrainConfig, step: int) -> float:
    scale = next(phase.lr_scale for phase in reversed(config.phases) if phase.begin <= step)
    return scale * float(config.optimizer.learning_rate_at(step, steps=config.schedule_length))
