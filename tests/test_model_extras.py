"""Options of later models: each equals its formula, looks at no future token, and is the same with a cache."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula import compute_logits
from models import make_model, make_tokens

from gptjax.generation.decoding import prepare_for_decoding
from gptjax.generation.kv_cache import Cache, extend_cache
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.extras import UNet
from gptjax.model.gpt import GPT, DocumentIds, count_parameters, with_static
from gptjax.sharding.mesh import MeshConfig

PLAIN = GPTConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    context_length=24,
    vocab_size=120,
    bias=False,
    compute=ComputeConfig(dtype="float32"),
)
ROTARY = replace(PLAIN, positions="rotary", norm="rms", qk_norm=True)
TOKENS = make_tokens(2, 24, vocab_size=120)

OPTIONS: dict[str, dict[str, Any]] = {
    "GQA": {"num_kv_heads": 2},
    "GQA with biases": {"num_kv_heads": 1, "bias": True},
    "windows": {"window_pattern": "SL", "short_window": 3},
    "one window": {"long_window": 5},
    "sinks": {"num_sinks": 2},
    "sinks, windows and GQA": {"num_sinks": 1, "window_pattern": "SL", "short_window": 3, "num_kv_heads": 2},
    "plain U-Net": {"unet_skips": "plain", "num_layers": 3},
    "U-Net of inputs": {"unet_skips": "inputs", "num_layers": 5},
    "learned U-Net": {"unet_skips": "learned", "num_layers": 4},
    "x0": {"x0_mix": True},
    "value residual": {"value_residual": True, "num_layers": 3},
    "value embeddings": {"value_embeddings": "01"},
    "gated value embeddings": {"value_embeddings": ".0", "value_gate": True, "num_kv_heads": 2},
    "value residual and embeddings": {"value_residual": True, "value_embeddings": "0.", "embedding_norm": True},
}
WITHOUT_CACHE: dict[str, dict[str, Any]] = {
    "GPT-2": {"bias": True},
    "normalised queries and keys": {"qk_norm": True, "qk_norm_scale": True, "bias": True},
    "norms without gains": {"norm_scale": False, "norm_epsilon": 0.3, "activation": "gelu", "bias": True},
    "rotary, tanh softcap": {"positions": "rotary", "rotary_base": 50.0, "activation": "relu", "logit_softcap": 2.0},
    "half rotary, root softcap": {
        "positions": "rotary",
        "rotary_fraction": 0.5,
        "attention_scale": 0.9,
        "logit_softcap": 2.0,
        "logit_softcap_curve": "sqrt",
        "activation": "relu2",
        "norm": "rms",
        "norm_scale": False,
        "tie_embeddings": False,
        "head_bias": True,
    },
    "SwiGLU": {"gated_mlp": True, "activation": "silu", "norm": "rms", "norm_epsilon": 0.3, "mlp_dim": 48},
}
"""Options that a cache cannot get wrong."""

forward = jax.jit(GPT.__call__)


@jax.jit
def forward_with_cache(model: GPT, tokens: jax.Array) -> jax.Array:
    """Logits of a text that is read one token at a time, as decoding does."""
    model = prepare_for_decoding(model)
    cache = Cache.empty(model.config, len(tokens), positions=model.config.context_length, mesh=MeshConfig())

    def read(cache: Cache, token: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array]:
        x, cache = extend_cache(model, token[0][:, None], cache=cache, start=token[1])
        return cache, x[:, 0]

    _, xs = jax.lax.scan(read, cache, (tokens.T, jnp.arange(tokens.shape[1])))
    return model.unembed(model.norm(jnp.moveaxis(xs, 0, 1)))


@pytest.mark.parametrize("name", OPTIONS)
def test_option_equals_formula_and_cache_and_is_causal(name: str) -> None:
    model = make_model(replace(ROTARY, **OPTIONS[name]))
    logits = forward(model, TOKENS)
    np.testing.assert_allclose(logits, compute_logits(model, TOKENS), atol=1e-4)
    base = make_model(replace(ROTARY, num_layers=model.config.num_layers))
    assert not np.allclose(logits, compute_logits(base, TOKENS), atol=1e-3)
    other_future = forward(model, TOKENS.at[:, 12:].set(3))
    np.testing.assert_allclose(other_future[:, :12], logits[:, :12], atol=1e-5)
    np.testing.assert_allclose(forward_with_cache(model, TOKENS), logits, atol=1e-4)


@pytest.mark.parametrize("name", WITHOUT_CACHE)
def test_norms_positions_activations_and_heads_equal_formula(name: str) -> None:
    model = make_model(replace(PLAIN, **WITHOUT_CACHE[name]))
    np.testing.assert_allclose(forward(model, TOKENS), compute_logits(model, TOKENS), atol=1e-4)


@pytest.mark.parametrize("options", [{"num_sinks": 1, "x0_mix": True, "num_kv_heads": 2, "long_window": 5}], ids=str)
def test_unrolled_layers_equal_scanned_ones(options: dict[str, Any]) -> None:
    model = make_model(replace(ROTARY, **options))
    for remat in ("none", "full"):
        compute = replace(model.config.compute, scan_layers="off", remat=remat)
        unrolled = with_static(model, config=replace(model.config, compute=compute))
        np.testing.assert_allclose(forward(unrolled, TOKENS), forward(model, TOKENS), atol=1e-5)


def test_remat_changes_no_gradient() -> None:
    options = {"unet_skips": "learned", "x0_mix": True, "value_residual": True, "num_sinks": 1}
    config = replace(ROTARY, window_pattern="SL", short_window=4, **options)
    model = make_model(config)
    grad = jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(model(TOKENS)))))
    none, light, full = (
        jax.tree.leaves(grad(with_static(model, config=replace(config, compute=replace(config.compute, remat=remat)))))
        for remat in ("none", "light", "full")
    )
    for expected, *actual in zip(none, light, full, strict=True):
        assert np.abs(expected).max() > 0
        for gradient in actual:
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
def test_unet_returns_the_first_half_in_reverse(layers: int) -> None:
    """Layer i of n reads the output of layer n - 1 - i. The middle one of an odd number has no skip."""
    unet = UNet(replace(PLAIN, num_layers=layers, unet_skips="plain"), MeshConfig())
    outputs = [jnp.full((1, 1, 1), 10.0**layer) for layer in range(layers)]
    skips, added, kept = (), [], []
    for layer in range(layers):
        x, skips = unet.pop(jnp.zeros((1, 1, 1)), skips, layer)
        added.append(float(x[0, 0, 0]))
        skips = unet.push(outputs[layer], skips, layer)
        kept.append(len(skips))
    half = layers // 2
    assert added == [0.0] * (layers - half) + [10.0**layer for layer in reversed(range(half))]
    assert max(kept) == half
    assert kept[-1] == 0


def test_x0_is_mixed_in_before_every_block() -> None:
    """Blocks that add nothing: only the mix is left, and the last norm keeps its size because of the epsilon."""
    init = replace(ROTARY.init, zero_projections=True, residual_mix=(0.5, 2.0), x0_mix=(1.0, 0.0))
    config = replace(ROTARY, x0_mix=True, num_layers=3, embedding_norm=True, norm_epsilon=1.0, init=init)
    model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
    x = model.embed(TOKENS, jnp.arange(24))
    expected = model.norm(x * (((0.5 + 1.0) * 1.25 + 0.5) * 2.0 + 0.0))
    np.testing.assert_allclose(jax.jit(GPT.hidden_states)(model, TOKENS), expected, rtol=1e-5)


def test_learned_numbers_are_counted() -> None:
    count = lambda **changes: count_parameters(replace(ROTARY, **changes)) - count_parameters(ROTARY)
    assert count(num_kv_heads=1) == -2 * 32 * 2 * 24
    assert count(head_bias=True) == 120
    assert count(num_sinks=3) == 2 * 2 * 3 * 32
    assert count(unet_skips="plain") == 0
    assert count(unet_skips="learned") == 1
    assert count(x0_mix=True) == 4
    assert count(value_residual=True) == 4
    assert count(value_embeddings="01") == 2 * 120 * 32 + 4
    assert count(value_embeddings="0.", value_gate=True, num_kv_heads=2) == 120 * 16 + 2 * 12 * 2 - 2 * 32 * 2 * 16


@pytest.mark.parametrize(
    ("base", "options"),
    [(PLAIN, {}), (ROTARY, {"window_pattern": "SL", "short_window": 3, "num_sinks": 2})],
    ids=["learned", "rotary with windows and sinks"],
)
def test_masked_document_is_computed_as_if_alone(base: GPTConfig, options: dict[str, Any]) -> None:
    model, lengths = make_model(replace(base, intra_document_mask=True, **options)), (7, 13, 4)
    segments = np.tile(np.repeat([1, 2, 3], lengths), (2, 1))
    positions = np.tile(np.concatenate([np.arange(length) for length in lengths]), (2, 1))
    run = jax.jit(lambda tokens, documents: model.unembed(model.hidden_states(tokens, documents=documents)))
    packed = run(TOKENS, DocumentIds(jnp.asarray(segments), jnp.asarray(positions)))
    np.testing.assert_allclose(packed, compute_logits(model, TOKENS, segments=segments, positions=positions), atol=1e-4)
    start = 0
    for length in lengths:
        alone = DocumentIds(jnp.ones((2, 24), jnp.int32), jnp.tile(jnp.arange(24), (2, 1)))
        logits = run(jnp.roll(TOKENS, -start, axis=1), alone)
        np.testing.assert_allclose(packed[:, start : start + length], logits[:, :length], atol=2e-5)
        start += length
    with pytest.raises(ValueError, match="needs the document of each token"):
        model.hidden_states(TOKENS)


@pytest.mark.parametrize("name", ["sinks, windows and GQA", "value residual"])
def test_text_beyond_the_context_sees_one_context_length(name: str) -> None:
    """The ring cache equals a model with a longer context whose layers see no further than the shorter one."""
    config = replace(ROTARY, **OPTIONS[name])
    model, tokens = make_model(config), make_tokens(2, 60, vocab_size=120)
    longer = with_static(model, config=replace(config, context_length=60, long_window=24))
    np.testing.assert_allclose(forward_with_cache(model, tokens), compute_logits(longer, tokens), atol=1e-4)


def test_sinks_start_apart_and_learn_apart() -> None:
    model = jax.jit(lambda: GPT(replace(ROTARY, num_sinks=3), key=jax.random.key(0)))()
    gradients = jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(model(TOKENS)))))(model)
    first, second, _ = np.moveaxis(np.asarray(gradients.blocks.attention.sinks.values[...]), 1, 0)
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max() > 0
