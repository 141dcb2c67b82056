"""gptjax ⇄ Hugging Face GPT-2: the only room that knows their names.

One table says for each weight its name there, its path here and how their axes are made of our letters; it is read in
one direction to export and in the other to import. GPT-2's Conv1D keeps (in, out), as we do, so nothing but the untied
head is transposed. Their blocks are separate tensors, ours are stacked: import reads and places one of our weights at a
time. Only safetensors are read, never a pickle.

What cannot be said there: a model without biases is exported with zeros in their place (theirs always has biases), and
comes back as one with biases that computes the same.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from gptjax.core.errors import UserError
from gptjax.huggingface.safetensors_dir import StoredTensor, open_tensors, read_json
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model
from gptjax.sharding.mesh import MeshConfig

CONFIG_FILE = "config.json"
DTypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class WeightMapping:
    """One weight: `theirs` has a word of our letters for each of their axes; `{}` in the name counts layers."""

    name: str
    path: str
    theirs: str

    @property
    def stacked(self) -> bool:
        return "{}" in self.name


WEIGHT_MAP = (
    WeightMapping("transformer.wte.weight", "tokens", "V D"),
    WeightMapping("transformer.wpe.weight", "positions", "T D"),
    WeightMapping("transformer.h.{}.ln_1.weight", "blocks.attention_norm.scale", "D"),
    WeightMapping("transformer.h.{}.ln_1.bias", "blocks.attention_norm.bias", "D"),
    WeightMapping("transformer.h.{}.attn.c_attn.weight", "blocks.attention.qkv", "D CHK"),
    WeightMapping("transformer.h.{}.attn.c_attn.bias", "blocks.attention.qkv_bias", "CHK"),
    WeightMapping("transformer.h.{}.attn.c_proj.weight", "blocks.attention.out", "HK D"),
    WeightMapping("transformer.h.{}.attn.c_proj.bias", "blocks.attention.out_bias", "D"),
    WeightMapping("transformer.h.{}.ln_2.weight", "blocks.mlp_norm.scale", "D"),
    WeightMapping("transformer.h.{}.ln_2.bias", "blocks.mlp_norm.bias", "D"),
    WeightMapping("transformer.h.{}.mlp.c_fc.weight", "blocks.mlp.up", "D F"),
    WeightMapping("transformer.h.{}.mlp.c_fc.bias", "blocks.mlp.up_bias", "F"),
    WeightMapping("transformer.h.{}.mlp.c_proj.weight", "blocks.mlp.down", "F D"),
    WeightMapping("transformer.h.{}.mlp.c_proj.bias", "blocks.mlp.down_bias", "D"),
    WeightMapping("transformer.ln_f.weight", "norm.scale", "D"),
    WeightMapping("transformer.ln_f.bias", "norm.bias", "D"),
    WeightMapping("lm_head.weight", "head", "V D"),
)
"""Tensors of GPT2LMHeadModel, saved with or without the leading `transformer.`."""

HEAD, EMBEDDING = WEIGHT_MAP[-1], WEIGHT_MAP[0]
FIELDS = {
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "embed_dim",
    "n_positions": "context_length",
    "vocab_size": "vocab_size",
    "n_inner": "mlp_dim",
    "layer_norm_epsilon": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
}
"""Their field → ours; one that a config.json leaves out has the same default in both (GPT-2 124M)."""
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Their activation → ours; on the way back the first that fits."""
GPT2S = {
    "positions": "learned",
    "norm": "layer",
    "norm_scale": True,
    "qk_norm": False,
    "embedding_norm": False,
    "num_kv_heads": None,
    "attention_scale": None,
    "window_pattern": "L",
    "long_window": None,
    "num_sinks": 0,
    "intra_document_mask": False,
    "gated_mlp": False,
    "unet_skips": "none",
    "x0_mix": False,
    "value_residual": False,
    "value_embeddings": "",
    "head_bias": False,
    "logit_softcap": None,
}
"""What later models changed, as GPT-2 has it."""
REQUIRED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
"""Variants of GPT-2 that compute something else. `reorder_and_upcast_attn` does not: our softmax is float32 anyway."""


@dataclass(frozen=True)
class HFOrigin:
    """What an import remembers for the way back: their config.json, and the type of the tensors (float32 if mixed)."""

    config: dict[str, Any]
    dtype: DTypeName


# --- shapes: their axes are words of our letters ---


def _sizes(config: GPTConfig, *, padded: bool) -> dict[str, int]:
    vocabulary = config.padded_vocab_size if padded else config.resolved_vocab_size
    attention = {"C": 3, "H": config.num_heads, "K": config.head_dim}
    return {"V": vocabulary, "T": config.context_length, "D": config.embed_dim, "F": config.hidden_dim} | attention


def _their_shape(row: WeightMapping, config: GPTConfig) -> tuple[int, ...]:
    sizes = _sizes(config, padded=False)
    return tuple(int(np.prod([sizes[letter] for letter in word])) for word in row.theirs.split())


