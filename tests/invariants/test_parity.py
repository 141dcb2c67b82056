"""Invariant: a GPT-2 computes here what it computes in transformers, and importing and exporting it changes no bit.

The default suite compares with logits that transformers computed once, which `golden_gpt2.npz` holds. Weights are drawn
from a seed. With torch and transformers, `-m parity` computes both side by side, and running this file as a program
writes the golden file again.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from hf_models import Tensors, are_identical, draw_tensors, make_hf_config, write_model_dir
from safetensors.numpy import load_file

from gptjax.huggingface.model_export import to_hf, to_hf_config
from gptjax.huggingface.model_import import from_hf
from gptjax.huggingface.safetensors_dir import write_json, write_tensors
from gptjax.model.gpt import GPT
from gptjax.objectives.objective import NextToken

GOLDEN_FILE = Path(__file__).parent / "golden_gpt2.npz"
GOLDEN_MODELS = {
    "gpt2": make_hf_config(),
    "untied_relu": make_hf_config(
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


def compute_jax_logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    _, model, _ = from_hf(directory)
    return np.asarray(jax.jit(GPT.__call__)(model, jnp.asarray(tokens)))


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_logits_equal_those_of_transformers(tmp_path: Path, name: str):
    config = GOLDEN_MODELS[name]
    directory = write_model_dir(tmp_path, config, draw_tensors(config))
    with np.load(GOLDEN_FILE, allow_pickle=False) as golden:
        expected = golden[name]
    assert np.ptp(expected) > 1, "equal logits would prove little"
    np.testing.assert_allclose(compute_jax_logits(directory, draw_tokens(config)), expected, atol=1e-5, rtol=0)


# --- side by side; needs torch and transformers ---


def compute_torch_outputs(directory: Path, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """(logits, mean loss of the next token) by transformers in float32."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor(tokens)
    with torch.no_grad():
        output = model(ids, labels=ids)
    return output.logits.numpy(), float(output.loss)


def compute_jax_loss(model: GPT, tokens: np.ndarray) -> float:
    """Mean cross-entropy as training computes it: in chunks, over the padded vocabulary."""
    ids = jnp.asarray(tokens)
    targets = jnp.roll(ids, -1, axis=1).at[:, -1].set(-1)
    total, count = jax.jit(NextToken(chunk_tokens=7).sum_loss)(model, {"tokens": ids, "targets": targets})
    return float(total / count)


def save_with_transformers(directory: Path, config: dict[str, Any], *, dtype: str, shard_size: str) -> None:
    """Save a random GPT-2 that transformers alone makes."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=shard_size)


def load_tensors(directory: Path) -> Tensors:
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
def test_models_of_transformers_survive_import_and_export(
    tmp_path: Path, changes: dict[str, Any], dtype: str, shard_size: str
):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    hf_config = make_hf_config(**changes)
    tokens = draw_tokens(hf_config)
    original = tmp_path / "original"
    save_with_transformers(original, hf_config, dtype=dtype, shard_size=shard_size)
    config, model, origin = from_hf(original, dtype="float32")
    assert origin.dtype == dtype
    assert (len(list(original.glob("*.safetensors"))) > 1) == (shard_size == "20KB")

    logits, loss = compute_torch_outputs(original, tokens)
    assert compute_jax_loss(model, tokens) == pytest.approx(loss, abs=1e-4)

    exported = tmp_path / "exported"
    exported.mkdir()
    tensors = to_hf(model, dtype=origin.dtype)
    assert are_identical(tensors, load_tensors(original))
    write_tensors(exported, tensors, shard_bytes=20_000)
    write_json(exported / "config.json", to_hf_config(config, dtype=origin.dtype, end_of_text=None, origin=origin))
    np.testing.assert_array_equal(compute_torch_outputs(exported, tokens)[0], logits)
    before, after = (json.loads((path / "config.json").read_text()) for path in (original, exported))
    assert after | {"torch_dtype": None} == before | {"torch_dtype": None, "n_ctx": hf_config["n_positions"]}


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_golden_file_equals_what_transformers_computes(tmp_path: Path):
    pytest.importorskip("transformers")
    with np.load(GOLDEN_FILE, allow_pickle=False) as golden:
        for name, logits in compute_golden_logits(tmp_path).items():
            np.testing.assert_allclose(logits, golden[name], atol=1e-5, rtol=0)


def compute_golden_logits(directory: Path) -> dict[str, np.ndarray]:
    out = {}
    for name, config in GOLDEN_MODELS.items():
        model_dir = write_model_dir(directory / name, config, draw_tensors(config))
        out[name], _ = compute_torch_outputs(model_dir, draw_tokens(config))
    return out


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        np.savez_compressed(GOLDEN_FILE, allow_pickle=False, **compute_golden_logits(Path(scratch)))
