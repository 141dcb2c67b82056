"""Model directories in Hugging Face's layout: safetensors in one file, or in several with an index, and JSON.

Opening reads only the headers. A tensor's bytes are read on request. Pickles are never opened. Strangers made the
files: types and sizes are checked before they are used, and names are quoted before they are printed.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gptjax.core.errors import UserError, quote
from gptjax.core.file_sums import check_listed_files
from gptjax.core.files import read_text
from gptjax.core.json_names import refuse_repeated
from gptjax.process.console import print_once

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_SETTINGS = ("config.json", "adapter_config.json", INDEX_FILE)
"""What decides how weights are read."""
SHARD_BYTES = 5_000_000_000
"""Largest file that is written, except for a single larger tensor."""
LONGEST_STEP = 18
"""Digits of a step that is believed."""
WRAPPERS = ("_orig_mod", "module", "_forward_module")
"""Parts of a weight's name that `torch.compile`, `DataParallel` and Lightning add."""


class TrainedAt(NamedTuple):
    """The run that trained the weights of an export, and the step."""

    run: str
    step: int

    def to_metadata(self) -> dict[str, str]:
        """As a file of weights says it. A program that trains on and saves drops it with the old weights."""
        return {"gptjax_run": self.run, "gptjax_step": str(self.step)}


def read_trained_at(directory: Path) -> TrainedAt | None:
    """What the first file of weights says of their run; None if it says nothing.

    Raises `UserError` for a directory without weights, or with such as cannot be read.
    """
    with _open_weights(_list_weight_files(directory)[0]) as file:
        metadata = file.metadata() or {}
    run, step = (metadata.get(name, "") for name in ("gptjax_run", "gptjax_step"))
    return TrainedAt(run, int(step)) if run and step.isdecimal() and len(step) <= LONGEST_STEP else None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open file."""

    file: Any
    name: str
    """As the file has it."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> str:
        """Safetensors' code of the type, such as `F32` or `BF16`."""
        return self.file.get_slice(self.name).get_dtype()

    def read(self) -> np.ndarray:
        """The values. Raises `UserError` for one that is not finite, as no weight is."""
        values = self.file.get_tensor(self.name)
        if not np.isfinite(values).all():
            raise UserError(f"the weight {quote(self.name)} holds values that are not finite (NaN or infinity).")
        return values


@contextmanager
def open_tensors(directory: Path, *, file: str | None = None) -> Iterator[dict[str, StoredTensor]]:
    """All tensors of the directory by name, readable inside the context. Names lose the parts `WRAPPERS`.

    Args:
        file: the one that holds them; by default those of a model.

    Raises:
        UserError: a file is missing, cannot be read, or has changed since `to-hf` or `to-peft` wrote it, or a weight
            stands twice.
    """
    found: list[StoredTensor] = []
    with ExitStack() as stack:
        paths = [directory / file] if file else _list_weight_files(directory)
        check_listed_files(directory, [*_SETTINGS, *(path.name for path in paths)])
        for path in paths:
            opened = stack.enter_context(_open_weights(path))
            _check_header(path)
            found += [StoredTensor(opened, name) for name in opened.keys()]  # noqa: SIM118 (not a mapping)
        parts = {part for tensor in found for part in tensor.name.split(".")}
        if names := " and ".join(f"{part}." for part in WRAPPERS if part in parts):
            print_once(f"note: {directory}: names of weights lose {names}, which a wrapper added", to_stderr=True)
        yield name_tensors(found, directory, rename=_unwrap)


def _open_weights(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {quote(str(error))}. Fetch the file again.") from None


def name_tensors(
    tensors: Iterable[StoredTensor], directory: Path, *, rename: Callable[[str], str]
) -> dict[str, StoredTensor]:
    """The tensors by `rename(name)`. Raises `UserError` for a weight that stands twice."""
    out: dict[str, StoredTensor] = {}
    for tensor in tensors:
        name = rename(tensor.name)
        if name in out:
            names = " and ".join(dict.fromkeys(quote(stored.name) for stored in (out[name], tensor)))
            raise UserError(
                f"{directory} holds the weight {quote(name)} twice (as {names}). Keep the one that is meant."
            )
        out[name] = tensor
    return out


def _unwrap(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _check_header(path: Path) -> None:
    """Raise for a tensor that the header names twice, of which the library takes the last."""
    with path.open("rb") as file:
        content = file.read(int.from_bytes(file.read(8), "little"))  # the library has checked the length
    try:
        json.loads(content, object_pairs_hook=refuse_repeated)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Keep the one that is meant.") from None


def _list_weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    if (directory / WEIGHTS_FILE).is_file():
        if index.is_file():
            raise UserError(
                f"{directory} holds both {WEIGHTS_FILE} and {INDEX_FILE}. Remove the one that is not meant."
            )
        return [directory / WEIGHTS_FILE]
    if index.is_file():
        return _read_index(index)
    if any(directory.glob("*.bin")):
        raise UserError(
            f"{directory} has weights only as *.bin, a pickle, and loading a pickle can run any code. If you trust it, "
            "load it with transformers and save_pretrained() it again, which writes model.safetensors."
        )
    raise UserError(f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}. Give the directory of a saved model.")


def _read_index(index: Path) -> list[Path]:
    """The files that an index names, all beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{index}: weight_map is no object of file names by weight. Fetch the file again.")
    for file in (files := sorted(set(weight_map.values()))):
        if Path(file).name != file or "\0" in file or not (index.parent / file).is_file():
            where = index.parent
            raise UserError(f"{index} names {quote(file)}, which is not in {where}. Fetch it, or correct the index.")
    return [index.parent / file for file in files]


def write_tensors(
    directory: Path,
    tensors: dict[str, np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
    trained_at: TrainedAt | None = None,
) -> None:
    """Write the weights. More than `shard_bytes` become several files, with an index of the tensors in each.

    Each file says where the weights were trained, if that is given.
    """
    metadata = {"format": "pt"} | (trained_at.to_metadata() if trained_at else {})
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes + sum(t.nbytes for t in shards[-1].values()) > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [WEIGHTS_FILE]
    else:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": weight_map})
    for file, shard in zip(files, shards, strict=True):
        # safetensors creates files that only their owner may read. `touch` gives the usual permissions.
        (directory / file).touch()
        mode = (directory / file).stat().st_mode
        write_safetensors(directory / file, shard, metadata=metadata)
        (directory / file).chmod(mode)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], *, metadata: dict[str, str] | None = None) -> None:
    """Write one file. What the system refuses is an OSError, which safetensors hides in an error of its own."""
    # safetensors 0.8.0 writes arrays with another order of axes in memory wrongly, without a word.
    contiguous = {name: np.ascontiguousarray(tensor).reshape(tensor.shape) for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata=metadata)
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` if there is none."""
    try:
        content = json.loads(read_text(path), object_pairs_hook=refuse_repeated)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Give the directory of a saved model.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {quote(str(error))}. Fetch the file again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; wanted: an object.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
