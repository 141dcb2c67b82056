"""Restores the state of a run, unless the run would learn something else from there on."""

from dataclasses import replace

from gptjax.config import TrainConfig, compare_configs
from gptjax.core.console import print_once
from gptjax.core.errors import UserError
from gptjax.core.serialization import Modules, from_json
from gptjax.sharding.mesh import MeshConfig
from gptjax.training import state as training_state
from gptjax.training.checkpoint import CheckpointManager
from gptjax.training.state import TrainState

Fingerprints = dict[str, str | None]
"""Identities of what a run learns from, by name. None: there is none, such as no tokenizer."""


def restore_state(
    config: TrainConfig,
    checkpoints: CheckpointManager,
    fingerprints: Fingerprints,
    mesh: MeshConfig,
    modules: Modules | None = None,
) -> TrainState | None:
    """The state of the newest checkpoint; None if there is none. Raises where it would not be the same run."""
    step = checkpoints.choose_step()
    if step is None:
        return None
    if config.resume == "never":
        raise UserError(
            f"{config.directory} has a checkpoint at step {step} and resume is `never`. Choose another --name."
        )
    if step > config.steps:
        raise UserError(
            f"{config.directory} is at step {step} already, beyond steps {config.steps}. Give more --steps."
        )
    metadata = checkpoints.read_metadata(step)
    try:
        saved = from_json(metadata.get("config", {}), TrainConfig, modules=modules, trusted=config, where="its config")
    except UserError as error:
        raise UserError(
            f"{config.directory} cannot be resumed from step {step}: {error} "
            "Or resume with the config file of this run, if that defines it."
        ) from None
    reported, refused = compare_configs(saved, config)
    refused += _compare_history(saved, config, step)
    refused += _compare_fingerprints(metadata.get("fingerprints", {}), fingerprints)
    if refused and config.resume != "force":
        raise UserError(
            f"{config.directory} holds a run that learned something else:\n  " + "\n  ".join(refused) + "\n"
            "Undo the change, choose another --name, or resume in any case with --resume=force."
        )
    print_once(f"resuming {config.directory} at step {step:,}", *(f"  changed: {line}" for line in reported + refused))
    optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
    wanted, there = config.ema.enabled, checkpoints.has_ema_item(step)
    has_ema = wanted and there
    target = training_state.abstract_state(config.model, optimizer, mesh=mesh, has_ema=has_ema, lora=config.lora)
    found = checkpoints.restore(target, step)
    if wanted and not there:
        print_once(f"  step {step:,} has no average: it begins with these weights, which stand for all before them")
        return replace(found, ema=training_state.copy_arrays(found.model))
    return found


def _compare_history(saved: TrainConfig, wanted: TrainConfig, step: int) -> list[str]:
    """Differences in what the steps so far learned that a comparison of fields does not show."""
    histories = {"data": [one.data.history_until(step) for one in (saved, wanted)]}
    histories["stages"] = [one.history_until(step) for one in (saved, wanted)]
    return [f"{name} until step {step}: {old} → {new}" for name, (old, new) in histories.items() if old != new]


def _compare_fingerprints(saved: Fingerprints, found: Fingerprints) -> list[str]:
    changed = [name for name, mark in found.items() if saved.get(name) != mark]
    if None in (saved.get("validation"), found.get("validation")):  # evaluators come and go
        changed = [name for name in changed if name != "validation"]
    return [f"{name}: {_shorten(saved.get(name))} → {_shorten(found[name])}" for name in changed]


def _shorten(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else f"{fingerprint[:12]}…"
