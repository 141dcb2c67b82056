"""Whether all processes of a run were started with the same config and read the same data."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.files import hash_json
from gptjax.core.provenance import collect_variables, collect_versions
from gptjax.core.serialization import to_json
from gptjax.runs.read_places import identify_places, is_place
from gptjax.runs.resume import Fingerprints

_OF_EACH_PROCESS = ("output_dir", "name", "data", "init_from", "log", "hang_timeout", "max_restarts")
"""Places may differ. Data is compared by its fingerprint, and the run directory by `run_lock`."""
_ABSENT = -1


def check_same_command(config: TrainConfig, fingerprints: Fingerprints) -> None:
    """Raise a `UserError` on all processes if one has another config, or has read other files, than the first.

    JAX would not notice: each would compute its part of another run. All processes must call this.
    """
    if jax.process_count() > 1:
        _compare({name: hash_json(part) for name, part in list_compared(config, fingerprints).items()})
        _compare(identify_places(config))


def check_same_content(fingerprints: Fingerprints) -> None:
    """Raise a `UserError` on all processes if these identities differ. All processes must call this."""
    if jax.process_count() > 1:
        _compare(_name_contents(fingerprints))


def _compare(marks: Mapping[str, str | int | None]) -> None:
    """Compare with the other processes, which have the same names. Numbers are steps, which the message tells.

    What one of them lacks is not compared: if it is needed, opening it says so.
    """
    values = [_encode(mark) for mark in marks.values()]
    gathered = np.asarray(multihost_utils.process_allgather(np.array(values, np.int32)))
    gathered = gathered.reshape(jax.process_count(), len(values))  # one value, or none, also has two axes
    differs = gathered != gathered[0]
    differs[:, (gathered == _ABSENT).any(axis=0)] = False
    process, place = np.nonzero(differs)
    if len(process):
        names, advice = [], ""
        for i in place[process == process[0]]:
            name, mark = list(marks.items())[i]
            if isinstance(mark, int):
                name += f" ({gathered[process[0], i]}, and {gathered[0, i]} on process 0)"
                advice = " A run that goes on saves new steps: wait for its end, or give all a copy of it."
            names.append(name)
        raise UserError(
            f"process {process[0]} differs from process 0 in: {', '.join(names)}. Give the same command on all, "
            f"with the same config file, and let all read the same files.{advice}"
        )


def _encode(mark: str | int | None) -> int:
    """A number that fits in int32: a step itself, or the start of a hash."""
    if isinstance(mark, int):
        return mark
    return _ABSENT if mark is None else int(hash_json(mark)[:7], 16)


def list_compared(config: TrainConfig, fingerprints: Fingerprints) -> dict[str, Any]:
    """What must be the same on all processes, in JSON's types."""
    content = to_json(config)
    names = [field.name for field in fields(config) if field.name not in _OF_EACH_PROCESS]
    found = {name: _without_places(content.get(name)) for name in names}
    weights = {"weights of the data": config.data.history_until(config.steps)}
    variables = {name: value for name, value in collect_variables().items() if name.startswith("JAX_")}
    versions = collect_versions()
    versions = {name: versions[name] for name in ("gptjax", "jax", "jaxlib")}
    found |= {"environment variables JAX_…": variables, "versions of gptjax and jax": versions}
    return found | weights | _name_contents(fingerprints)


def _name_contents(fingerprints: Fingerprints) -> dict[str, str | None]:
    return {f"content of the {name}": mark for name, mark in fingerprints.items()}


def _without_places(content: Any) -> Any:
    """A config in JSON's types, with a mark for each place: a disk may have another path on each machine.

    Whether there is one still shows, and so do all other fields.
    """
    if isinstance(content, list):
        return [_without_places(item) for item in content]
    if not isinstance(content, dict):
        return "PLACE" if is_place("", content) else content
    return {name: "PLACE" if is_place(name, value) else _without_places(value) for name, value in content.items()}
