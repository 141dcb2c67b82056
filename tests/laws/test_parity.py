"""Our models compute what transformers computes, and export after import changes no bit.

The default suite compares with logits of GPT-2 that transformers computed once, in `golden_gpt2.npz`. With torch and
transformers, `-m parity` runs both side by side: GPT-2, and Llama and Qwen3 with shared weights. `python
tests/laws/test_parity.py` writes the golden file again.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from formula import read_weights
from hf_models import Tensors, draw, make_config, same_bits, write
from models import make_model, make_tokens
from safetensors.numpy import load_file

from gptjax.huggingface.gpt2 import from_hf, hf_config, to_hf
from gptjax.huggingface.gpt2_mapping import DTypeName
from gptjax.huggingface.safetensors_dir import write_json, write_tensors
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT
from gptjax.training.objective import NextToken

GOLDEN = Path(__file__).parent / "golden_gpt2.npz"
GOLDEN_MODELS = {
    "gpt2": make_config(),
    "untied_relu": make_config(
        n_layer=2,
        n_head=2,
        n_embd=22,
        n_positions=9,
        vocab_size=130,
        n_inner=17,
        tie_word_embeddings=False,
        activation_function="relu",
        layer_norm_epsilon=1e-3,
    ),
}


def draw_tokens(config: dict[str, Any]) -> np.ndarray:
    shape = (2, config["n_positions"])
    return np.random.RandomState(1).randint(0, config["vocab_size"], shape)


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_logits_equal_the_recorded_ones_of_transformers(tmp_path: Path, name: str) -> None:
    config = GOLDEN_MODELS[name]
    _, model, _ = from_hf(write(tmp_path, config, draw(config)))
    with np.load(GOLDEN, allow_pickle=False) as golden:
        expected = golden[name]
    assert np.ptp(expected) > 1, "logits that hardly differ would prove little"
    logits = jax.jit(GPT.__call__)(model, jnp.asarray(draw_tokens(config)))
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


# --- GPT-2 side by side; needs torch and transformers ---


def load_torch_model(directory: Path) -> Any:
    import torch
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()


def compute_torch_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def compute_torch_loss(directory: Path, tokens: np.ndarray) -> float:
    import torch

    ids = torch.tensor(tokens)
    with torch.no_grad():
        return float(load_torch_model(directory)(ids, labels=ids).loss)


def compute_loss(model: GPT, tokens: np.ndarray) -> float:
    """Mean cross-entropy of the training objective, in float32."""
    ids = jnp.asarray(tokens)
    batch = {"tokens": ids, "targets": jnp.roll(ids, -1, axis=1).at[:, -1].set(-1)}
    total, count = jax.jit(NextToken(chunk_tokens=7).sum_loss)(model, batch)
    return float(total / count)


def save_with_transformers(directory: Path, config: dict[str, Any], *, dtype: str, shard_size: str) -> None:
    """A random GPT-2 that only transformers made and saved."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=shard_size)


def load_all(directory: Path) -> Tensors:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


LIVE_MODELS = [
    ({}, "float32", "5GB"),
    ({"n_inner": 50, "activation_function": "gelu"}, "float32", "20KB"),
    ({"vocab_size": 257, "layer_norm_epsilon": 1e-3, "activation_function": "relu"}, "float32", "5GB"),
    ({"tie_word_embeddings": False, "activation_function": "silu"}, "float32", "20KB"),
    ({"n_head": 1, "n_embd": 7, "n_layer": 1, "n_positions": 5}, "float32", "5GB"),
    ({"activation_function": "gelu_pytorch_tanh", "reorder_and_upcast_attn": True}, "float16", "20KB"),
    ({"n_inner": 13, "vocab_size": 128}, "bfloat16", "5GB"),
    ({"tie_word_embeddings": False}, "bfloat16", "20KB"),
]


