"""What inspection shows is what the forward pass did, in every option that changes attention or the residual stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import make_model, make_tokens

from gptjax import GPT, GPTConfig
from gptjax.model.config import ComputeConfig
from gptjax.model.inspection import compute_logit_lens, inspect_layers

TINY = {
    "num_layers": 4,
    "embed_dim": 32,
    "num_heads": 4,
    "context_length": 12,
    "vocab_size": 40,
    "compute": ComputeConfig(dtype="float32"),
}
OPTIONS = {
    "gpt2": {},
    "grouped": {"num_kv_heads": 2, "positions": "rotary", "qk_norm": True},
    "windows_and_skips": {"window_pattern": "SL", "short_window": 3, "unet_skips": "learned", "x0_mix": True},
    "sinks": {"num_sinks": 2, "positions": "rotary", "num_kv_heads": 2},
    "values": {"value_embeddings": "0..0", "logit_softcap": 15.0, "value_residual": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_inspection_of_every_option_equals_the_forward_pass(name: str) -> None:
    config = GPTConfig(**TINY, **OPTIONS[name])  # pyright: ignore[reportArgumentType]
    model, tokens = make_model(config), make_tokens(2, 10, vocab_size=40)
    attention, residuals = jax.jit(inspect_layers)(model, tokens)
    lens = jax.jit(compute_logit_lens)(model, residuals)
    assert attention.shape == (4, 2, 4, 10, 10 + config.num_sinks)
    assert residuals.shape == (5, 2, 10, 32)
    np.testing.assert_allclose(lens[-1], jax.jit(GPT.__call__)(model, tokens), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(attention.sum(-1), 1.0, rtol=1e-5)
    text = np.asarray(attention[..., :10])
    assert np.all(text[..., ~np.tri(10, dtype=bool)] == 0)
    if config.short_window:
        assert np.all(text[0][..., np.tri(10, k=-3, dtype=bool)] == 0)
        assert np.all(text[1][..., np.tri(10, dtype=bool)] > 0)


def test_attention_pattern_times_values_is_what_the_block_adds() -> None:
    """The pattern of a layer, put into the textbook formula, gives the layer's own attention output."""
    model = make_model(GPTConfig(**TINY))  # pyright: ignore[reportArgumentType]

    @jax.jit
    def compute(model: GPT, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        attention, residuals = inspect_layers(model, tokens)
        block = jax.tree.map(lambda leaf: leaf[0], model.blocks)
        v = block.attention.compute_qkv(block.attention_norm(residuals[0]))[2]
        x = residuals[0] + block.attention.project_out(jnp.einsum("BHTS,BSHK->BTHK", attention[0], v))
        return x + block.mlp(block.mlp_norm(x)), residuals[1]

    np.testing.assert_allclose(*compute(model, make_tokens(1, 10, vocab_size=40)), rtol=1e-4, atol=1e-5)
