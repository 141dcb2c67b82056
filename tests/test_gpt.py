import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula import compute_logits
from jax import Array
from models import make_model, make_tokens
from tiny import MODEL

from gptjax.core.errors import UserError
from gptjax.model.config import GPTConfig, InitConfig
from gptjax.model.gpt import GPT, abstract_model, count_parameters, with_context_length, with_static

VOCABULARY = MODEL.resolved_vocab_size
TOKENS = make_tokens(2, MODEL.context_length, vocab_size=VOCABULARY)

forward = jax.jit(GPT.__call__)


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model(MODEL)


@jax.jit
def compute_gradients(model: GPT) -> tuple[Array, list[Array]]:
    """Logits, and the gradients of a loss that depends on all of them."""

    def loss(model: GPT) -> tuple[Array, Array]:
        logits = model(TOKENS)
        return jnp.mean(jax.nn.logsumexp(3 * logits, axis=-1)), logits

    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(model)
    return logits, jax.tree.leaves(gradients)


@pytest.fixture(scope="module")
def reference(model: GPT) -> tuple[Array, list[Array]]:
    """Logits and gradients in float32, scanned, without remat."""
    return compute_gradients(model)


@pytest.mark.parametrize(
    ("num_layers", "embed_dim", "num_heads", "parameters"),
    [
        (12, 768, 12, 124_439_808),
        (24, 1024, 16, 354_823_168),
        (36, 1280, 20, 774_030_080),
        (48, 1600, 25, 1_557_611_200),
    ],
)
def test_gpt2_has_the_published_number_of_parameters(
    num_layers: int, embed_dim: int, num_heads: int, parameters: int
) -> None:
    config = GPTConfig(num_layers=num_layers, embed_dim=embed_dim, num_heads=num_heads)
    assert count_parameters(config) == parameters


def test_options_add_and_remove_their_weights() -> None:
    small = GPTConfig(num_layers=2, embed_dim=32, num_heads=4, context_length=16, vocab_size=128, bias=False)
    count = lambda **changes: count_parameters(replace(small, **changes)) - count_parameters(small)
    assert count(positions="rotary") == -16 * 32
    assert count(gated_mlp=True) == 2 * 32 * 128
    assert count(norm_scale=False) == -5 * 32
    assert count(norm="rms", qk_norm=True, logit_softcap=15.0, attention_scale=0.1) == 0
    assert count(tie_embeddings=False) == 128 * 32
    assert count(bias=True) == 2 * ((3 * 32 + 32) + (128 + 32) + 2 * 32) + 32


def test_logits_leave_out_the_padding_of_the_vocabulary(model: GPT) -> None:
    assert model.token_embedding.shape == (128, 32)
    assert forward(model, TOKENS).shape == (2, 16, VOCABULARY)


