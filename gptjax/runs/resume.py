"""What a run that resumes takes over, and whether it would learn something else from there on."""

from dataclasses import replace
from typing import Any, NamedTuple

from gptjax.checkpoints.checkpoint import CheckpointManager
from gptjax.checkpoints.checkpoint_format import read_metadata
from gptjax.checkpoints.integrity import find_damage_once, is_complete, list_steps
from gptjax.checkpoints.rotation import check_roll_back, find_last_kept
from gptjax.config import TrainConfig, compare_configs
from gptjax.core.errors import UserError, count_of
from gptjax.core.provenance import describe_environment_change
from gptjax.core.serialization import Modules, from_json
from gptjax.process.console import print_once
from gptjax.runs.forced_resume import find_obstacle, shorten_fingerprint
from gptjax.runs.rollback import adopt_offsets
from gptjax.runs.run_dir import CHECKPOINTS, ENVIRONMENT
from gptjax.sharding.devices import list_device_kinds
from gptjax.sharding.mesh import MeshConfig
from gptjax.training import state as training_state
from gptjax.training.stages import Phase, Stage
from gptjax.training.state import TrainState

Fingerprints = dict[str, str | None]
"""Identities of what a run learns from, by name. None: there is none, such as no tokenizer."""


class SavedRun(NamedTuple):
    """What the checkpoint says from which a run goes on."""

    step: int
    config: TrainConfig
    fingerprints: Fingerprints


def check_same_run(config: TrainConfig, saved: SavedRun, fingerprints: Fingerprints) -> list[str]:
    """The changes of a run that goes on, a line each. Raises `UserError` where it would not be the same run.

    Only these fingerprints are compared: a part of them is known before a reference is stored.
    """
    if config.resume == "never":
        raise UserError(
            f"{config.directory} has a checkpoint at step {saved.step} and resume is `never`. Choose another --name."
        )
    if saved.step > config.steps:
        raise UserError(
            f"{config.directory} is at step {saved.step} already, beyond steps {config.steps}. Give more --steps."
        )
    reported, refused = compare_configs(saved.config, config)
    refused += _compare_history(saved.config, config, saved.step)
    refused += _compare_fingerprints(saved.fingerprints, fingerprints)
    tokenizers = saved.fingerprints.get("tokenizer"), fingerprints.get("tokenizer")
    obstacle = find_obstacle(saved.config, config, saved.step, tokenizers) if refused else None
    if obstacle is not None and config.resume == "force":
        raise UserError(obstacle)
    if refused and config.resume != "force":
        advice = obstacle or (
            f"Undo the change, choose another --name, or {_advise_force(config.resume)}. Stages (docs/resume.md) "
            "change the batch, the windows or the rate from a step on."
        )
        listed = "\n  ".join(refused)
        raise UserError(f"{config.directory} holds a run that learned something else:\n  {listed}\n{advice}")
    return reported + refused


def _advise_force(resume: str | int) -> str:
    """How a change is forced, where it can be."""
    if isinstance(resume, str):
        return "resume in any case with --resume=force"
    return (
        f"go back first: the command of this run without the change, with --resume={resume} --steps={resume}. "
        f"Then this command with --resume=force in place of --resume={resume} makes the change"
    )


def restore_state(
    config: TrainConfig,
    checkpoints: CheckpointManager,
    step: int | None,
    fingerprints: Fingerprints,
    mesh: MeshConfig,
    modules: Modules | None = None,
) -> TrainState | None:
    """The state of the checkpoint at `step`; None without one. Raises where it would not be the same run."""
    if step is None:
        return None
    saved = _read_saved_run(checkpoints.read_metadata(step), config, step, modules=modules)
    changes = check_same_run(config, saved, fingerprints)
    print_once(f"resuming {config.directory} at step {step:,}", *(f"  changed: {line}" for line in changes))
    print_once(*_describe_end(config, step), *describe_rate_change(saved.config, config, step))
    print_once(*describe_other_rows(saved, config, fingerprints))
    if difference := describe_environment_change(config.directory / ENVIRONMENT, list_device_kinds()):
        print_once(f"  not bit for bit from here on: {difference}")
    optimizer = config.optimizer.build(steps=config.schedule_length, mesh=mesh)
    wanted, there = config.ema.enabled, checkpoints.has_ema_item(step)
    has_ema = wanted and there
    target = training_state.abstract_state(config.model, optimizer, mesh=mesh, has_ema=has_ema, lora=config.lora)
    found = checkpoints.restore(target, step)
    if wanted and not there:
        print_once(f"  step {step:,} has no average: it begins with these weights, which stand for all before them")
        return replace(found, ema=training_state.copy_arrays(found.model))
    return found


