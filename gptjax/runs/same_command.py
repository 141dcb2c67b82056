"""Whether all processes of a run were started with the same config and read the same data."""

from dataclasses import fields
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.files import hash_json
from gptjax.core.serialization import to_json
from gptjax.runs.resume import Fingerprints

_OF_EACH_PROCESS = ("output_dir", "name", "data", "init_from", "log", "hang_timeout", "max_restarts")
"""Places may differ. Data is compared by its fingerprint, and the run directory by `run_lock`."""
_PLACES = ("bundle", "data", "include_path", "path", "reference", "task_data", "teacher", "text")
"""Fields of evaluators and objectives that say where something lies. In a user's own classes, paths show by a slash."""


def check_same_command(config: TrainConfig, fingerprints: Fingerprints) -> None:
    """Raise a `UserError` on all processes if one has another config or other data than the first.

    JAX would not notice: each would compute its part of another run. All processes must call this.
    """
    if jax.process_count() == 1:
        return
    parts = list_compared(config, fingerprints)
    marks = np.array([int(hash_json(part)[:7], 16) for part in parts.values()], np.int32)
    gathered = np.asarray(multihost_utils.process_allgather(marks)).reshape(-1, len(parts))
    process, place = np.nonzero(gathered != gathered[0])
    if len(process):
        names = [list(parts)[i] for i in place[process == process[0]]]
        raise UserError(
            f"process {process[0]} differs from process 0 in: {', '.join(names)}. Give the same command on all, "
            "with the same config file, and prepare the same data."
        )


def list_compared(config: TrainConfig, fingerprints: Fingerprints) -> dict[str, Any]:
    """What must be the same on all processes, in JSON's types."""
    content = to_json(config)
    names = [field.name for field in fields(config) if field.name not in _OF_EACH_PROCESS]
    found = {name: _without_places(content.get(name)) for name in names}
    weights = {"weights of the data": config.data.history_until(config.steps)}
    return found | weights | {f"content of the {name}": mark for name, mark in fingerprints.items()}


def _without_places(content: Any) -> Any:
    """A config in JSON's types, with a mark for each place: a disk may have another path on each machine.

    Whether there is one still shows, and so do all other fields.
    """
    if isinstance(content, list):
        return [_without_places(item) for item in content]
    if not isinstance(content, dict):
        return "PLACE" if isinstance(content, str) and content.startswith(("/", "./", "../", "~")) else content
    is_place = lambda name, value: name in _PLACES and value and isinstance(value, str | list)
    return {name: "PLACE" if is_place(name, value) else _without_places(value) for name, value in content.items()}
