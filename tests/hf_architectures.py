"""Small configs, one for each option of a model, and models with drawn weights, for the tests of exports."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.huggingface.architectures.weight_map import format_path
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT, abstract_model

GPT2_CONFIG = GPTConfig(
    num_layers=4,
    embed_dim=32,
    num_heads=4,
    context_length=16,
    vocab_size=131,
    compute=ComputeConfig(dtype="float32", attention_impl="xla"),
)
LLAMA_CONFIG = replace(
    GPT2_CONFIG,
    mlp_dim=52,
    bias=False,
    tie_embeddings=False,
    activation="silu",
    positions="rotary",
    norm="rms",
    gated_mlp=True,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "positions": {"positions": "rotary"},
    "rotary_base": {"positions": "rotary", "rotary_base": 500.0},
    "rotary_fraction": {"positions": "rotary", "rotary_fraction": 0.5},
    "norm": {"norm": "rms"},
    "qk_norm": {"qk_norm": True},
    "qk_norm_scale": {"qk_norm": True, "qk_norm_scale": True},
    "embedding_norm": {"embedding_norm": True},
    "num_kv_heads": {"num_kv_heads": 2},
    "attention_scale": {"attention_scale": 0.1},
    "window_pattern": {"window_pattern": "SSL", "short_window": 3},
    "long_window": {"long_window": 5},
    "num_sinks": {"num_sinks": 3},
    "gated_mlp": {"gated_mlp": True},
    "unet_skips": {"unet_skips": "plain"},
    "unet_skips_inputs": {"unet_skips": "inputs", "num_layers": 5},
    "unet_skips_learned": {"unet_skips": "learned", "num_layers": 5},
    "x0_mix": {"x0_mix": True},
    "value_residual": {"value_residual": True},
    "value_embeddings": {"value_embeddings": "01.0"},
    "value_gate": {"value_embeddings": "0.0.", "value_gate": True, "num_kv_heads": 2},
    "head_bias": {"head_bias": True},
    "logit_softcap": {"logit_softcap": 3.0},
    "logit_softcap_curve": {"logit_softcap": 3.0, "logit_softcap_curve": "sqrt"},
    "activation": {"activation": "relu2"},
}
"""Changes of GPT-2 that GPT2LMHeadModel cannot express, by the field that says so."""

EVERYTHING: dict[str, Any] = {
    "positions": "rotary",
    "rotary_fraction": 0.5,
    "norm": "rms",
    "qk_norm": True,
    "qk_norm_scale": True,
    "embedding_norm": True,
    "num_kv_heads": 2,
    "attention_scale": 0.4,
    "window_pattern": "SL",
    "short_window": 4,
    "num_sinks": 2,
    "gated_mlp": True,
    "unet_skips": "learned",
    "x0_mix": True,
    "value_embeddings": "0..1",
    "value_residual": True,
    "tie_embeddings": False,
    "head_bias": True,
    "logit_softcap": 4.0,
    "activation": "relu2",
}
"""Options that work together, all in one model."""


def shrink_model(config: GPTConfig) -> GPTConfig:
    """A recipe's model with few, narrow layers and a short context. Its options stay."""
    return replace(
        config,
        num_layers=4,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=config.num_kv_heads and 2,
        mlp_dim=config.mlp_dim and 64,
        context_length=16,
        vocab_size=131,
        short_window=config.short_window and 5,
        long_window=config.long_window and 11,
        intra_document_mask=False,
        compute=GPT2_CONFIG.compute,
    )


def draw_model(config: GPTConfig, *, seed: int = 0) -> GPT:
    """A model whose every weight is drawn, large enough to matter; also those that start at zero or one."""
    random = np.random.RandomState(seed)

    def draw(path: Any, parameter: nnx.Param[Any]) -> nnx.Variable[Any]:
        noise = 0.2 * random.standard_normal(parameter.get_value().shape)
        centre = 1.0 if format_path(path).endswith(("scale", "skip_weights", "residual_mix")) else 0.0
        return parameter.replace(jnp.asarray(centre + noise, jnp.float32))

    return jax.tree.map_with_path(draw, abstract_model(config), is_leaf=lambda leaf: isinstance(leaf, nnx.Param))


def draw_tokens(config: GPTConfig, *, seed: int = 1, rows: int = 2) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, config.resolved_vocab_size, (rows, config.context_length))


def compute_logits(model: GPT, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(GPT.__call__)(model, jnp.asarray(tokens)))
