"""Import of a saved model, whatever its `model_type`: the one table of those that can be read."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.core.errors import UserError, quote
from gptjax.huggingface.safetensors_dir import read_json
from gptjax.model.config import GPTConfig
from gptjax.sharding.devices import DType
from gptjax.sharding.mesh import MeshConfig

if TYPE_CHECKING:
    from gptjax.huggingface.gpt2_mapping import HFOrigin
    from gptjax.model.gpt import GPT

CONFIG_FILE = "config.json"
IMPORTERS = {"gpt2": "gptjax.huggingface.gpt2_import"}
"""Module by `model_type`. It has `from_hf_config(content, *, path)` and `from_hf(directory, *, mesh, dtype)`."""


def read_model_config(directory: Path) -> GPTConfig:
    """The config of a saved model. Its weights are not read.

    Raises:
        UserError: config.json is missing, damaged, or of a model that cannot be imported.
    """
    path = directory / CONFIG_FILE
    content = read_json(path)
    return _find_importer(content, path).from_hf_config(content, path=path)


def import_model(
    directory: Path, *, mesh: MeshConfig | None = None, dtype: DType | None = None
) -> "tuple[GPTConfig, GPT, HFOrigin]":
    """Read a saved model: config, float32 weights, and what an export restores. See `gpt2_import.from_hf`."""
    path = directory / CONFIG_FILE
    return _find_importer(read_json(path), path).from_hf(directory, mesh=mesh, dtype=dtype)


def _find_importer(content: dict[str, Any], path: Path) -> Any:
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in IMPORTERS:
        raise UserError(f"{path}: model_type is {quote(repr(kind))}; wanted: {', '.join(IMPORTERS)}.")
    return import_module(IMPORTERS[kind])
