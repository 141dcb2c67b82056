"""Each later idea by itself: what it computes is what its formula says, and the cache knows it too."""

import math
import zlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula import logits as by_hand

from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.generation import Cache, extend_cache, generate
from gptjax.model.gpt import GPT, DocumentIds, count_parameters, with_context_length, with_static
from gptjax.sharding.mesh import MeshConfig

PLAIN = GPTConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    context_length=24,
    vocab_size=120,
    bias=False,
    compute=ComputeConfig(dtype="float32"),
    init=InitConfig(std=0.2),
)
ROTARY = replace(PLAIN, positions="rotary", norm="rms", qk_norm=True)
OPTIONS = {
    "shared keys": {"num_kv_heads": 2},
    "shared keys with biases": {"num_kv_heads": 1, "bias": True},
    "window_pattern": {"window_pattern": "SL", "short_window": 3},
    "one window": {"long_window": 5},
    "num_sinks": {"num_sinks": 2},
    "sinks and windows": {"num_sinks": 1, "window_pattern": "SL", "short_window": 3, "num_kv_heads": 2},
    "U-Net": {"unet_skips": "plain"},
    "weighted U-Net": {"unet_skips": "learned"},
    "x0": {"x0_mix": True, "residual_init": (1.1, 0.9), "x0_init": (0.3, 0.1)},
    "value residual": {"value_residual": True},
    "value embeddings": {"value_embeddings": "01"},
    "gated value embeddings": {"value_embeddings": ".0", "value_gate": True, "num_kv_heads": 2},
    "value residual beside value embeddings": {"value_residual": True, "value_embeddings": "0."},
    "normed embeddings": {"embedding_norm": True},
}


EVERYWHERE = {
    "GPT-2": {"bias": True},
    "normed queries and keys": {"qk_norm": True, "bias": True},
    "norms without gains": {"norm_scale": False, "norm_epsilon": 0.3, "activation": "gelu", "bias": True},
    "rotary, capped": {"positions": "rotary", "rotary_base": 50.0, "activation": "relu", "logit_softcap": 2.0},
    "half rotary, capped by a root": {
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
"""What no cache can get wrong: a few options at a time, each of them in one line at least."""


def create(config, key=0):
    """A model whose learned numbers have left their start: sinks and gates that are zero would prove little.

    Each weight moves by its name alone, so that models with and without an option differ by the option only.
    """
    model = jax.jit(lambda: GPT(config, key=jax.random.key(key)))()

    def moved(path, leaf):
        name = zlib.crc32(jax.tree_util.keystr(path).encode())
        return leaf + 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(key + 1), name), leaf.shape)

    return jax.tree_util.tree_map_with_path(moved, model)


forward = jax.jit(GPT.__call__)


@jax.jit
def remembering(model, tokens):
    """The logits of a text that is read with a cache, a token at a time."""
    config = model.config
    cache = Cache.empty(config, len(tokens), positions=config.context_length, mesh=MeshConfig())

    def read(cache, token):
        x, cache = extend_cache(model, token[0][:, None], cache=cache, start=token[1])
        return cache, x[:, 0]

    _, xs = jax.lax.scan(read, cache, (tokens.T, jnp.arange(tokens.shape[1])))
    return model.unembed(model.norm(jnp.moveaxis(xs, 0, 1)))


def text(rows=2, length=24):
    return jax.random.randint(jax.random.key(5), (rows, length), 0, 120)


@pytest.mark.parametrize("name", OPTIONS)
def test_it_changes_the_model_but_not_what_is_causal_and_the_cache_knows_it(name):
    model = create(replace(ROTARY, **OPTIONS[name]))
    tokens = text()
    logits = forward(model, tokens)
    np.testing.assert_allclose(logits, by_hand(model, tokens), atol=1e-4)
    assert not np.allclose(logits, forward(create(ROTARY), tokens), atol=1e-3)
    later = forward(model, tokens.at[:, 12:].set(3))
    np.testing.assert_allclose(later[:, :12], logits[:, :12], atol=1e-5)
    np.testing.assert_allclose(remembering(model, tokens), logits, atol=1e-4)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_norms_positions_activations_and_heads_are_those_of_the_formula(name):
    model, tokens = create(replace(PLAIN, **EVERYWHERE[name])), text()
    np.testing.assert_allclose(forward(model, tokens), by_hand(model, tokens), atol=1e-4)


@pytest.mark.parametrize("name", ["num_sinks", "x0", "shared keys", "one window"])
def test_scanned_and_unrolled_are_the_same(name):
    config = replace(ROTARY, **OPTIONS[name])
    model, tokens = create(config), text()
    for remat in ("none", "full"):
        other = with_static(
            model,
            config=replace(config, compute=replace(config.compute, scan_layers="off", remat=remat)),
        )
        np.testing.assert_allclose(forward(other, tokens), forward(model, tokens), atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_what_is_computed_again_changes_nothing(remat):
    config = replace(
        ROTARY, unet_skips="learned", x0_mix=True, value_residual=True, window_pattern="SL", short_window=4, num_sinks=1
    )
    model, tokens = create(config), text()
    loss = jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(model(tokens)))))
    light, other = (
        jax.tree.leaves(
            loss(
                with_static(
                    model,
                    config=replace(config, compute=replace(config.compute, remat=r)),
                )
            )
        )
        for r in ("light", remat)
    )
    for got, wanted in zip(other, light, strict=True):
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


@jax.jit
def before_and_after(model):
    """The residual stream before the first block and after the last."""
    places = jnp.arange(24)
    x = model.embed(text(), places)
    return x, model.run_blocks(x, text(), places, lambda layer, heads, memory: (heads.q, memory), None)[0]