def _to_ours(tensor: np.ndarray, row: WeightMapping, *, axis_names: str, config: GPTConfig) -> np.ndarray:
    """Split their axes into letters, order them as ours, and pad the vocabulary with zeros."""
    have, want = _sizes(config, padded=False), _sizes(config, padded=True)
    theirs = row.theirs.replace(" ", "")
    split = tensor.reshape([have[letter] for letter in theirs])
    ours = split.transpose([theirs.index(letter) for letter in axis_names])
    return np.pad(ours, [(0, want[letter] - have[letter]) for letter in axis_names])


def _to_theirs(weight: np.ndarray, row: WeightMapping, *, axis_names: str, config: GPTConfig) -> np.ndarray:
    """The inverse of `_to_ours`."""
    sizes = _sizes(config, padded=False)
    stripped = weight[tuple(slice(sizes[letter]) for letter in axis_names)]
    ordered = stripped.transpose([axis_names.index(letter) for letter in row.theirs.replace(" ", "")])
    return ordered.reshape(_their_shape(row, config))


# --- out ---


def to_hf(model: GPT, *, dtype: DTypeName = "float32") -> dict[str, np.ndarray]:
    """All tensors of the model under Hugging Face's names, on the host.

    Raises:
        UserError: the model has a weight that GPT-2 has no place for, or a number too large for float16.
    """
    _check_homes(model)
    out = {}
    for row in WEIGHT_MAP:
        parameter: Any = functools.reduce(getattr, row.path.split("."), model)  # pyright: ignore[reportArgumentType]
        if parameter is not None or row is not HEAD:
            out |= dict(_exported(row, parameter, config=model.config, dtype=dtype))
    return out


def _exported(
    row: WeightMapping, parameter: nnx.Param[Array] | None, *, config: GPTConfig, dtype: DTypeName
) -> Iterator[tuple[str, np.ndarray]]:
    layers = config.num_layers if row.stacked else 1
    values = None if parameter is None else np.asarray(parameter[...])
    for i in range(layers):
        name = row.name.format(i)
        if values is None or parameter is None:
            yield name, np.zeros(_their_shape(row, config), DTYPES[dtype])
        else:
            mine = values[i] if row.stacked else values
            yield name, _as(_to_theirs(mine, row, axis_names=parameter.axis_names, config=config), dtype, name)


def _as(values: np.ndarray, dtype: DTypeName, name: str) -> np.ndarray:
    # ml_dtypes and numpy both round to nearest even, so a value that came from this type returns to its own bits.
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(values, dtype=DTYPES[dtype])
    if dtype == "float16" and (np.isinf(out) & np.isfinite(values)).any():
        raise UserError(f"{name} holds {np.abs(values).max():.3g}, too large for float16. Use --dtype=bfloat16.")
    return out


def _check_homes(model: GPT) -> None:
    homes = {row.path for row in WEIGHT_MAP}
    leaves = jax.tree.leaves_with_path(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    homeless = [path for path, _ in leaves if jax.tree_util.keystr(path, simple=True, separator=".") not in homes]
    if homeless:
        names = ", ".join(jax.tree_util.keystr(path, simple=True, separator=".") for path in homeless)
        raise UserError(
            f"Hugging Face's GPT-2 has no place for the weights {names}: this model is not a GPT-2. "
            "Export it under an architecture of its own: gptjax/hf.py holds the table of names."
        )


def hf_config(
    config: GPTConfig, *, dtype: DTypeName, end_of_text: int | None, origin: HFOrigin | None = None
) -> dict[str, Any]:
    """The content of config.json. Fields of the `origin` that we do not know are kept as they were.

    Raises:
        UserError: the model has a part that GPT-2 has not.
    """
    _check_is_gpt2(config)
    ours = {theirs: getattr(config, field) for theirs, field in FIELDS.items()}
    ours["vocab_size"] = config.resolved_vocab_size
    kept = dict(origin.config) if origin else {}
    if ACTIVATIONS.get(kept.get("activation_function", "gelu_new")) != config.activation:
        kept["activation_function"] = next(hf for hf, name in ACTIVATIONS.items() if name == config.activation)
    lr_scales = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), end_of_text)
    start = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    defaults = start | {"activation_function": "gelu_new"} | lr_scales | ends | REQUIRED
    renamed = {"torch_dtype": dtype} if "torch_dtype" in kept else {}
    return defaults | kept | start | ours | {"dtype": dtype} | renamed


def _check_is_gpt2(config: GPTConfig) -> None:
    """Raise, by name, for what GPT2LMHeadModel cannot compute."""
    own = [name for name, value in GPT2S.items() if getattr(config, name) != value]
    if config.activation not in ACTIVATIONS.values():
        own.append("activation")
    if own:
        said = ", ".join(f"model.{name}={getattr(config, name)}" for name in own)
        raise UserError(
            f"Hugging Face's GPT-2 cannot hold this model: it has no {said}. It stays in its run directory."
        )


# --- in ---


