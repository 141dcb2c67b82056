"""Tensors and config fields of Hugging Face's GPT-2, with their counterparts here.

`WEIGHT_MAP` and `FIELDS` are read in one direction by the import and in the other by the export. Hugging Face keeps
each block's weights apart and merges axes. Here weights are stacked over the layers and every axis is separate. GPT-2's
Conv1D stores (in, out), as this project does, so only the untied head is transposed.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from gptjax.model.config import GPTConfig

CONFIG_FILE = "config.json"
DTypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@dataclass(frozen=True)
class WeightMapping:
    """One kind of weight."""

    hf_name: str
    """Name of its tensor. `{}` stands for the layer."""
    path: str
    """Path of its parameter in `GPT`."""
    hf_axes: str
    """A word for each axis of the tensor, made of the axis names that it merges."""

    def list_names(self, config: GPTConfig) -> list[str]:
        """The names of its tensors, one for each layer of a weight that blocks have."""
        return [self.hf_name.format(layer) for layer in range(config.num_layers)] if self.is_stacked else [self.hf_name]

    @property
    def is_stacked(self) -> bool:
        """True if the parameter has a leading axis of layers."""
        return "{}" in self.hf_name


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
"""The tensors of GPT2LMHeadModel."""
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
"""Field of config.json → field of GPTConfig. Their defaults are the same (GPT-2 124M), so that a file may omit them."""
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # the same, with √(2 / π) rounded
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Activation of config.json → activation here. The export uses the first that fits."""
REQUIRED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
"""Fields that would change what GPT-2 computes. `reorder_and_upcast_attn` would not: the softmax is float32 anyway."""


@dataclass(frozen=True)
class HFOrigin:
    """Facts that an import keeps for a later export."""

    config: dict[str, Any]
    """The content of config.json."""
    dtype: DTypeName
    """Type of the tensors; float32 if they were of several."""


def get_axis_sizes(config: GPTConfig, *, padded: bool) -> dict[str, int]:
    """The size of each axis name, with the vocabulary padded or not."""
    vocab = config.padded_vocab_size if padded else config.resolved_vocab_size
    heads = {"C": 3, "H": config.num_heads, "K": config.head_dim}
    return heads | {"V": vocab, "T": config.context_length, "D": config.embed_dim, "F": config.hidden_dim}


def get_hf_shape(row: WeightMapping, config: GPTConfig) -> tuple[int, ...]:
    """The shape of a row's tensors, of one layer each."""
    sizes = get_axis_sizes(config, padded=False)
    return tuple(math.prod(sizes[axis] for axis in word) for word in row.hf_axes.split())


def format_path(path: Any) -> str:
    """The path of a parameter as `WEIGHT_MAP` writes it."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def is_param(leaf: Any) -> bool:
    from flax import nnx  # slow to import

    return isinstance(leaf, nnx.Param)
