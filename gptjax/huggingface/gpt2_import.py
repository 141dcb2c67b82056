"""Import of Hugging Face's GPT-2 from safetensors. Pickles are never read."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from gptjax.core.errors import UserError, quote
from gptjax.huggingface.gpt2_mapping import (
    ACTIVATIONS,
    CONFIG_FILE,
    EMBEDDING,
    FIELDS,
    HEAD,
    REQUIRED,
    WEIGHT_MAP,
    DTypeName,
    HFOrigin,
    WeightMapping,
    format_path,
    get_axis_sizes,
    get_hf_shape,
    is_param,
)
from gptjax.huggingface.safetensors_dir import StoredTensor, name_tensors, open_tensors, read_json
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model
from gptjax.sharding.devices import DType
from gptjax.sharding.mesh import MeshConfig

STORED_DTYPES: dict[str, DTypeName] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
CAUSAL_MASK = re.compile(r"^(transformer\.)?h\.\d+\.attn\.(masked_)?bias$")
"""Buffers that old files store among the weights."""


def from_hf(
    directory: str | Path, *, mesh: MeshConfig | None = None, dtype: DType | None = None
) -> tuple[GPTConfig, GPT, HFOrigin]:
    """Read a GPT-2 that transformers saved. The weights become float32, which is exact for every readable type.

    Dropout is 0, because config.json's 0.1 belongs to a training run that is over. Under a sharded mesh call it inside
    `mesh.activate()`. Weights are read and placed one at a time.

    Args:
        dtype: type of the computation. None takes bfloat16 for a bfloat16 file, else float32.

    Raises:
        UserError: something is missing, unexpected, or has another shape or type than GPT-2's.
    """
    directory = Path(directory)
    content = read_json(directory / CONFIG_FILE)
    config = from_hf_config(content, path=directory / CONFIG_FILE)
    with open_tensors(directory) as stored:
        tensors = _normalize_names(stored, directory)
        stored_dtype = _check_tensors(tensors, config, directory=directory)
        dtype = dtype or ("bfloat16" if stored_dtype == "bfloat16" else "float32")
        config = replace(config, compute=replace(config.compute, dtype=dtype))
        model = _load_model(config, tensors, mesh=mesh or MeshConfig())
    return config, model, HFOrigin(content, stored_dtype)


def from_hf_config(content: dict[str, Any], *, path: Path) -> GPTConfig:
    """The config that config.json at `path` describes. Raises `UserError` with a field that is not plain GPT-2's."""
    if content.get("model_type") != "gpt2":
        raise UserError(f"{path}: model_type is {quote(repr(content.get('model_type')))}; only 'gpt2' can be imported.")
    for field, value in REQUIRED.items():
        if content.get(field, value) != value:
            found = quote(repr(content[field]))
            raise UserError(f"{path}: {field} is {found}, a variant that is not supported; wanted: {value}.")
    activation = content.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(
            f"{path}: activation_function is {quote(repr(activation))}; supported: {', '.join(ACTIVATIONS)}."
        )
    values: dict[str, Any] = {}
    for hf_field, field in FIELDS.items():
        if hf_field in content:
            values[field] = value = content[hf_field]
            wanted = {"tie_embeddings": bool, "norm_epsilon": float}.get(field, int)
            if type(value) is not wanted and not (field == "mlp_dim" and value is None):
                raise UserError(f"{path}: {hf_field} is {quote(repr(value))}; wanted: {wanted.__name__}.")
    try:
        return GPTConfig(**values, activation=ACTIVATIONS[activation])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _normalize_names(stored: dict[str, StoredTensor], directory: Path) -> dict[str, StoredTensor]:
    """The weights by the names of `WEIGHT_MAP`. Base models are saved without the prefix `transformer.`."""
    plain = {tensor.name: name for name, tensor in stored.items()}
    add_prefix = lambda name: name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
    weights = [tensor for name, tensor in stored.items() if not CAUSAL_MASK.search(name)]
    return name_tensors(weights, directory, rename=lambda name: add_prefix(plain[name]))


