"""Law: a GPT-2 computes here what it computes in transformers, and going there and back changes no bit.

The default suite compares with logits that transformers once computed, kept in `golden_gpt2.npz` (weights are drawn
from a seed). With torch and transformers, `-m parity` runs both side by side, and `python tests/laws/test_parity.py`
writes the golden file again.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from hf_models import draw, make_config, same_bits, write
from safetensors.numpy import load_file

from gptjax.huggingface.gpt2 import from_hf, hf_config, to_hf
from gptjax.huggingface.safetensors_dir import write_json, write_tensors
from gptjax.model.gpt import GPT
from gptjax.model.loss import next_token_loss

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


def draw_tokens(config):
    shape = (2, config["n_positions"])
    return np.random.RandomState(1).randint(0, config["vocab_size"], shape)


def our_logits(directory, tokens):
    _, model, _ = from_hf(directory)
    return np.asarray(jax.jit(GPT.__call__)(model, jnp.asarray(tokens)))


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_logits_equal_those_that_transformers_computed(tmp_path, name):
    config = GOLDEN_MODELS[name]
    directory = write(tmp_path, config, draw(config))
    with np.load(GOLDEN, allow_pickle=False) as golden:
        expected = golden[name]
    assert np.ptp(expected) > 1, "logits that hardly differ would prove little"
    np.testing.assert_allclose(our_logits(directory, draw_tokens(config)), expected, atol=1e-5, rtol=0)


# --- side by side; needs torch and transformers ---


def their_logits(directory, tokens):
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def their_loss(directory, tokens):
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor(tokens)
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def our_loss(model, tokens):
    """Mean cross-entropy as training computes it, in float32: the chunked loss over the padded vocabulary."""
    config = model.config
    ids = jnp.asarray(tokens)

    @jax.jit
    def summed(model, ids):
        targets = jnp.roll(ids, -1, axis=1).at[:, -1].set(-1)
        return next_token_loss(
            model.hidden_states(ids),
            model.head_weight,
            targets,
            vocab_size=config.resolved_vocab_size,
            chunk_tokens=7,
            dtype="float32",
            mesh=model.mesh,
        )

    total, count = summed(model, ids)
    return float(total / count)


def save_with_transformers(directory, config, *, dtype, shard_size):
    """A random GPT-2 made and saved by transformers alone."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=shard_size)


def load_all(directory):
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
@pytest.mark.filterwarnings("default")  # torch and transformers warn of their own affairs
def test_models_of_transformers_come_in_and_go_back(tmp_path, changes, dtype, shard_size):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = make_config(**changes)
    tokens = draw_tokens(config)
    theirs = tmp_path / "theirs"
    save_with_transformers(theirs, config, dtype=dtype, shard_size=shard_size)
    ours, model, origin = from_hf(theirs, dtype="float32")
    assert origin.dtype == dtype
    assert (len(list(theirs.glob("*.safetensors"))) > 1) == (shard_size == "20KB")

    assert our_loss(model, tokens) == pytest.approx(their_loss(theirs, tokens), abs=1e-4)

    back = tmp_path / "back"
    back.mkdir()
    tensors = to_hf(model, dtype=origin.dtype)
    assert same_bits(tensors, load_all(theirs))
    write_tensors(back, tensors, shard_bytes=20_000)
    write_json(back / "config.json", hf_config(ours, dtype=origin.dtype, end_of_text=None, origin=origin))
    np.testing.assert_array_equal(their_logits(back, tokens), their_logits(theirs, tokens))
    before = json.loads((theirs / "config.json").read_text())
    assert json.loads((back / "config.json").read_text()) | {"torch_dtype": None} == before | {"torch_dtype": None}


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_the_golden_file_is_what_transformers_computes(tmp_path):
    pytest.importorskip("transformers")
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for name, logits in compute_golden(tmp_path).items():
            np.testing.assert_allclose(logits, golden[name], atol=1e-5, rtol=0)


def compute_golden(directory):
    return {
        name: their_logits(write(directory / name, config, draw(config)), draw_tokens(config))
        for name, config in GOLDEN_MODELS.items()
    }


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        np.savez_compressed(GOLDEN, **compute_golden(Path(scratch)))
