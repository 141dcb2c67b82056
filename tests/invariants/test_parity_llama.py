"""Invariant: RoPE, RMSNorm, SwiGLU, GQA, windows and QK-norm compute here what they compute in transformers.

transformers makes small Llama, Mistral and Qwen3 models with random weights, which are copied into models of this
project. Needs torch and transformers: `-m parity`.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT, abstract_model

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # torch and transformers have warnings of their own
]

CONFIG = GPTConfig(
    num_layers=3,
    embed_dim=32,
    num_heads=4,
    context_length=24,
    vocab_size=131,
    mlp_dim=52,
    bias=False,
    tie_embeddings=False,
    activation="silu",
    norm_epsilon=1e-5,
    positions="rotary",
    norm="rms",
    gated_mlp=True,
    compute=ComputeConfig(dtype="float32", attention_impl="xla"),
)
MODELS = {
    "llama_mha": ("LlamaForCausalLM", CONFIG, {}),
    "llama_gqa": ("LlamaForCausalLM", replace(CONFIG, num_kv_heads=2, rotary_base=500.0), {}),
    "llama_tied": ("LlamaForCausalLM", replace(CONFIG, num_kv_heads=1, tie_embeddings=True, norm_epsilon=1e-3), {}),
    "mistral": ("MistralForCausalLM", replace(CONFIG, num_kv_heads=2, long_window=7), {"sliding_window": 7}),
    "qwen3_mha": ("Qwen3ForCausalLM", replace(CONFIG, qk_norm=True), {}),
    "qwen3_gqa": ("Qwen3ForCausalLM", replace(CONFIG, qk_norm=True, num_kv_heads=2, rotary_base=1e6), {}),
}
"""Class of transformers, the config here, and fields that only its config has."""


def make_torch_model(class_name: str, config: GPTConfig, extra: dict[str, Any]) -> Any:
    """A random model of transformers with the sizes of `config`."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    model_class = getattr(transformers, class_name)
    hf_config = model_class.config_class(
        vocab_size=config.vocab_size,
        hidden_size=config.embed_dim,
        intermediate_size=config.hidden_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context_length,
        rms_norm_eps=config.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base or 10_000.0},
        tie_word_embeddings=config.tie_embeddings,
        attn_implementation="eager",
        **extra,
    )
    torch.manual_seed(0)
    model = model_class(hf_config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                parameter.fill_(1.0)  # the QK-norm here has no scale
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def convert_weights(state: dict[str, np.ndarray], config: GPTConfig) -> dict[str, np.ndarray]:
    """The weights by path and with the axes of this project, from torch's (out, in)."""
    embed_dim, head_dim, heads, kv_heads = config.embed_dim, config.head_dim, config.num_heads, config.kv_heads
    stack = lambda name: np.stack([state[f"model.layers.{i}.{name}.weight"] for i in range(config.num_layers)])
    project = lambda name: stack(name).swapaxes(1, 2)
    split_heads = lambda name, count: project(f"self_attn.{name}").reshape(-1, embed_dim, count, head_dim)
    pad_vocab = lambda table: np.pad(table, [(0, config.padded_vocab_size - len(table)), (0, 0)])
    q, k, v = split_heads("q_proj", heads), split_heads("k_proj", kv_heads), split_heads("v_proj", kv_heads)
    attention = {"q": q, "kv": np.stack([k, v], axis=2)} if kv_heads < heads else {"qkv": np.stack([q, k, v], axis=2)}
    weights = {f"blocks.attention.{name}": weight for name, weight in attention.items()} | {
        "token_embedding": pad_vocab(state["model.embed_tokens.weight"]),
        "blocks.attention.out": project("self_attn.o_proj").reshape(-1, heads, head_dim, embed_dim),
        "blocks.attention_norm.scale": stack("input_layernorm"),
        "blocks.mlp_norm.scale": stack("post_attention_layernorm"),
        "blocks.mlp.gate": project("mlp.gate_proj"),
        "blocks.mlp.up": project("mlp.up_proj"),
        "blocks.mlp.down": project("mlp.down_proj"),
        "norm.scale": state["model.norm.weight"],
    }
    return weights if config.tie_embeddings else weights | {"head": pad_vocab(state["lm_head.weight"]).T}


def build_model(config: GPTConfig, weights: dict[str, np.ndarray]) -> GPT:
    """A model with exactly these weights."""
    remaining = dict(weights)

    def fill(path: Any, parameter: nnx.Param[Any]) -> nnx.Variable[Any]:
        weight = remaining.pop(jax.tree_util.keystr(path, simple=True, separator="."))
        assert weight.shape == parameter.get_value().shape
        return parameter.replace(jnp.asarray(weight))

    model = jax.tree.map_with_path(fill, abstract_model(config), is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    assert not remaining
    return model


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name: str):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    class_name, config, extra = MODELS[name]
    torch_model = make_torch_model(class_name, config, extra)
    tokens = np.random.RandomState(1).randint(0, config.resolved_vocab_size, (2, config.context_length))
    with torch.no_grad():
        expected = torch_model(torch.tensor(tokens)).logits.numpy()
    state = {name: tensor.numpy() for name, tensor in torch_model.state_dict().items()}
    model = build_model(config, convert_weights(state, config))
    logits = jax.jit(GPT.__call__)(model, jnp.asarray(tokens))
    assert np.ptp(expected) > 1, "equal logits would prove little"
    np.testing.assert_allclose(logits, expected, atol=2e-5, rtol=0)
