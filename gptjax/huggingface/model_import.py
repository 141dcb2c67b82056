"""Import of a model in any of the architectures from safetensors. Pickles are never read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from gptjax.core.errors import UserError, quote
from gptjax.huggingface.architectures.architecture import CONFIG_FILE, EMBEDDING, HEAD, Architecture, HFOrigin
from gptjax.huggingface.architectures.selection import find_architecture
from gptjax.huggingface.architectures.weight_map import (
    WeightMapping,
    format_path,
    get_shapes,
    is_param,
    list_parameters,
)
from gptjax.huggingface.safetensors_dir import StoredTensor, name_tensors, open_tensors, read_json
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model
from gptjax.sharding.devices import DType
from gptjax.sharding.mesh import MeshConfig

STORED_DTYPES: dict[str, DType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def from_hf(
    directory: str | Path, *, mesh: MeshConfig | None = None, dtype: DType | None = None
) -> tuple[GPTConfig, GPT, HFOrigin]:
    """Read a model that transformers or `to-hf` saved. config.json names its architecture.

    The weights become float32, which is exact for every readable type. Dropout is 0, because that of config.json
    belongs to a training run that is over. Under a sharded mesh call it inside `mesh.activate()`. Weights are read and
    placed one at a time.

    Args:
        dtype: type of the computation. None takes bfloat16 for a bfloat16 file, else float32.

    Raises:
        UserError: something is missing, unexpected, or has another shape or type than the architecture's.
    """
    directory = Path(directory)
    content = read_json(directory / CONFIG_FILE)
    architecture = find_architecture(content, where=directory / CONFIG_FILE)
    config = architecture.read_config(content, path=directory / CONFIG_FILE)
    with open_tensors(directory) as stored:
        tensors = normalize_names(stored, architecture, directory)
        stored_dtype = check_tensors(tensors, architecture, config=config, directory=directory)
        dtype = dtype or ("bfloat16" if stored_dtype == "bfloat16" else "float32")
        config = replace(config, compute=replace(config.compute, dtype=dtype))
        model = load_weights(config, tensors, rows=architecture.weights, mesh=mesh)
    return config, model, HFOrigin(content, stored_dtype)


def read_model_config(directory: Path) -> GPTConfig:
    """The config of a saved model, without its weights. Raises `UserError` with what cannot be imported."""
    path = directory / CONFIG_FILE
    return from_hf_config(read_json(path), path=path)


def from_hf_config(content: dict[str, Any], *, path: Path) -> GPTConfig:
    """The config that config.json at `path` describes. Raises `UserError` with a field that is not supported."""
    return find_architecture(content, where=path).read_config(content, path=path)


def normalize_names(
    stored: Mapping[str, StoredTensor], architecture: Architecture, directory: Path
) -> dict[str, StoredTensor]:
    """The weights by the architecture's names. Base models are saved without the prefix; some files hold buffers."""
    plain = {tensor.name: name for name, tensor in stored.items()}
    whole = (architecture.prefix, "lm_head.")
    add_prefix = lambda name: name if name.startswith(whole) else f"{architecture.prefix}{name}"
    weights = [tensor for name, tensor in stored.items() if not architecture.buffers.search(name)]
    return name_tensors(weights, directory, rename=lambda name: add_prefix(plain[name]))


