"""Export a GPT-2 to Hugging Face, and import one.

Import reads and places one of our weights at a time. Only safetensors are read, never a pickle. Their GPT-2 always
has biases: a model without biases is exported with zeros in their place. Imported again, it has biases and computes the
same.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from gptjax.core.errors import UserError
from gptjax.huggingface.gpt2_mapping import (
    CONFIG_FIELDS,
    DTYPES,
    EMBEDDING,
    EXPORTABLE_FIELDS,
    HEAD,
    HF_ACTIVATIONS,
    REQUIRED_HF_FIELDS,
    WEIGHT_MAP,
    DTypeName,
    WeightMapping,
    to_hf_layout,
    to_jax_layout,
)
from gptjax.huggingface.safetensors_dir import StoredTensor, open_tensors, read_json
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model
from gptjax.sharding.mesh import MeshConfig

CONFIG_FILE = "config.json"
_STORED_DTYPES: dict[str, DTypeName] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_CAUSAL_MASK = re.compile(r"^(transformer\.)?h\.\d+\.attn\.(masked_)?bias$")


@dataclass(frozen=True)
class HFOrigin:
    """What an import keeps for an export: their config.json, and the type of the tensors (float32 if mixed)."""

    config: dict[str, Any]
    dtype: DTypeName


# --- export ---


def to_hf(model: GPT, *, dtype: DTypeName = "float32") -> dict[str, np.ndarray]:
    """All tensors of the model under Hugging Face's names, on the host.

    Raises:
        UserError: the model has a weight that GPT-2 has not, or a number too large for float16.
    """
    _check_weights_are_mapped(model)
    tensors = {}
    for mapping in WEIGHT_MAP:
        parameter: Any = functools.reduce(getattr, mapping.path.split("."), model)  # pyright: ignore[reportArgumentType]
        if parameter is not None or mapping is not HEAD:
            tensors |= dict(_export_weight(mapping, parameter, config=model.config, dtype=dtype))
    return tensors


def _export_weight(
    mapping: WeightMapping, parameter: nnx.Param[Array] | None, *, config: GPTConfig, dtype: DTypeName
) -> Iterator[tuple[str, np.ndarray]]:
    values = None if parameter is None else np.asarray(parameter[...])
    for i, name in enumerate(mapping.hf_names(config)):
        if values is None or parameter is None:
            yield name, np.zeros(mapping.hf_shape(config), DTYPES[dtype])
        else:
            weight = values[i] if mapping.is_stacked else values
            tensor = to_hf_layout(weight, mapping, axis_names=parameter.axis_names, config=config)
            yield name, _cast(tensor, dtype, name=name)


def _cast(values: np.ndarray, dtype: DTypeName, *, name: str) -> np.ndarray:
    # ml_dtypes and numpy both round to nearest even, so a value that came from this type returns to its own bits.
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(values, dtype=DTYPES[dtype])
    if dtype == "float16" and (np.isinf(out) & np.isfinite(values)).any():
        raise UserError(f"{name} holds {np.abs(values).max():.3g}, too large for float16. Use --dtype=bfloat16.")
    return out


def _check_weights_are_mapped(model: GPT) -> None:
    mapped = {mapping.path for mapping in WEIGHT_MAP}
    leaves = jax.tree.leaves_with_path(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    if unmapped := [path for path in paths if path not in mapped]:
        raise UserError(
            f"Hugging Face's GPT-2 has no weights {', '.join(unmapped)}: this model is not a GPT-2. "
            "Export it under an architecture of its own: gptjax/huggingface/gpt2_mapping.py has the table of names."
        )


def hf_config(
    config: GPTConfig, *, dtype: DTypeName, end_of_text: int | None, origin: HFOrigin | None = None
) -> dict[str, Any]:
    """The content of config.json. Fields of the `origin` that we do not know are kept.

    Raises:
        UserError: the model has an option that GPT-2 has not.
    """
    _check_is_gpt2(config)
    fields = {hf_field: getattr(config, field) for hf_field, field in CONFIG_FIELDS.items()}
    fields["vocab_size"] = config.resolved_vocab_size
    kept = dict(origin.config) if origin else {}
    if HF_ACTIVATIONS.get(kept.get("activation_function", "gelu_new")) != config.activation:
        kept["activation_function"] = next(hf for hf, name in HF_ACTIVATIONS.items() if name == config.activation)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    special_tokens = dict.fromkeys(("bos_token_id", "eos_token_id"), end_of_text)
    identity = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    defaults = {"activation_function": "gelu_new"} | dropout | special_tokens | REQUIRED_HF_FIELDS
    old_dtype = {"torch_dtype": dtype} if "torch_dtype" in kept else {}
    return defaults | kept | identity | fields | {"dtype": dtype} | old_dtype


def _check_is_gpt2(config: GPTConfig) -> None:
    """Raise, with their names, for options that GPT2LMHeadModel cannot compute."""
    names = [field.name for field in dataclasses.fields(config) if field.name not in EXPORTABLE_FIELDS]
    own = [name for name in names if getattr(config, name) != getattr(GPTConfig, name)]
    if config.activation not in HF_ACTIVATIONS.values():
        own.append("activation")
    if own:
        listed = ", ".join(f"model.{name}={getattr(config, name)}" for name in own)
        raise UserError(f"Hugging Face's GPT-2 cannot express {listed}. This model cannot be exported.")


# --- import ---


def from_hf(
    directory: str | Path, *, mesh: MeshConfig | None = None, dtype: Literal["bfloat16", "float32"] | None = None
) -> tuple[GPTConfig, GPT, HFOrigin]:
    """Read a GPT-2 that transformers saved. Weights are stored as float32, which loses nothing.

    Dropout is 0: their 0.1 belongs to a training that is over. With a sharded mesh call it inside `mesh.activate()`;
    each weight is placed as it is read.

    Args:
        dtype: what the model computes in; None takes bfloat16 for a bfloat16 file, else float32.

    Raises:
        UserError: names what is missing, unexpected, or of another shape or type than GPT-2's.
    """
    directory = Path(directory)
    content = read_json(directory / CONFIG_FILE)
    config = from_hf_config(content, where=directory / CONFIG_FILE)
    with ExitStack() as stack:
        tensors = _by_full_name(open_tensors(directory, stack))
        stored_dtype = _check_tensors(tensors, config, directory)
        dtype = dtype or ("bfloat16" if stored_dtype == "bfloat16" else "float32")
        config = replace(config, compute=replace(config.compute, dtype=dtype))
        shapes, device_mesh = abstract_model(config, mesh), (mesh or MeshConfig()).make_mesh()
        mappings = {mapping.path: mapping for mapping in WEIGHT_MAP}

        def load(path: Any, parameter: nnx.Param[Any]) -> nnx.Variable[Array]:
            mapping = mappings[jax.tree_util.keystr(path, simple=True, separator=".")]
            target: jax.ShapeDtypeStruct = parameter.get_value()
            values = np.empty(target.shape, np.float32)
            for i, name in enumerate(mapping.hf_names(config)):
                tensor = tensors[name].read().astype(np.float32)
                weight = to_jax_layout(tensor, mapping, axis_names=parameter.axis_names, config=config)
                values[i if mapping.is_stacked else ...] = weight
            sharding = None if device_mesh is None else NamedSharding(device_mesh, target.sharding.spec)
            return parameter.replace(jax.device_put(values, sharding))

        model = jax.tree.map_with_path(load, shapes, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    return config, model, HFOrigin(content, stored_dtype)


def from_hf_config(content: dict[str, Any], *, where: Path) -> GPTConfig:
    """Our config for their config.json. Raises `UserError` naming the field that asks for something else than GPT-2."""
    if content.get("model_type") != "gpt2":
        raise UserError(f"{where}: model_type is {content.get('model_type')!r}; only gpt2 can be read.")
    for hf_field, value in REQUIRED_HF_FIELDS.items():
        if content.get(hf_field, value) != value:
            raise UserError(
                f"{where}: {hf_field} is {content[hf_field]!r}, a variant that is not computed here (only {value})."
            )
    activation = content.get("activation_function", "gelu_new")
    if activation not in HF_ACTIVATIONS:
        raise UserError(f"{where}: activation_function is {activation!r}; known here: {', '.join(HF_ACTIVATIONS)}.")
    fields: dict[str, Any] = {}
    for hf_field, field in CONFIG_FIELDS.items():
        if hf_field in content:
            fields[field] = value = content[hf_field]
            wanted = {"tie_embeddings": bool, "norm_epsilon": float}.get(field, int)
            if type(value) is not wanted and not (field == "mlp_dim" and value is None):
                raise UserError(f"{where}: {hf_field} is {value!r}; wanted: {wanted.__name__}.")
    return GPTConfig(**fields, activation=HF_ACTIVATIONS[activation])


def _by_full_name(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors by their full name, without the causal masks that old checkpoints hold among the weights."""
    full_name = lambda name: name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
    return {full_name(name): tensor for name, tensor in stored.items() if not _CAUSAL_MASK.search(name)}