def test_the_embeddings_are_mixed_in_before_every_block():
    config = replace(
        ROTARY,
        x0_mix=True,
        num_layers=3,
        init=replace(ROTARY.init, zero_projections=True, residual_mix=(0.5, 2.0), x0_mix=(1.0, 0.0)),
    )
    model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
    x, through = before_and_after(model)
    np.testing.assert_allclose(through, x * (((0.5 + 1.0) * 1.25 + 0.5) * 2.0 + 0.0), rtol=1e-5)


def test_learned_numbers_are_counted():
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


@pytest.mark.parametrize("changes", [{}, {"window_pattern": "SL", "short_window": 3, "num_sinks": 2}], ids=str)
@pytest.mark.parametrize("base", [ROTARY, PLAIN], ids=["rotary", "learned positions"])
def test_a_masked_document_is_as_if_it_were_alone(base, changes):
    model = create(replace(base, intra_document_mask=True, **changes))
    tokens, lengths = text(), (7, 13, 4)
    segments = np.repeat([1, 2, 3], lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    both = DocumentIds(*(jnp.tile(jnp.asarray(x), (2, 1)) for x in (segments, positions)))
    masked = jax.jit(lambda tokens, documents: model.unembed(model.hidden_states(tokens, documents=documents)))
    packed = masked(tokens, both)
    segments, positions = map(np.asarray, both)
    np.testing.assert_allclose(packed, by_hand(model, tokens, segments=segments, places=positions), atol=1e-4)
    start = 0
    for length in lengths:
        own = DocumentIds(jnp.ones((2, 24), jnp.int32), jnp.tile(jnp.arange(24), (2, 1)))
        alone = masked(jnp.roll(tokens, -start, axis=1), own)
        np.testing.assert_allclose(packed[:, start : start + length], alone[:, :length], atol=2e-5)
        start += length
    with pytest.raises(ValueError, match="which document each token belongs to"):
        model.hidden_states(tokens)


@pytest.mark.parametrize("name", ["num_sinks", "window_pattern", "value residual"])
def test_a_text_goes_on_far_past_the_context(name):
    """As a model with a longer context would write it whose layers see no further than the shorter one."""
    config = replace(ROTARY, **OPTIONS[name])
    model, tokens = create(config), text(length=96)
    longer = with_static(model, config=replace(config, context_length=96, long_window=24))
    np.testing.assert_allclose(remembering(model, tokens), forward(longer, tokens), atol=1e-4)


def test_generation_goes_on_past_the_context():
    model = create(replace(ROTARY, tie_embeddings=False))
    out = generate(model, text()[:, :5], max_new_tokens=91, temperature=0.0)
    longer = with_static(model, config=replace(ROTARY, tie_embeddings=False, context_length=96, long_window=24))
    np.testing.assert_array_equal(np.argmax(forward(longer, jnp.asarray(out))[:, 4:-1], axis=-1), out[:, 5:])
    assert len(np.unique(out[:, 30:])) > 3, "a model that repeats itself would prove little"


def test_a_rotary_model_takes_any_context():
    model, tokens = create(ROTARY), text()
    longer = with_context_length(model, 48)
    np.testing.assert_allclose(forward(longer, tokens), forward(model, tokens), atol=1e-6)
    assert forward(longer, text(length=48)).shape == (2, 48, 120)


def test_initial_weights_are_those_of_the_recipe():
    own = {"init": "fan_in", "init_std": 0.5, "embedding_std": 1.0, "head_std": 0.001, "mlp_init": 0.4}
    options = {"gated_mlp": True, "value_embeddings": "0", "num_sinks": 16, "num_kv_heads": 2}
    config = replace(PLAIN, embed_dim=64, tie_embeddings=False, **own, **options)
    model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
    attention, mlp, into = model.blocks.attention, model.blocks.mlp, 0.5 / math.sqrt(64)
    wanted = [
        (model.tokens, 1.0),
        (model.positions, 1.0),
        (model.head, 0.001),
        (model.value_embeddings.tables, into),
        (attention.q, into),
        (attention.kv, into),
        (attention.sinks.keys, 0.5 / math.sqrt(16)),
        (attention.sinks.values, 0.0),
        (attention.out, into / math.sqrt(2 * 2)),
        (mlp.up, 0.4 * into),
        (mlp.gate, 0.4 * into),
        (mlp.down, 0.5 / math.sqrt(256) / math.sqrt(2 * 2)),
    ]
    for weight, std in wanted:
        assert float(jnp.std(weight[...])) == pytest.approx(std, rel=0.06)


def test_initial_tables_and_heads_have_a_spread_of_their_own_if_it_is_said():
    untied = replace(PLAIN, embed_dim=64, tie_embeddings=False, init=replace(PLAIN.init, std=0.5))
    fan_in = replace(untied, init=replace(untied.init, scheme="fan_in"))
    assert (untied.initial_embedding_std, untied.initial_head_std) == (0.5, 0.5)
    assert (fan_in.initial_embedding_std, fan_in.initial_head_std) == (0.02, 0.5 / 8)
    assert replace(fan_in, init=replace(fan_in.init, zero_projections=True)).initial_head_std == 0
    assert replace(fan_in, init=replace(fan_in.init, zero_projections=True, head_std=0.1)).initial_head_std == 0.1


def test_sinks_start_apart_so_that_they_can_learn_apart():
    model = jax.jit(lambda: GPT(replace(ROTARY, num_sinks=3), key=jax.random.key(0)))()
    gradients = jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(model(text())))))(model)
    first, second, _ = np.moveaxis(np.asarray(gradients.blocks.attention.sinks.values[...]), 1, 0)
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max() > 0