def check_tensors(
    tensors: Mapping[str, StoredTensor], architecture: Architecture, *, config: GPTConfig, directory: Path
) -> DType:
    """Raise unless the tensors are exactly the architecture's. Returns their type; float32 for several types."""
    _check_sizes(tensors, config, path=directory / CONFIG_FILE)
    rows = select_rows(architecture.weights, config)
    names = {row.path: row.hf_name for row in architecture.weights}
    expected = dict(get_shapes(rows, config))
    has_second_head = config.tie_embeddings and names[HEAD] in tensors
    if has_second_head:
        expected[names[HEAD]] = expected[names[EMBEDDING]]
    if missing := [name for name in expected if name not in tensors]:
        raise UserError(
            f"{directory} lacks {_list_names(missing)}, which its {CONFIG_FILE} implies. Fetch the model again."
        )
    if unknown := [tensor.name for name, tensor in tensors.items() if name not in expected]:
        raise UserError(
            f"{directory} has {_list_names(unknown)}, unknown to its {CONFIG_FILE}. Use a model with a language-model "
            "head, or the model's own config."
        )
    for name, shape in expected.items():
        found, code = tensors[name].shape, tensors[name].dtype
        if found != shape:
            raise UserError(f"{directory}: {name} has shape {found}, but {CONFIG_FILE} implies {shape}.")
        if code not in STORED_DTYPES:
            raise UserError(f"{directory}: {name} is of type {quote(code)}; supported: {', '.join(STORED_DTYPES)}.")
    if has_second_head and not np.array_equal(tensors[names[HEAD]].read(), tensors[names[EMBEDDING]].read()):
        raise UserError(
            f"{directory}: tie_word_embeddings is true, but {names[HEAD]} differs from the embedding. Set the field "
            f"to false in {CONFIG_FILE} to use the head, or remove the tensor."
        )
    codes = {tensors[name].dtype for name in expected}
    return STORED_DTYPES[codes.pop()] if len(codes) == 1 else "float32"


def _check_sizes(tensors: Mapping[str, StoredTensor], config: GPTConfig, *, path: Path) -> None:
    """Raise for sizes beyond those of the tensors, before lists and shapes of such a size are made."""
    if config.num_layers > len(tensors):
        raise UserError(
            f"{path}: it has {config.num_layers} layers, but there are only {len(tensors)} weights. Fetch the model "
            "again."
        )
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    sizes = (config.embed_dim, config.hidden_dim, config.resolved_vocab_size, config.position_scheme.max_length or 0)
    if max(sizes) > largest:
        raise UserError(
            f"{path}: it implies weights of size {max(sizes)}, but no axis of a weight is larger than {largest}, so a "
            "weight has another shape. Fetch the model again."
        )


def select_rows(rows: Iterable[WeightMapping], config: GPTConfig) -> list[WeightMapping]:
    """The rows with tensors for a model of this config. Raises `UserError` for a parameter without a row."""
    rows, parameters = list(rows), list_parameters(abstract_model(config))
    if unknown := parameters.keys() - {row.path for row in rows}:
        raise UserError(f"no counterpart is known of the weights {', '.join(sorted(unknown))}.")
    return [row for row in rows if row.path in parameters or row.default is not None]


def _list_names(names: list[str]) -> str:
    shown = ", ".join(map(quote, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"the weight{'s' if len(names) > 1 else ''} {shown}"


def load_weights(
    config: GPTConfig,
    tensors: Mapping[str, Any],
    *,
    rows: Iterable[WeightMapping],
    mesh: MeshConfig | None = None,
) -> GPT:
    """The model with every weight read and placed on the mesh. A tensor has a method `read` that returns an array."""
    mesh = mesh or MeshConfig()
    device_mesh = mesh.make_mesh()
    by_path: dict[str, list[WeightMapping]] = {}
    for row in rows:
        by_path.setdefault(row.path, []).append(row)

    def load(path: Any, parameter: nnx.Param[Any]) -> nnx.Variable[Array]:
        target: jax.ShapeDtypeStruct = parameter.get_value()
        weight = allocate(target.shape)
        for row in by_path[format_path(path)]:
            for layer, name in enumerate(row.list_names(config)):
                out = weight[layer, ...] if row.is_stacked else weight
                row.from_hf(tensors[name].read(), out=out, axis_names=parameter.axis_names, config=config)
        sharding = None if device_mesh is None else NamedSharding(device_mesh, target.sharding.spec)
        return parameter.replace(jax.device_put(weight, sharding, may_alias=True))

    return jax.tree.map_with_path(load, abstract_model(config, mesh), is_leaf=is_param)


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in float32 that begin where JAX on a CPU can take them without a copy: at a multiple of 64 bytes."""
    size = 4 * math.prod(shape)
    memory = np.zeros(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(np.float32).reshape(shape)