def from_hf(
    directory: str | Path, *, mesh: MeshConfig | None = None, dtype: Literal["bfloat16", "float32"] | None = None
) -> tuple[GPTConfig, GPT, HFOrigin]:
    """Read a GPT-2 that transformers saved; float32 in storage whatever the file holds, which loses nothing.

    Dropout is 0: their 0.1 belongs to the training that is over. Under a sharded layout call it inside
    `mesh.active()`; each weight is placed as it is read.

    Args:
        dtype: what the model computes in; None takes bfloat16 for a bfloat16 file, else float32.

    Raises:
        UserError: what is missing, unexpected, or of another shape or kind than GPT-2's, by name.
    """
    directory = Path(directory)
    content = read_json(directory / CONFIG_FILE)
    config = from_hf_config(content, where=directory / CONFIG_FILE)
    with ExitStack() as stack:
        tensors = _named(open_tensors(directory, stack))
        stored = _check_tensors(tensors, config, directory)
        config = replace(
            config, compute=replace(config.compute, dtype=dtype or ("bfloat16" if stored == "bfloat16" else "float32"))
        )
        rows = {row.path: row for row in WEIGHT_MAP}

        def load(path: Any, parameter: nnx.Param[Any]) -> nnx.Variable[Array]:
            row = rows[jax.tree_util.keystr(path, simple=True, separator=".")]
            target: jax.ShapeDtypeStruct = parameter.get_value()
            values = np.empty(target.shape, np.float32)
            for i in range(config.num_layers if row.stacked else 1):
                tensor = tensors[row.name.format(i)].read().astype(np.float32)
                values[i if row.stacked else ...] = _to_ours(
                    tensor, row, axis_names=parameter.axis_names, config=config
                )
            sharding = None if device_mesh is None else NamedSharding(device_mesh, target.sharding.spec)
            return parameter.replace(jax.device_put(values, sharding))

        shapes, device_mesh = abstract_model(config, mesh), (mesh or MeshConfig()).make_mesh()
        model = jax.tree.map_with_path(load, shapes, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    return config, model, HFOrigin(content, stored)


def from_hf_config(content: dict[str, Any], *, where: Path) -> GPTConfig:
    """Our config for their config.json; a UserError names the field that asks for something else than GPT-2."""
    if content.get("model_type") != "gpt2":
        raise UserError(f"{where}: model_type is {content.get('model_type')!r}; only gpt2 can be read.")
    for field, value in REQUIRED.items():
        if content.get(field, value) != value:
            raise UserError(
                f"{where}: {field} is {content[field]!r}, a variant that is not computed here (only {value})."
            )
    activation = content.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: activation_function is {activation!r}; known here: {', '.join(ACTIVATIONS)}.")
    ours: dict[str, Any] = {field: content[theirs] for theirs, field in FIELDS.items() if theirs in content}
    for field, value in ours.items():
        wanted = {"tie_embeddings": bool, "norm_epsilon": float}.get(field, int)
        if type(value) is not wanted and not (field == "mlp_dim" and value is None):
            theirs = next(name for name in FIELDS if FIELDS[name] == field)
            raise UserError(f"{where}: {theirs} is {value!r}; wanted: {wanted.__name__}.")
    return GPTConfig(**ours, activation=ACTIVATIONS[activation])  # pyright: ignore[reportArgumentType]


def _named(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """By their full name, and without the causal masks that old checkpoints hold as if they were weights."""
    prefixed = lambda name: name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
    return {prefixed(name): tensor for name, tensor in stored.items() if not _MASK.search(name)}


_MASK = re.compile(r"^(transformer\.)?h\.\d+\.attn\.(masked_)?bias$")


def _check_tensors(tensors: dict[str, StoredTensor], config: GPTConfig, directory: Path) -> DTypeName:
    """Raise unless exactly the table's tensors are there, in its shapes; returns their type."""
    expected = {
        row.name.format(i): _their_shape(row, config)
        for row in WEIGHT_MAP
        for i in range(config.num_layers if row.stacked else 1)
        if row is not HEAD or not config.tie_embeddings or HEAD.name in tensors
    }
    if missing := [name for name in expected if name not in tensors]:
        raise UserError(
            f"{directory}: {_listed(missing)} missing, which {CONFIG_FILE} asks for. Fetch the model again."
        )
    if homeless := [tensor.name for name, tensor in tensors.items() if name not in expected]:
        raise UserError(
            f"{directory}: {_listed(homeless)} without a home in GPT-2: another kind of model, or {CONFIG_FILE}."
        )
    dtypes = set()
    for name, shape in expected.items():
        have, code = tensors[name].shape, tensors[name].dtype
        if have != shape:
            raise UserError(f"{directory}: {name} has shape {have}, but {CONFIG_FILE} makes it {shape}.")
        if code not in _STORED:
            raise UserError(f"{directory}: {name} is of type {code}; readable are {', '.join(_STORED)}.")
        dtypes.add(_STORED[code])
    tie_is_doubtful = config.tie_embeddings and HEAD.name in expected
    if tie_is_doubtful and not np.array_equal(tensors[HEAD.name].read(), tensors[EMBEDDING.name].read()):
        raise UserError(
            f"{directory}: tie_word_embeddings is true, but {HEAD.name} differs from the embedding. Set it to false "
            f"in {CONFIG_FILE} if the head is meant, or remove the tensor."
        )
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"the weight {shown} is" if len(names) == 1 else f"the weights {shown} are"