def _check_tensors(tensors: dict[str, StoredTensor], config: GPTConfig, directory: Path) -> DTypeName:
    """The type of the tensors. Raises `UserError` unless exactly the table's tensors are there, in its shapes."""
    expected = {
        name: mapping.hf_shape(config)
        for mapping in WEIGHT_MAP
        for name in mapping.hf_names(config)
        if mapping is not HEAD or not config.tie_embeddings or HEAD.hf_name in tensors
    }
    if missing := [name for name in expected if name not in tensors]:
        raise UserError(f"{directory}: {_list(missing)} missing, which {CONFIG_FILE} asks for. Fetch the model again.")
    if unexpected := [tensor.name for name, tensor in tensors.items() if name not in expected]:
        raise UserError(
            f"{directory}: {_list(unexpected)} not GPT-2's. It is another kind of model, or {CONFIG_FILE} is another's."
        )
    dtypes: set[DTypeName] = set()
    for name, shape in expected.items():
        found, code = tensors[name].shape, tensors[name].dtype
        if found != shape:
            raise UserError(f"{directory}: {name} has shape {found}, but {CONFIG_FILE} makes it {shape}.")
        if code not in _STORED_DTYPES:
            raise UserError(f"{directory}: {name} is of type {code}; readable are {', '.join(_STORED_DTYPES)}.")
        dtypes.add(_STORED_DTYPES[code])
    stores_tied_head = config.tie_embeddings and HEAD.hf_name in expected
    if stores_tied_head and not np.array_equal(tensors[HEAD.hf_name].read(), tensors[EMBEDDING.hf_name].read()):
        raise UserError(
            f"{directory}: tie_word_embeddings is true, but {HEAD.hf_name} differs from the embedding. Set it to false "
            f"in {CONFIG_FILE} if the head is meant, or remove the tensor."
        )
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"the weight {shown} is" if len(names) == 1 else f"the weights {shown} are"