@pytest.mark.parametrize("compute", [{"scan_layers": "off"}, {"remat": "light"}, {"remat": "full"}], ids=str)
def test_compute_options_change_no_result(
    model: GPT, reference: tuple[Array, list[Array]], compute: dict[str, Any]
) -> None:
    other = with_static(model, config=replace(MODEL, compute=replace(MODEL.compute, **compute)))
    for actual, expected in zip(*map(jax.tree.leaves, (compute_gradients(other), reference)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("remat", "narrow", "wide"), [("none", 6, 5), ("light", 2, 1), ("full", 1, 0)])
def test_remat_saves_fewer_activations_for_each_layer(remat: Any, narrow: int, wide: int) -> None:
    """Arrays of (N, B, T, D) and (N, B, T, F) that the forward pass leaves to the backward pass.

    Light remat leaves a layer's input, the sum after attention, and the input of the activation.
    """
    abstract = abstract_model(replace(MODEL, compute=replace(MODEL.compute, remat=remat)))
    vjp = jax.eval_shape(lambda model: jax.vjp(lambda model: jnp.sum(model(TOKENS)), model)[1], abstract)
    shapes = [leaf.shape for leaf in jax.tree.leaves(vjp)]
    assert (shapes.count((2, 2, 16, 32)), shapes.count((2, 2, 16, 128))) == (narrow, wide)


def test_bfloat16_is_close_to_float32(model: GPT, reference: tuple[Array, list[Array]]) -> None:
    half = with_static(model, config=replace(MODEL, compute=replace(MODEL.compute, dtype="bfloat16")))
    logits, gradients = compute_gradients(half)
    assert logits.dtype == jnp.float32
    spread = float(jnp.std(reference[0]))
    assert 0 < float(jnp.abs(logits - reference[0]).max()) < 0.2 * spread
    for actual, expected in zip(gradients, reference[1], strict=True):
        assert actual.dtype == jnp.float32
        assert float(jnp.linalg.norm(actual - expected)) <= 0.05 * float(jnp.linalg.norm(expected)) + 1e-6


def test_initial_weights_have_the_spread_of_gpt2() -> None:
    config = replace(MODEL, embed_dim=128, num_layers=8)
    model = jax.jit(lambda: GPT(config, key=jax.random.key(1)))()
    spread = lambda weight: float(jnp.std(weight[...]))
    assert spread(model.token_embedding) == pytest.approx(0.02, rel=0.05)
    assert spread(model.position_embedding) == pytest.approx(0.02, rel=0.1)
    assert spread(model.blocks.attention.qkv) == pytest.approx(0.02, rel=0.05)
    assert spread(model.blocks.mlp.up) == pytest.approx(0.02, rel=0.05)
    assert spread(model.blocks.attention.out) == pytest.approx(0.02 / 4, rel=0.05)
    assert spread(model.blocks.mlp.down) == pytest.approx(0.02 / 4, rel=0.05)
    layers = model.blocks.mlp.up[...]
    assert not np.allclose(layers[0], layers[1]), "each layer is drawn by itself"
    assert float(jnp.abs(model.blocks.mlp.up_bias[...]).max()) == 0
    assert float(model.norm.scale[...].min()) == 1


def test_initial_weights_follow_the_init_config() -> None:
    init = InitConfig(scheme="fan_in", std=0.5, embedding_std=1.0, head_std=0.001, mlp_scale=0.4)
    options = {"gated_mlp": True, "value_embeddings": "0", "num_sinks": 16, "num_kv_heads": 2, "bias": False}
    config = replace(MODEL, embed_dim=64, tie_embeddings=False, init=init, **options)
    model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
    attention, mlp, fan_in = model.blocks.attention, model.blocks.mlp, 0.5 / np.sqrt(64)
    expected = [
        (model.token_embedding, 1.0),
        (model.position_embedding, 1.0),
        (model.head, 0.001),
        (model.value_embeddings.tables, fan_in),
        (attention.q, fan_in),
        (attention.kv, fan_in),
        (attention.sinks.keys, 0.5 / np.sqrt(16)),
        (attention.sinks.values, 0.0),
        (attention.out, fan_in / np.sqrt(2 * 2)),
        (mlp.up, 0.4 * fan_in),
        (mlp.gate, 0.4 * fan_in),
        (mlp.down, 0.5 / np.sqrt(256) / np.sqrt(2 * 2)),
    ]
    for weight, std in expected:
        assert float(jnp.std(weight[...])) == pytest.approx(std, rel=0.06)


def test_zero_projections_start_with_equal_logits() -> None:
    config = replace(MODEL, tie_embeddings=False, init=InitConfig(zero_projections=True))
    model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
    for weight in (model.blocks.attention.out, model.blocks.mlp.down, model.head):
        assert not np.asarray(weight[...]).any()
    assert not np.asarray(forward(model, TOKENS)).any()


def test_shorter_context_keeps_the_first_positions(model: GPT, reference: tuple[Array, list[Array]]) -> None:
    shorter = with_context_length(model, 6)
    assert shorter.config.context_length == 6
    np.testing.assert_allclose(forward(shorter, TOKENS[:, :6]), reference[0][:, :6], atol=1e-5)
    with pytest.raises(UserError, match=r"7 tokens do not fit model\.context_length 6"):
        shorter(TOKENS[:, :7])
    with pytest.raises(UserError, match=r"context_length 17 is longer than the 16 .* Use --context-length=16 or less"):
        with_context_length(model, 17)


def test_rotary_model_takes_any_context_length() -> None:
    model = make_model(replace(MODEL, positions="rotary"))
    longer = with_context_length(model, 48)
    np.testing.assert_allclose(forward(longer, TOKENS), forward(model, TOKENS), atol=1e-6)
    assert abstract_model(longer.config).config.context_length == 48


def test_with_static_leaves_the_given_model_unchanged(model: GPT) -> None:
    other = with_static(model, config=replace(MODEL, dropout=0.5))
    assert other.blocks.mlp.config.dropout == 0.5
    assert model.blocks.mlp.config.dropout == 0.0
    assert other.token_embedding[...] is model.token_embedding[...]


def test_abstract_model_has_the_shapes_of_a_model() -> None:
    model = jax.jit(lambda: GPT(MODEL, key=jax.random.key(0)))()
    abstract = abstract_model(MODEL)
    assert jax.tree.structure(abstract) == jax.tree.structure(model)
    kinds = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert kinds(abstract) == kinds(model)


def test_dropout_needs_keys_and_differs_between_rows(model: GPT) -> None:
    dropping = with_static(model, config=replace(MODEL, dropout=0.5))
    same = jnp.tile(TOKENS[:1], (2, 1))
    run = jax.jit(lambda model, keys: model(same, keys))
    keys = jax.random.split(jax.random.key(0), 2)
    without, dropped = run(dropping, None), run(dropping, keys)
    np.testing.assert_array_equal(without[0], without[1])
    assert float(jnp.abs(dropped[0] - dropped[1]).max()) > 1e-3
    np.testing.assert_array_equal(dropped, run(dropping, keys))


def test_dropout_sites_equal_formula(model: GPT) -> None:
    """A mask is drawn from the row's key, folded with the layer, the site, and for probabilities the head."""
    keys = jax.random.split(jax.random.key(0), 2)

    def drop(x: np.ndarray, *site: int) -> np.ndarray:
        def draw(row: int) -> np.ndarray:
            key = functools.reduce(jax.random.fold_in, site, keys[row])
            if x.ndim == 3:
                return np.asarray(jax.random.bernoulli(key, 0.75, x.shape[1:]))
            heads = [jax.random.fold_in(key, head) for head in range(x.shape[1])]
            return np.stack([jax.random.bernoulli(key, 0.75, x.shape[2:]) for key in heads])

        return np.where(np.stack([draw(row) for row in range(2)]), x / 0.75, 0)

    dropping = with_static(model, config=replace(MODEL, dropout=0.25))
    dropped = forward(dropping, TOKENS, keys)
    np.testing.assert_allclose(dropped, compute_logits(model, TOKENS, drop=drop), atol=1e-4)
    assert not np.allclose(dropped, compute_logits(model, TOKENS), atol=1e-2)