def _check_tensors(tensors: dict[str, StoredTensor], config: GPTConfig, *, directory: Path) -> DTypeName:
    """Raise unless the tensors are exactly those of `WEIGHT_MAP`. Returns their type; float32 for several types."""
    if config.num_layers > len(tensors):  # before a list of so many names is made
        raise UserError(
            f"{directory / CONFIG_FILE}: n_layer is {config.num_layers}, but there are only {len(tensors)} weights. "
            "Fetch the model again."
        )
    has_head = not config.tie_embeddings or HEAD.hf_name in tensors
    rows = [row for row in WEIGHT_MAP if row is not HEAD or has_head]
    expected = {name: get_hf_shape(row, config) for row in rows for name in row.list_names(config)}
    if missing := [name for name in expected if name not in tensors]:
        raise UserError(
            f"{directory} lacks {_list_names(missing)}, which its {CONFIG_FILE} implies. Fetch the model again."
        )
    if unknown := [tensor.name for name, tensor in tensors.items() if name not in expected]:
        raise UserError(
            f"{directory} has {_list_names(unknown)}, unknown to its {CONFIG_FILE}. Use a GPT-2 with a language-model "
            "head, or the model's own config."
        )
    for name, shape in expected.items():
        found, code = tensors[name].shape, tensors[name].dtype
        if found != shape:
            raise UserError(f"{directory}: {name} has shape {found}, but {CONFIG_FILE} implies {shape}.")
        if code not in STORED_DTYPES:
            raise UserError(f"{directory}: {name} is of type {quote(code)}; supported: {', '.join(STORED_DTYPES)}.")
    if config.tie_embeddings and has_head:
        _check_tied_head(tensors, directory)
    codes = {tensors[name].dtype for name in expected}
    return STORED_DTYPES[codes.pop()] if len(codes) == 1 else "float32"


def _check_tied_head(tensors: dict[str, StoredTensor], directory: Path) -> None:
    if not np.array_equal(tensors[HEAD.hf_name].read(), tensors[EMBEDDING.hf_name].read()):
        raise UserError(
            f"{directory}: tie_word_embeddings is true, but {HEAD.hf_name} differs from the embedding. Set the field "
            f"to false in {CONFIG_FILE} to use the head, or remove the tensor."
        )


def _list_names(names: list[str]) -> str:
    shown = ", ".join(map(quote, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"the weight{'s' if len(names) > 1 else ''} {shown}"


def _load_model(config: GPTConfig, tensors: dict[str, StoredTensor], *, mesh: MeshConfig) -> GPT:
    """The model with every weight read and placed on the mesh."""
    rows = {row.path: row for row in WEIGHT_MAP}
    device_mesh = mesh.make_mesh()

    def load(path: Any, parameter: nnx.Param[Any]) -> nnx.Variable[Array]:
        target: jax.ShapeDtypeStruct = parameter.get_value()
        row = rows[format_path(path)]
        weight = np.empty(target.shape, np.float32)
        for layer, name in enumerate(row.list_names(config)):
            tensor = tensors[name].read().astype(np.float32)
            index = layer if row.is_stacked else ...
            weight[index] = _from_hf_axes(tensor, row, axis_names=parameter.axis_names, config=config)
        sharding = None if device_mesh is None else NamedSharding(device_mesh, target.sharding.spec)
        return parameter.replace(jax.device_put(weight, sharding))

    return jax.tree.map_with_path(load, abstract_model(config, mesh), is_leaf=is_param)


def _from_hf_axes(tensor: np.ndarray, row: WeightMapping, *, axis_names: str, config: GPTConfig) -> np.ndarray:
    """A tensor with its axes split and ordered as in the parameter, and the vocabulary padded with zeros."""
    sizes, padded = get_axis_sizes(config, padded=False), get_axis_sizes(config, padded=True)
    hf_axes = row.hf_axes.replace(" ", "")
    split = tensor.reshape([sizes[axis] for axis in hf_axes])
    ordered = split.transpose([hf_axes.index(axis) for axis in axis_names])
    return np.pad(ordered, [(0, padded[axis] - sizes[axis]) for axis in axis_names])