def describe_other_rows(saved: SavedRun, config: TrainConfig, fingerprints: Fingerprints) -> list[str]:
    """A line for each change, after which a forced resume does not read just the rows that it has not read yet."""
    lines = []
    if names := [name for name in ("seed", "epoch_seeds") if getattr(saved.config, name) != getattr(config, name)]:
        lines.append(
            f"  another {' and '.join(names)} gives the rest of this epoch another order: some of its rows come twice, "
            "and others not at all"
        )
    if "data" in fingerprints and saved.fingerprints.get("data") != fingerprints["data"]:
        lines.append("  the other data are read from the row at which the run was, not from their first")
    return lines


def _describe_end(config: TrainConfig, step: int) -> list[str]:
    if step < config.steps:
        return describe_ended_schedule(config)
    is_evaluated = any(evaluator.should_run(step, steps=config.steps) for evaluator in config.evaluators)
    repeated = ": its last evaluation is repeated" * is_evaluated
    return [f"  the run is complete{repeated}. --steps={2 * step}, say, goes on from here"]


def describe_ended_schedule(config: TrainConfig) -> list[str]:
    """A line if steps are left behind the end of a schedule that has lowered the rate."""
    length = config.schedule_length
    middle, last = (float(config.optimizer.learning_rate_at(step, steps=length)) for step in (length // 2, length))
    if config.steps <= length or last >= middle:
        return []
    kind, effect = ("warning", "0, and steps change nothing") if last == 0 else ("note", f"{last:.2e}")
    return [
        f"{kind}: the schedule ends at step {length:,}; from there on the learning rate is {effect}. "
        f"--schedule-steps={config.steps} lets it end with the run"
    ]


def _compare_history(saved: TrainConfig, wanted: TrainConfig, step: int) -> list[str]:
    """Differences in what the steps so far learned that a comparison of fields does not show."""
    histories = {"data": [config.data.history_until(step) for config in (saved, wanted)]}
    histories["stages"] = [config.history_until(step) for config in (saved, wanted)]
    return [f"{name} until step {step}: {old} → {new}" for name, (old, new) in histories.items() if old != new]


def _compare_fingerprints(saved: Fingerprints, found: Fingerprints) -> list[str]:
    changed = [name for name, mark in found.items() if saved.get(name) != mark]
    if None in (saved.get("validation"), found.get("validation")):  # evaluators come and go
        changed = [name for name in changed if name != "validation"]
    return [f"{name}: {shorten_fingerprint(saved.get(name))} → {shorten_fingerprint(found[name])}" for name in changed]


def read_saved_config(content: Any, config: TrainConfig, step: int, *, modules: Modules | None) -> TrainConfig:
    """The config of a checkpoint. A `UserError` says which class is missing."""
    try:
        saved = from_json(content, TrainConfig, modules=modules, trusted=config, where="its config")
    except UserError as error:
        raise UserError(
            f"{config.directory} cannot be resumed from step {step}: {error} "
            "Or resume with the original config file, if that defines it. The run's copy of it, config.py, is another "
            "module: if the file is lost, copy config.py to a file of the old name."
        ) from None
    return replace(saved, epoch_seeds=saved.epoch_seeds or "added")


def _read_saved_run(metadata: dict[str, Any], config: TrainConfig, step: int, *, modules: Modules | None) -> SavedRun:
    saved = read_saved_config(metadata.get("config", {}), config, step, modules=modules)
    return SavedRun(step, saved, metadata.get("fingerprints", {}))


def find_saved_run(config: TrainConfig, modules: Modules | None = None) -> SavedRun | None:
    """The checkpoint that a run will go on from, if it can be read; damage is reported later.

    Only `force` needs to know it before: the batches of the steps so far depend on it. So it reads every byte.
    """
    directory = config.directory / CHECKPOINTS
    back_to = config.resume if isinstance(config.resume, int) else None
    if any(directory.glob(f"*.after_{back_to}")):  # it has gone back, and goes on
        back_to = None
    last_kept = find_last_kept(directory)
    for step in reversed(list_steps(directory)):
        if back_to not in (None, step) or (last_kept is not None and step > last_kept):
            continue
        is_lost = config.resume == "force" and find_damage_once(directory / str(step))
        if is_lost or not is_complete(directory / str(step)):
            continue
        try:
            return _read_saved_run(read_metadata(directory, step), config, step, modules=modules)
        except UserError:
            continue
    return None


def choose_saved_run(
    config: TrainConfig, checkpoints: CheckpointManager, fingerprints: Fingerprints, modules: Modules | None = None
) -> tuple[TrainConfig, SavedRun | None]:
    """The checkpoint that the run goes on from; None without any. Nothing moves before `checkpoints.clear()`.

    The config is that of a run that has gone back, if it should. Raises where it would not be the same run. All
    processes must call this.
    """
    if (found := find_saved_run(config, modules)) is not None:
        check_same_run(config, found, fingerprints)
    back_to = config.resume if isinstance(config.resume, int) else None
    step = checkpoints.choose_step(back_to)
    config = config if back_to is None else replace(config, resume="auto")
    if step is None:
        return config, None
    return config, _read_saved_run(checkpoints.read_metadata(step), config, step, modules=modules)


def adopt_history(config: TrainConfig, modules: Modules | None = None) -> TrainConfig:
    """The config with what a run keeps from its first start, and the batches of the steps so far if a resume is forced.

    A schedule is as long as the steps at the run's first start, unless `schedule_steps` says otherwise. Epochs have the
    orders that they had. With `--resume=force` and another batch size, the steps so far become stages, so that no row
    is skipped or repeated.

    Raises a `UserError` if the run should go back to a step that has no checkpoint, or a damaged one.
    """
    if isinstance(config.resume, int):
        check_roll_back(config.directory / CHECKPOINTS, config.resume)
    found = find_saved_run(config, modules)
    if found is None:
        return replace(
            config,
            schedule_steps=config.schedule_length,
            epoch_seeds=config.epoch_seeds or "mixed",
            row_offsets=adopt_offsets(config, config, 0),
        )
    step, saved, _ = found
    config = replace(
        config,
        epoch_seeds=config.epoch_seeds or saved.epoch_seeds,
        row_offsets=adopt_offsets(config, saved, step),
    )
    if config.schedule_steps is None:
        config = replace(config, schedule_steps=saved.schedule_length)
    if saved.history_until(step) == config.history_until(step):
        return config
    is_alike = not config.stages and saved.stages and _continues_alike(saved, config, step)
    return _keep_batches(saved, config, step) if is_alike or config.resume == "force" else config


def _continues_alike(saved: TrainConfig, wanted: TrainConfig, step: int) -> bool:
    """Whether the batches, windows and rate of the wanted config are those in effect at the last of the saved stages.

    So a run whose batch was changed by `--resume=force` goes on by the command of that change.
    """
    last = saved.phases[-1]
    return last.begin <= step and last.summary == wanted.phases[-1].summary


def _keep_batches(saved: TrainConfig, wanted: TrainConfig, step: int) -> TrainConfig:
    """The wanted config from this step on, with the saved batches before it.

    Where the steps before learned alike already, as after an earlier change by `--resume=force`, no stage is added.
    """
    now = next(phase for phase in reversed(wanted.phases) if phase.begin <= step)
    begun = [phase for phase in saved.phases if phase.begin <= step]
    if len(begun) > 1 and begun[-1].begin == step and begun[-1].summary != now.summary:
        begun.pop()  # no step has learned so yet
    last, grad_accum = begun[-1], saved.grad_accum
    stages = [stage for stage in saved.stages if stage.begin <= last.begin]
    if last.summary != now.summary:
        stages = [*(stage for stage in stages if stage.begin < step), _make_stage(now, begin=step)]
        print_once(
            f"  --resume=force: the first {count_of(step, 'steps')} keep their batches; "
            "what follows reads the rows after them"
        )
    elif last.batch.grad_accum != now.batch.grad_accum:
        if stages:
            stages[-1] = replace(stages[-1], grad_accum=now.batch.grad_accum)
        else:
            grad_accum = now.batch.grad_accum
    # Stages that leave the batch unset take the config's, which is the saved one from now on.
    later = [
        replace(
            stage,
            batch_size=wanted.batch_size if stage.batch_size is None else stage.batch_size,
            grad_accum=wanted.grad_accum if stage.grad_accum is None else stage.grad_accum,
        )
        for stage in wanted.stages
        if stage.begin > step
    ]
    return replace(wanted, batch_size=saved.batch_size, grad_accum=grad_accum, stages=(*stages, *later))


def _make_stage(phase: Phase, *, begin: int) -> Stage:
    """The settings of a phase, from another step on."""
    return Stage(
        begin,
        batch_size=phase.batch.size,
        grad_accum=phase.batch.grad_accum,
        long_window=phase.model_config.long_window,
        short_window=phase.model_config.short_window,
        lr_scale=phase.lr_scale,
    )


def describe_rate_change(saved: TrainConfig, config: TrainConfig, step: int) -> list[str]:
    """A line if the learning rate of the next step is not what it would have been."""
    old, new = _rate_at(saved, step), _rate_at(config, step)
    if abs(old - new) <= 1e-6 * max(abs(old), abs(new)):
        return []
    return [f"  the learning rate of step {step + 1:,} is {new:.3e}; without the change it would be {old:.3e}"]


def _rate_at(config: TrainConfig, step: int) -> float:
    scale = next(phase.lr_scale for phase in reversed(config.phases) if phase.begin <= step)
    return scale * float(config.optimizer.learning_rate_at(step, steps=config.schedule_length))
