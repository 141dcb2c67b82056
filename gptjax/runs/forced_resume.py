"""What not even `--resume=force` can change in a run."""

import shlex

from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.config import TrainConfig
from gptjax.data.config import Mixture
from gptjax.data.source import DataSource
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import abstract_state


def find_obstacle(
    saved: TrainConfig, wanted: TrainConfig, step: int, tokenizers: tuple[str | None, str | None]
) -> str | None:
    """What no resume can change, and what to do instead; None if all changes can be forced.

    `tokenizers` are the identities of the saved and of the wanted one.
    """
    flags = f"--name=OTHER --init-from={shlex.quote(str(wanted.directory))}"
    advice = f"begin a new run with these weights: {flags}"
    old, new = tokenizers
    if None not in (old, new) and old != new:  # the checkpoints so far could not be read beside the new tokenizer
        change = f"tokenizer: {shorten_fingerprint(old)} → {shorten_fingerprint(new)}"
        what = f"{change} gives ids another meaning, so that the run could not go on"
        tokenizer = shlex.quote(f"--tokenizer={wanted.directory}")
        advice = (
            f"choose another --name. To begin with these weights, prepare the data with {tokenizer}, and give {flags}"
        )
    elif row_change := _find_row_change(saved, wanted, step):
        what = f"{row_change} makes other rows of the data, so that the run could not read on where it was"
    elif part := _find_other_arrays(saved, wanted):
        what = f"the {part} has other arrays than the checkpoint, so that the run could not go on"
        advice = "choose another --name" if part == "model" else advice
    else:
        return None
    return f"{what}, not even with --resume=force. Undo the change, or {advice}"


def shorten_fingerprint(fingerprint: str | None) -> str:
    """The start of a fingerprint, for messages."""
    return "none" if fingerprint is None else f"{fingerprint[:12]}…"


def _find_row_change(saved: TrainConfig, wanted: TrainConfig, step: int) -> str | None:
    """What makes other rows of the data: the run has read so many of them, and could not read on."""
    before = [config.data.history_until(step) for config in (saved, wanted)]
    pairs: dict[str, tuple[object, object]] = {
        "model.context_length": (saved.model.context_length, wanted.model.context_length),
        "data.packing": (_describe_packing(saved.data), _describe_packing(wanted.data)),
    }
    if all(isinstance(config.data, Mixture) for config in (saved, wanted)):  # a weight_schedule may change what follows
        pairs[f"data.components until step {step}"] = before[0], before[1]
    return next((f"{field}: {old} → {new}" for field, (old, new) in pairs.items() if old != new), None)


def _describe_packing(data: DataSource) -> str | None:
    """How documents become rows, in each component of a mixture; None for sources of another kind."""
    if isinstance(data, Mixture):
        return f"({', '.join(str(_describe_packing(component.data)) for component in data.components)})"
    return getattr(data, "packing", None)


def _find_other_arrays(saved: TrainConfig, wanted: TrainConfig) -> str | None:
    """The part of the state that could not be restored, because names or shapes of its arrays differ; else None."""
    if (saved.model, saved.optimizer, saved.lora) == (wanted.model, wanted.optimizer, wanted.lora):
        return None
    old, new = _list_shapes(saved), _list_shapes(wanted)
    return next((part for part in old if old[part] != new[part]), None)


def _list_shapes(config: TrainConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the arrays of the model and of the optimizer, by name. They are the same on any mesh."""
    mesh = MeshConfig("single")
    optimizer = config.optimizer.build(steps=config.schedule_length, mesh=mesh)
    state = abstract_state(config.model, optimizer, mesh=mesh, lora=config.lora)
    parts = {"model": state.model, "optimizer": state.optimizer}
    return {part: {n: array.shape for n, array in flatten_by_name(tree).items()} for part, tree in parts.items()}