@pytest.mark.parity
@pytest.mark.parametrize(("changes", "dtype", "shard_size"), LIVE_MODELS)
@pytest.mark.filterwarnings("default")  # torch and transformers have warnings of their own
def test_gpt2_of_transformers_is_imported_and_exported_exactly(
    tmp_path: Path, changes: dict[str, Any], dtype: DTypeName, shard_size: str
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    hf_fields = make_config(**changes)
    tokens, saved, exported = draw_tokens(hf_fields), tmp_path / "saved", tmp_path / "exported"
    save_with_transformers(saved, hf_fields, dtype=dtype, shard_size=shard_size)
    config, model, origin = from_hf(saved, dtype="float32")
    assert origin.dtype == dtype
    assert (len(list(saved.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    assert compute_loss(model, tokens) == pytest.approx(compute_torch_loss(saved, tokens), abs=1e-4)

    exported.mkdir()
    tensors = to_hf(model, dtype=origin.dtype)
    assert same_bits(tensors, load_all(saved))
    write_tensors(exported, tensors, shard_bytes=20_000)
    write_json(exported / "config.json", hf_config(config, dtype=origin.dtype, end_of_text=None, origin=origin))
    before, after = (compute_torch_logits(load_torch_model(directory), tokens) for directory in (saved, exported))
    np.testing.assert_array_equal(after, before)
    before, after = (json.loads((directory / "config.json").read_text()) for directory in (saved, exported))
    assert after | {"torch_dtype": None} == before | {"torch_dtype": None}


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_golden_file_equals_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for name, logits in compute_golden(tmp_path).items():
            np.testing.assert_allclose(logits, golden[name], atol=1e-5, rtol=0)


def compute_golden(directory: Path) -> dict[str, np.ndarray]:
    write_model = lambda name, config: load_torch_model(write(directory / name, config, draw(config)))
    return {
        name: compute_torch_logits(write_model(name, config), draw_tokens(config))
        for name, config in GOLDEN_MODELS.items()
    }


# --- Llama and Qwen3 with our weights ---

LLAMA = GPTConfig(
    num_layers=3,
    embed_dim=48,
    num_heads=4,
    context_length=40,
    vocab_size=101,
    mlp_dim=72,
    bias=False,
    tie_embeddings=False,
    activation="silu",
    gated_mlp=True,
    norm="rms",
    norm_epsilon=1e-5,
    positions="rotary",
    rotary_base=500.0,
    compute=ComputeConfig(dtype="float32"),
)
SHARED_MODELS = {
    "Llama": LLAMA,
    "Llama with GQA, tied": GPTConfig(**vars(LLAMA) | {"num_kv_heads": 2, "tie_embeddings": True}),
    "Qwen3 with GQA": GPTConfig(**vars(LLAMA) | {"num_kv_heads": 2, "qk_norm": True, "rotary_base": None}),
}


def name_as_llama(model: GPT) -> Iterator[tuple[str, np.ndarray]]:
    """Our weights under Llama's names. Their linear layers store (out, in).

    Nothing is permuted: we rotate channels i and i + K / 2 as transformers does, query head h reads key head
    h // (H / J), and the activation is on the gate in both. Our QK-norm has no gain, so Qwen3's stays at one.
    """
    weights, config = read_weights(model), model.config
    yield "model.embed_tokens.weight", weights["tokens"][: config.vocab_size]
    yield "model.norm.weight", weights["norm.scale"]
    if not config.tie_embeddings:
        yield "lm_head.weight", weights["head"].T[: config.vocab_size]
    for i in range(config.num_layers):
        own = {name.removeprefix("blocks."): array[i] for name, array in weights.items() if name.startswith("blocks.")}
        if "attention.qkv" in own:
            q, k, v = np.moveaxis(own["attention.qkv"], 1, 0)
        else:
            q, (k, v) = own["attention.q"], np.moveaxis(own["attention.kv"], 1, 0)
        for name, array in {"q": q, "k": k, "v": v}.items():
            yield f"model.layers.{i}.self_attn.{name}_proj.weight", array.reshape(config.embed_dim, -1).T
        yield f"model.layers.{i}.self_attn.o_proj.weight", own["attention.out"].reshape(-1, config.embed_dim).T
        for name in ("gate", "up", "down"):
            yield f"model.layers.{i}.mlp.{name}_proj.weight", own[f"mlp.{name}"].T
        yield f"model.layers.{i}.input_layernorm.weight", own["attention_norm.scale"]
        yield f"model.layers.{i}.post_attention_layernorm.weight", own["mlp_norm.scale"]


def make_torch_model(config: GPTConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base or 10_000.0},
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
    }
    if config.qk_norm:
        return Qwen3ForCausalLM(Qwen3Config(**fields)).eval()
    return LlamaForCausalLM(LlamaConfig(**fields)).eval()


@pytest.mark.parity
@pytest.mark.parametrize("name", SHARED_MODELS)
@pytest.mark.filterwarnings("default")
def test_llama_and_qwen3_with_our_weights_give_our_logits(name: str) -> None:
    """RoPE, RMSNorm, SwiGLU, grouped queries and QK-norm, computed by somebody else."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = SHARED_MODELS[name]
    model, tokens = make_model(config, std=0.1), np.asarray(make_tokens(2, 40, vocab_size=101))
    torch_model = make_torch_model(config)
    state = {key: torch.tensor(array, dtype=torch.float32) for key, array in name_as_llama(model)}
    missing, unexpected = torch_model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("q_norm" in key or "k_norm" in key or key == "lm_head.weight" for key in missing), missing
    logits = jax.jit(GPT.__call__)(model, jnp.asarray(tokens))
    expected = compute_torch_logits(torch_model, tokens)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        np.savez_compressed(GOLDEN, **compute_golden(Path(scratch)))  # pyright: ignore[reportArgumentType]
