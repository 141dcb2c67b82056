"""Model directories in Hugging Face's layout: safetensors in one file, or in several with an index, and JSON.

Opening reads only the headers. A tensor's bytes are read on request. Pickles are never opened.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gptjax.core.errors import UserError

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Largest file that is written, except for a single larger tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open file."""

    file: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> str:
        """Safetensors' code of the type, such as `F32` or `BF16`."""
        return self.file.get_slice(self.name).get_dtype()

    def read(self) -> np.ndarray:
        return self.file.get_tensor(self.name)


@contextmanager
def open_tensors(directory: Path) -> Iterator[dict[str, StoredTensor]]:
    """All tensors of the directory by name, readable inside the context.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    out: dict[str, StoredTensor] = {}
    with ExitStack() as stack:
        for path in _list_weight_files(directory):
            try:
                file = stack.enter_context(safe_open(path, framework="np"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} cannot be read as safetensors: {error}. Fetch the file again.") from None
            out |= {name: StoredTensor(file, name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        yield out


def _list_weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    index = directory / INDEX_FILE
    if index.is_file():
        files = sorted({str(file) for file in read_json(index).get("weight_map", {}).values()})
        for file in files:
            if Path(file).name != file or not (directory / file).is_file():
                raise UserError(f"{index} names {file}, which is not in {directory}. Fetch it, or correct the index.")
        return [directory / file for file in files]
    if any(directory.glob("*.bin")):
        raise UserError(
            f"{directory} has weights only as *.bin, a pickle, and loading a pickle can run any code. If you trust it, "
            "load it with transformers and save_pretrained() it again, which writes model.safetensors."
        )
    raise UserError(f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}. Give the directory of a saved model.")


def write_tensors(directory: Path, tensors: dict[str, np.ndarray], *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the weights. More than `shard_bytes` become several files, with an index of the tensors in each."""
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
        # safetensors 0.8.0 writes arrays with another order of axes in memory wrongly, without a word.
        contiguous = {name: np.ascontiguousarray(tensor).reshape(tensor.shape) for name, tensor in shard.items()}
        save_file(contiguous, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(mode)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Give the directory of a saved model.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Fetch the file again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; wanted: an object.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
