"""What lies at the places that a config names besides its data: initial weights, references, teachers, texts, tasks.

Each process of a run may have its own copy of them, at its own path. Their content must be the same.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gptjax.checkpoints.checkpoint_format import find_step
from gptjax.checkpoints.integrity import complete_steps
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.file_sums import SUMS_FILE, list_files
from gptjax.core.files import hash_json
from gptjax.core.serialization import to_json
from gptjax.data.manifest import read_manifest
from gptjax.huggingface.model_dir import FETCHED_FILES
from gptjax.process.progress import note_progress
from gptjax.runs.checkpoint_source import is_saved_model
from gptjax.runs.checkpoint_spec import CHECKPOINTS, split_step
from gptjax.runs.run_dir import has_trained
from gptjax.tokenization.tokenizer import SAVED_FILES

PLACES = ("bundle", "data", "include_path", "path", "reference", "task_data", "teacher", "text")
"""Fields of evaluators and objectives that say where something lies."""
_PATH_STARTS = ("/", "./", "../", "~")
"""Starts of a text that is a path, in whatever field: also of a user's own classes."""
_SAMPLE_BYTES = 2**17
_SAMPLES = 8
"""A file of up to so many samples is read whole. Of a larger one, these, evenly spread over it, are compared."""


def identify_places(config: TrainConfig) -> dict[str, str | int | None]:
    """What lies at each place, by the field that names it: a hash, or None where there is nothing.

    Of a run, also the number of the step that is read, as a rule the newest: while the run goes on, it changes.
    Large files are identified by size and samples.
    """
    found = {} if has_trained(config.directory) else {"init_from": config.init_from or ""}
    for section in ("objective", "evaluators"):
        found |= {f"{section}.{name}": place for name, place in _list_places(to_json(getattr(config, section)))}
    marks: dict[str, str | int | None] = {}
    for name, places in found.items():
        step = _find_step(places) if isinstance(places, str) else None
        marks[f"newest step of {name}"] = step
        marks[f"content of {name}"] = _identify_all(places, is_known=_has_known_name(name), step=step)
    return marks


def is_place(name: str, value: Any) -> bool:
    """Whether a field of this name says where something lies: by its name, or since its text begins as a path does."""
    if isinstance(value, str) and value.startswith(_PATH_STARTS):
        return True
    texts = [value] if isinstance(value, str) else value
    return name in PLACES and bool(value) and isinstance(texts, list) and all(isinstance(text, str) for text in texts)


def _list_places(content: Any, prefix: str = "") -> Iterator[tuple[str, str | list[str]]]:
    pairs = enumerate(content) if isinstance(content, list) else content.items() if isinstance(content, dict) else ()
    for name, value in pairs:
        path = f"{prefix}{name}"
        if is_place(str(name), value):
            yield path, value
        else:
            yield from _list_places(value, f"{path}.")


def _has_known_name(name: str) -> bool:
    return name == "init_from" or name.rpartition(".")[2] in PLACES


def _find_step(place: str) -> int | None:
    """The step of the checkpoint at a place, of a run its newest complete one; None if no run is there."""
    try:
        directory, which = split_step(place)
        steps = complete_steps(directory / CHECKPOINTS)
        return find_step(directory / CHECKPOINTS, which) if steps and which != "latest" else max(steps, default=None)
    except (OSError, ValueError, UserError):
        return None


def _identify_all(places: str | list[str], *, is_known: bool, step: int | None) -> str | None:
    each = [places] if isinstance(places, str) else places
    found = [_identify(place, is_known=is_known, step=step) for place in each]
    return None if None in found else hash_json(found)


def _identify(place: str, *, is_known: bool, step: int | None) -> str | None:
    """A hash of what is at a place. A directory counts if its field is known: another may be written to."""
    if not place:
        return None
    try:
        path, _ = split_step(place.rpartition("=")[2])  # of TASK=FILE
        if path.is_file():
            return _sample_file(path)
        return hash_json(list(_identify_directory(path, step))) if path.is_dir() and is_known else None
    except (OSError, ValueError, UserError):  # whoever needs it says what is wrong
        return None


def _identify_directory(path: Path, step: int | None) -> Iterator[Any]:
    if step is not None:
        directory = path / CHECKPOINTS / str(step)
        yield _sample_files(path, [name for name in SAVED_FILES if (path / name).is_file()])
        yield _sample_files(directory, [SUMS_FILE] if (directory / SUMS_FILE).is_file() else list_files(directory))
    elif (manifest := read_manifest(path)) is not None:
        yield [manifest.fingerprint, manifest.files, manifest.sidecars]
    elif is_saved_model(path):
        yield _sample_files(path, {file.name for pattern in FETCHED_FILES for file in path.glob(pattern)})
    else:
        yield _sample_files(path, [name for name in list_files(path) if not name.startswith(".") and "/." not in name])


def _sample_files(directory: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: _sample_file(directory / name) for name in sorted(names)}


def _sample_file(path: Path) -> str:
    """SHA-256 of a file's size and of samples of it; of all of it, if it is small."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            if size > _SAMPLES * _SAMPLE_BYTES:
                file.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    note_progress()
    return digest.hexdigest()
