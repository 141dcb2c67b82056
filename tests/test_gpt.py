import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formula import logits as by_hand
from tiny import MODEL

from gptjax.core.errors import UserError
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model, count_parameters, with_context_length, with_static


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: GPT(MODEL, key=jax.random.key(0)))()


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.RandomState(0).randint(0, MODEL.resolved_vocab_size, (2, MODEL.context_length)))


@jax.jit
def logits_and_gradients(model, tokens):
    """Logits, and the gradients of a loss that leans on all of them."""

    def loss(model):
        logits = model(tokens)
        return jnp.mean(jax.nn.logsumexp(3 * logits, axis=-1)), logits

    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(model)
    return logits, jax.tree.leaves(gradients)


@pytest.fixture(scope="module")
def reference(model, tokens):
    """What the scanned, float32 model without rematerialisation computes."""
    return logits_and_gradients(model, tokens)


SIZES = {"gpt2": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}
PARAMETERS = {"gpt2": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200}


@pytest.mark.parametrize("name", SIZES)
def test_gpt2_has_as_many_parameters_as_published(name):
    num_layers, width, num_heads = SIZES[name]
    config = GPTConfig(num_layers=num_layers, embed_dim=width, num_heads=num_heads)
    assert count_parameters(config) == PARAMETERS[name]


def test_a_modern_models_weights_are_those_that_its_options_say():
    small = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "context_length": 16, "vocab_size": 128}
    plain = GPTConfig(**small, bias=False)
    count = lambda **changes: count_parameters(replace(plain, **changes)) - count_parameters(plain)
    assert count(positions="rotary") == -16 * 32
    assert count(gated_mlp=True) == 2 * 32 * 128
    assert count(norm_scale=False) == -5 * 32
    assert count(norm="rms", qk_norm=True, logit_softcap=15.0, attention_scale=0.1, zero_init=True) == 0
    model = jax.jit(
        lambda: GPT(
            replace(plain, tie_embeddings=False, init=replace(plain.init, zero_projections=True)), key=jax.random.key(0)
        )
    )()
    for weight in (model.blocks.attention.out, model.blocks.mlp.down, model.head):
        assert not np.asarray(weight[...]).any()
    logits = model(jnp.zeros((1, 4), jnp.int32))
    assert not np.asarray(logits).any()


def test_biases_and_heads_count():
    layer = 9 * 768 + 4 * 768  # of the projections in and out, and of two norms with their gains
    without = count_parameters(GPTConfig(bias=False))
    assert count_parameters(GPTConfig()) - without == 12 * (layer - 2 * 768) + 768
    assert count_parameters(GPTConfig(tie_embeddings=False)) - count_parameters(GPTConfig()) == 50257 * 768


@pytest.mark.parametrize(
    ("config", "causal", "palm"),
    [
        (GPTConfig(), 798.1, 854.7),
        (GPTConfig(context_length=2048, tie_embeddings=False), 854.7, 967.9),
    ],
)
def test_flops_are_those_of_the_formula_by_hand(config, causal, palm):
    """GPT-2 124M with 50,304 rows: 6 × 123.6 M for the matmuls, and 56.7 or 113.2 MFLOPs for attention at 1,024."""
    assert config.flops_per_token(causal=True) / 1e6 == pytest.approx(causal, abs=0.06)
    assert config.flops_per_token(causal=False) / 1e6 == pytest.approx(palm, abs=0.06)


def test_the_vocabulary_is_padded_and_the_padding_never_seen(model, tokens):
    assert model.tokens.shape == (128, 32)
    assert jax.jit(GPT.__call__)(model, tokens).shape == (2, 16, MODEL.resolved_vocab_size)
    assert GPTConfig(vocab_size=50257).padded_vocab_size == 50304
    assert GPTConfig(vocab_size=128).padded_vocab_size == 128


