"""What lies at the places that a config names besides its data: initial weights, references, teachers, texts, tasks.

Each process of a run may have its own copy of them, at its own path. Their content must be the same.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptjax.checkpoints.integrity import complete_steps
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.file_sums import SUMS_FILE, list_files, sum_file, sum_files
from gptjax.core.files import expand_path, hash_json
from gptjax.core.serialization import to_json
from gptjax.data.manifest import read_manifest
from gptjax.runs.checkpoint_source import is_saved_model
from gptjax.runs.run_dir import CHECKPOINTS, has_trained
from gptjax.tokenization.tokenizer import SAVED_FILES

PLACES = ("bundle", "data", "include_path", "path", "reference", "task_data", "teacher", "text")
"""Fields of evaluators and objectives that say where something lies. In a user's own classes, paths show by a slash."""
_MODEL_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Ends of the names of what is read of a saved model."""


def identify_places(config: TrainConfig) -> dict[str, str | None]:
    """Hashes of what lies at each place, by the field that names it; None where there is nothing.

    Reads every byte, except of runs and of prepared data, whose sums are known.
    """
    found = {} if has_trained(config.directory) else {"init_from": config.init_from or ""}
    for section in ("objective", "evaluators"):
        found |= {f"{section}.{name}": place for name, place in _list_places(to_json(getattr(config, section)))}
    return {name: _identify_all(places) for name, places in found.items()}


def is_place(name: str, value: Any) -> bool:
    """Whether a field of this name says where something lies."""
    return name in PLACES and bool(value) and isinstance(value, str | list)


def _list_places(content: Any, prefix: str = "") -> Iterator[tuple[str, str | list[str]]]:
    pairs = enumerate(content) if isinstance(content, list) else content.items() if isinstance(content, dict) else ()
    for name, value in pairs:
        path = f"{prefix}{name}"
        if is_place(str(name), value):
            yield path, value
        else:
            yield from _list_places(value, f"{path}.")


def _identify_all(places: str | list[str]) -> str | None:
    found = [_identify(place) for place in ([places] if isinstance(places, str) else places)]
    return None if None in found else hash_json(found)


def _identify(place: str) -> str | None:
    if not place:
        return None
    try:
        path = expand_path(place.rpartition("=")[2])  # of TASK=FILE
        if path.is_file():
            return sum_file(path).sha256
        return hash_json(list(_identify_directory(path))) if path.is_dir() else None
    except (OSError, ValueError, UserError):  # whoever needs it says what is wrong
        return None


def _identify_directory(path: Path) -> Iterator[Any]:
    if steps := complete_steps(path / CHECKPOINTS):
        step = path / CHECKPOINTS / str(steps[-1])
        yield sum_files(path, [name for name in SAVED_FILES if (path / name).is_file()])
        yield sum_files(step, [SUMS_FILE] if (step / SUMS_FILE).is_file() else list_files(step))
    elif (manifest := read_manifest(path)) is not None:
        yield [manifest.fingerprint, manifest.files, manifest.sidecars]
    elif is_saved_model(path):
        yield sum_files(path, sorted(file.name for file in path.iterdir() if file.suffix in _MODEL_FILES))
    else:
        yield sum_files(path, [name for name in list_files(path) if not name.startswith(".") and "/." not in name])
