"""The architecture of Llama: rotary positions, RMSNorm with a gain, a gated MLP, grouped queries, no biases."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError, quote
from gptjax.huggingface.architectures.architecture import Architecture, drop_ineffective
from gptjax.huggingface.architectures.weight_map import HeadOrder, WeightMapping
from gptjax.model.config import GPTConfig
from gptjax.model.positions import DEFAULT_ROTARY_BASE

FIELDS = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "hidden_size": "embed_dim",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "intermediate_size": "mlp_dim",
    "rms_norm_eps": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


LARGEST_BASE = 1e30
"""Of rotary positions: far more than any model has, and its powers are float32."""


def map_projections(names: Mapping[str, str], *, head_order: HeadOrder = "halves") -> tuple[WeightMapping, ...]:
    """The projections to q, k and v, by their tensors' names: one matrix here or, for grouped queries, two."""
    turned: dict[str, HeadOrder] = {"q": head_order, "k": head_order, "v": "halves"}
    joint = [
        WeightMapping(names[name], "blocks.attention.qkv", "HK D", entry=entry, head_order=turned[name])
        for entry, name in enumerate("qkv")
    ]
    grouped = [
        WeightMapping(names[name], "blocks.attention.kv", "JK D", entry=entry, head_order=turned[name])
        for entry, name in enumerate("kv")
    ]
    return *joint, WeightMapping(names["q"], "blocks.attention.q", "HK D", head_order=head_order), *grouped


def map_attention(layer: str, *, head_order: HeadOrder = "halves") -> tuple[WeightMapping, ...]:
    """The projections of attention by Llama's names."""
    inputs = map_projections({name: f"{layer}.self_attn.{name}_proj.weight" for name in "qkv"}, head_order=head_order)
    return *inputs, WeightMapping(f"{layer}.self_attn.o_proj.weight", "blocks.attention.out", "D HK")


WEIGHTS = (
    WeightMapping("model.embed_tokens.weight", "token_embedding", "V D"),
    WeightMapping("model.layers.{}.input_layernorm.weight", "blocks.attention_norm.scale", "D", default=1.0),
    *map_attention("model.layers.{}"),
    WeightMapping("model.layers.{}.post_attention_layernorm.weight", "blocks.mlp_norm.scale", "D", default=1.0),
    WeightMapping("model.layers.{}.mlp.gate_proj.weight", "blocks.mlp.gate", "F D"),
    WeightMapping("model.layers.{}.mlp.up_proj.weight", "blocks.mlp.up", "F D"),
    WeightMapping("model.layers.{}.mlp.down_proj.weight", "blocks.mlp.down", "D F"),
    WeightMapping("model.norm.weight", "norm.scale", "D", default=1.0),
    WeightMapping("lm_head.weight", "head", "V D"),
)


class RotaryArchitecture(Architecture):
    """An architecture of Llama's family, with its fields of heads and rotary positions."""

    def write_config(self, config: GPTConfig) -> dict[str, Any]:
        base = config.rotary_base or DEFAULT_ROTARY_BASE
        content = super().write_config(config)
        content |= {"intermediate_size": config.hidden_dim, "num_key_value_heads": config.kv_heads}
        content |= {"head_dim": config.head_dim, "attention_dropout": config.dropout}
        # transformers 5 reads the first; transformers 4, llama.cpp and keras-hub the second.
        return content | {"rope_parameters": {"rope_type": "default", "rope_theta": base}, "rope_theta": base}

    def read_config(self, content: Mapping[str, Any], *, path: Path) -> GPTConfig:
        config = super().read_config(content, path=path)
        if content.get("head_dim") not in (None, config.head_dim):
            raise UserError(
                f"{path}: head_dim is {quote(repr(content['head_dim']))}; supported: hidden_size / "
                f"num_attention_heads, which is {config.head_dim}."
            )
        base = read_rotary_base(content, path=path)
        return drop_ineffective(replace(config, rotary_base=None if base == DEFAULT_ROTARY_BASE else base))

    def list_losses(self, config: GPTConfig) -> list[str]:
        losses = super().list_losses(config)
        if config.norm_epsilon != 1e-6:
            losses.append("keras-hub ignores rms_norm_eps and computes with 1e-06.")
        if config.activation != "silu":
            losses.append(f"ctranslate2 and keras-hub compute silu in place of {config.activation}.")
        return losses


def read_rotary_base(content: Mapping[str, Any], *, path: Path) -> float:
    """The base of rotary positions, as transformers 4 and 5 store it. Raises `UserError` for positions that scale."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters is {quote(repr(rope))}; wanted: an object.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{path}: rotary positions are {quote(repr(rope))}; supported: 'default'.")
    base = rope.get("rope_theta", content.get("rope_theta", DEFAULT_ROTARY_BASE))
    if type(base) not in (int, float) or not 0 < base <= LARGEST_BASE:
        raise UserError(f"{path}: rope_theta is {quote(repr(base))}; wanted: a number up to {LARGEST_BASE:g}.")
    return float(base)


LLAMA = RotaryArchitecture(
    model_type="llama",
    hf_class="LlamaForCausalLM",
    weights=WEIGHTS,
    fields=FIELDS,
    activation_field="hidden_act",
    activations=ACTIVATIONS,
    implied={"positions": "rotary", "norm": "rms", "gated_mlp": True, "bias": False},
    free=frozenset({"norm_scale", "rotary_base"}),
    required={"attention_bias": False, "mlp_bias": False},
    defaults={"num_key_value_heads": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    prefix="model.",
    buffers=re.compile(r"rotary_emb\.inv_freq$"),
)