@pytest.mark.parametrize(
    "changes", [{"layers": "unroll"}, {"remat": "light"}, {"remat": "full"}, {"attention": "xla"}], ids=str
)
def test_how_it_is_computed_changes_nothing(model, tokens, reference, changes):
    other = with_static(model, config=replace(MODEL, **changes))
    for got, wanted in zip(*map(jax.tree.leaves, (logits_and_gradients(other, tokens), reference)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6, rtol=1e-5)


def test_bfloat16_is_close_to_float32(model, tokens, reference):
    half = with_static(
        model,
        config=replace(MODEL, compute=replace(MODEL.compute, dtype="bfloat16")),
    )
    logits, gradients = logits_and_gradients(half, tokens)
    assert logits.dtype == jnp.float32
    spread = float(jnp.std(reference[0]))
    assert 0 < float(jnp.abs(logits - reference[0]).max()) < 0.2 * spread
    for got, wanted in zip(gradients, reference[1], strict=True):
        assert got.dtype == jnp.float32
        assert float(jnp.linalg.norm(got - wanted)) <= 0.05 * float(jnp.linalg.norm(wanted)) + 1e-6


def test_initial_weights_have_the_spread_of_gpt2():
    config = replace(MODEL, embed_dim=128, num_layers=8)
    model = jax.jit(lambda: GPT(config, key=jax.random.key(1)))()
    std = lambda weight: float(jnp.std(weight[...]))
    assert std(model.tokens) == pytest.approx(0.02, rel=0.05)
    assert std(model.positions) == pytest.approx(0.02, rel=0.1)
    assert std(model.blocks.attention.qkv) == pytest.approx(0.02, rel=0.05)
    assert std(model.blocks.mlp.up) == pytest.approx(0.02, rel=0.05)
    assert std(model.blocks.attention.out) == pytest.approx(0.02 / 4, rel=0.05)
    assert std(model.blocks.mlp.down) == pytest.approx(0.02 / 4, rel=0.05)
    layers = model.blocks.mlp.up[...]
    assert not np.allclose(layers[0], layers[1]), "each layer is drawn by itself"
    assert float(jnp.abs(model.blocks.mlp.up_bias[...]).max()) == 0
    assert float(model.norm.scale[...].min()) == 1


def test_a_cropped_model_is_the_same_for_shorter_texts(model, tokens, reference):
    shorter = with_context_length(model, 6)
    assert shorter.config.context_length == 6
    logits = jax.jit(GPT.__call__)(shorter, tokens[:, :6])
    np.testing.assert_allclose(logits, reference[0][:, :6], atol=1e-6)
    with pytest.raises(UserError, match=r"7 tokens do not fit model\.context 6"):
        shorter(tokens[:, :7])
    with pytest.raises(UserError, match=r"model\.context 17 is longer than the 16 positions"):
        with_context_length(model, 17)


def test_another_binding_leaves_the_first_as_it_was(model):
    other = with_static(model, config=replace(MODEL, dropout=0.5))
    assert other.blocks.mlp.config.dropout == 0.5
    assert model.blocks.mlp.config.dropout == 0.0
    assert other.tokens[...] is model.tokens[...]


def test_a_stand_in_has_the_shapes_of_the_model(model):
    stand_in = abstract_model(MODEL)
    assert jax.tree.structure(stand_in) == jax.tree.structure(model)
    kinds = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert kinds(stand_in) == kinds(model)


def test_dropout_is_off_without_keys_and_different_for_each_row(model, tokens):
    dropping = with_static(model, config=replace(MODEL, dropout=0.5))
    same = jnp.tile(tokens[:1], (2, 1))
    run = jax.jit(lambda model, keys: model(same, keys))
    off = run(dropping, None)
    on = run(dropping, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(off[0], off[1])
    assert float(jnp.abs(on[0] - on[1]).max()) > 1e-3
    again = run(dropping, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(on, again)


def test_dropout_is_of_embeddings_probabilities_and_what_each_half_adds(model, tokens):
    """A mask is drawn from the row's key, folded with the layer, the site, and for probabilities the head."""
    keys = jax.random.split(jax.random.key(0), 2)

    def drop(x, *where):
        def kept(row):
            key = functools.reduce(jax.random.fold_in, where, keys[row])
            if x.ndim == 3:
                return jax.random.bernoulli(key, 0.75, x.shape[1:])
            heads = [jax.random.fold_in(key, head) for head in range(x.shape[1])]
            return np.stack([jax.random.bernoulli(key, 0.75, x.shape[2:]) for key in heads])

        return np.where(np.stack([kept(row) for row in range(2)]), x / 0.75, 0)

    dropping = with_static(model, config=replace(MODEL, dropout=0.25))
    dropped = jax.jit(GPT.__call__)(dropping, tokens, keys)
    np.testing.assert_allclose(dropped, by_hand(model, tokens, drop=drop), atol=1e-5)
    assert not np.allclose(dropped, by_hand(model, tokens), atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 30, "num_heads": 4}, r"model\.width 30 does not split over model\.num_heads 4"),
        ({"num_layers": 0}, r"model\.num_layers is 0"),
        ({"context_length": -1}, r"model\.context is -1"),
        ({"mlp_dim": 0}, r"model\.mlp_width is 0"),
        ({"dropout": 1.0}, r"model\.dropout is 1.0"),
    ],
)
def test_impossible_shapes_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        replace(MODEL, **changes)


def test_a_vocabulary_that_nobody_knows_is_asked_for():
    with pytest.raises(UserError, match=r"--model\.vocab-size"):
        abstract_model(replace(MODEL, vocab_size=None))
