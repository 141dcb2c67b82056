"""Names, axes and config fields of Hugging Face's GPT-2, beside ours.

One table gives for each weight its name there, its path here and how their axes are made of our axis names. It is read
in one direction to export and in the other to import. GPT-2's Conv1D stores (in, out), as we do, so only an untied head
is transposed. Their blocks are separate tensors, ours are stacked.
"""

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from gptjax.model.config import GPTConfig

DTypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@dataclass(frozen=True)
class WeightMapping:
    """One weight. `{}` in `hf_name` is the layer; `hf_axes` has a word of our axis names for each of their axes."""

    hf_name: str
    path: str
    hf_axes: str

    @property
    def is_stacked(self) -> bool:
        return "{}" in self.hf_name

    def hf_names(self, config: GPTConfig) -> list[str]:
        """The names of the tensors that this weight becomes."""
        return [self.hf_name.format(i) for i in range(config.num_layers)] if self.is_stacked else [self.hf_name]

    def hf_shape(self, config: GPTConfig) -> tuple[int, ...]:
        sizes = axis_sizes(config, padded=False)
        return tuple(int(np.prod([sizes[letter] for letter in word])) for word in self.hf_axes.split())


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
EMBEDDING, HEAD = WEIGHT_MAP[0], WEIGHT_MAP[-1]

CONFIG_FIELDS = {
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "embed_dim",
    "n_positions": "context_length",
    "vocab_size": "vocab_size",
    "n_inner": "mlp_dim",
    "layer_norm_epsilon": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
}
"""Their field → ours. A field that a config.json does not give has the same default in both (GPT-2 124M)."""
HF_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Their activation → ours. An export uses the first that fits."""
EXPORTABLE_FIELDS = {*CONFIG_FIELDS.values(), "activation", "bias", "dropout", "init", "compute"}
"""Fields of `GPTConfig` that an export can express, or that change no result. All others must be at their defaults."""
REQUIRED_HF_FIELDS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Their variants of GPT-2 that compute something else. `reorder_and_upcast_attn` does not: our softmax is float32."""


def axis_sizes(config: GPTConfig, *, padded: bool) -> dict[str, int]:
    """The size of each axis name, with the vocabulary as it is stored or as it is published."""
    vocabulary = config.padded_vocab_size if padded else config.resolved_vocab_size
    attention = {"C": 3, "H": config.num_heads, "K": config.head_dim}
    return {"V": vocabulary, "T": config.context_length, "D": config.embed_dim, "F": config.hidden_dim} | attention


def to_jax_layout(tensor: np.ndarray, mapping: WeightMapping, *, axis_names: str, config: GPTConfig) -> np.ndarray:
    """Split their axes, order them as ours, and pad the vocabulary with zeros."""
    sizes, padded_sizes = axis_sizes(config, padded=False), axis_sizes(config, padded=True)
    hf_axes = mapping.hf_axes.replace(" ", "")
    split = tensor.reshape([sizes[letter] for letter in hf_axes])
    ordered = split.transpose([hf_axes.index(letter) for letter in axis_names])
    return np.pad(ordered, [(0, padded_sizes[letter] - sizes[letter]) for letter in axis_names])


def to_hf_layout(weight: np.ndarray, mapping: WeightMapping, *, axis_names: str, config: GPTConfig) -> np.ndarray:
    """The inverse of `to_jax_layout`."""
    sizes = axis_sizes(config, padded=False)
    unpadded = weight[tuple(slice(sizes[letter]) for letter in axis_names)]
    ordered = unpadded.transpose([axis_names.index(letter) for letter in mapping.hf_axes.replace(" ", "")])
    return ordered.reshape(mapping.hf_shape(config))
