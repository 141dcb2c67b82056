"""Decoding: what the cache remembers equals what a model without one computes, and filters keep what they say."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import generation as room
from gptjax.core.errors import UserError
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.generation import filter_logits, generate
from gptjax.model.gpt import GPT, abstract_model
from gptjax.sharding.mesh import MeshConfig

CONFIG = GPTConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=2,
    context_length=48,
    vocab_size=131,
    compute=ComputeConfig(dtype="float32"),
    init=InitConfig(std=0.3),
)
PROMPT = [[5, 90, 3], [1, 2, 130]]


@pytest.fixture(scope="module")
def model():
    return create(CONFIG)


def create(config, mesh=None):
    return jax.jit(lambda key: GPT(config, key=key, mesh=mesh))(jax.random.key(0))


forward = jax.jit(GPT.__call__)


def greedy_without_cache(model, prompt, new):
    """One token at a time, the whole text read again for each; padded so that it compiles once."""
    ids = np.zeros((len(prompt), model.config.context_length), np.int32)
    length = len(prompt[0])
    ids[:, :length] = prompt
    for position in range(length, length + new):
        ids[:, position] = np.argmax(forward(model, jnp.asarray(ids))[:, position - 1], axis=-1)
    return ids[:, : length + new]


def test_greedy_with_cache_equals_greedy_without(model):
    out = generate(model, PROMPT, max_new_tokens=45, temperature=0.0)
    expected = greedy_without_cache(model, PROMPT, 45)
    np.testing.assert_array_equal(out, expected)
    assert len(np.unique(expected)) > 10, "a model that repeats one token would prove little"


def test_bfloat16_and_untied_model_with_cache_equals_without():
    config = GPTConfig(
        num_layers=2,
        embed_dim=32,
        num_heads=2,
        context_length=32,
        vocab_size=131,
        tie_embeddings=False,
        init=InitConfig(std=0.3),
    )
    model = create(config)
    out = generate(model, [[7, 8, 9, 10, 11]], max_new_tokens=8, temperature=0.0)
    np.testing.assert_array_equal(out, greedy_without_cache(model, [[7, 8, 9, 10, 11]], 8))


def test_a_modern_model_with_cache_equals_without():
    """Rotation, in particular, must know how far the text has come."""
    modern = {"positions": "rotary", "norm": "rms", "qk_norm": True, "attention_scale": 0.3, "logit_softcap": 5.0}
    model = create(replace(CONFIG, **modern, gated_mlp=True, activation="silu", bias=False))
    out = generate(model, PROMPT, max_new_tokens=40, temperature=0.0)
    np.testing.assert_array_equal(out, greedy_without_cache(model, PROMPT, 40))
    assert len(np.unique(out)) > 10


def test_extend_in_pieces_equals_forward(model):
    tokens = jax.random.randint(jax.random.key(1), (2, CONFIG.context_length), 0, CONFIG.resolved_vocab_size)
    cache = room.Cache.empty(CONFIG, 2, positions=CONFIG.context_length, mesh=MeshConfig())
    half, pieces = CONFIG.context_length // 2, []
    read = jax.jit(lambda model, ids, cache, start: room.extend(model, ids, cache=cache, start=start))
    for start in (0, half):
        x, cache = read(model, tokens[:, start : start + half], cache, start)
        pieces.append(model.norm(x))
    logits = model.unembed(jnp.concatenate(pieces, axis=1))
    np.testing.assert_allclose(logits, forward(model, tokens), atol=1e-4)


def numpy_filter(row, top_k, top_p):
    """Walk down the tokens by probability and stop where the filter says."""
    order = np.lexsort((np.arange(len(row)), -row))[: top_k or len(row)]
    weights = np.exp(row[order] - row.max())
    kept, mass = [], 0.0
    for token, probability in zip(order, weights / weights.sum(), strict=True):
        if top_p is not None and kept and mass >= top_p:
            break
        kept.append(token)
        mass += probability
    out = np.full_like(row, -np.inf)
    out[kept] = row[kept]
    return out


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(None, None), (1, None), (7, None), (500, None), (None, 0.6), (None, 1e-6), (9, 0.8)]
)
def test_filters_match_plain_numpy(top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32) * 2
    out = filter_logits(jnp.asarray(logits), top_k=top_k, top_p=top_p)
    np.testing.assert_array_equal(out, np.stack([numpy_filter(row, top_k, top_p) for row in logits]))


def test_filters_break_ties_towards_the_lower_id():
    equal = jnp.zeros((1, 8))
    assert np.isfinite(filter_logits(equal, top_k=3)).tolist() == [[True] * 3 + [False] * 5]
    assert np.isfinite(filter_logits(equal, top_p=0.5)).tolist() == [[True] * 4 + [False] * 4]


def draw(model, prompt, seed, **settings):
    return generate(model, prompt, max_new_tokens=20, key=jax.random.key(seed), **settings)


def test_the_seed_decides_the_text(model):
    first = draw(model, PROMPT, 0)
    np.testing.assert_array_equal(first, draw(model, PROMPT, 0))
    assert (first != draw(model, PROMPT, 1)).any()
    assert (first[0, 3:] != first[1, 3:]).any()


def test_a_row_does_not_depend_on_its_neighbours_or_on_how_far_they_go(model):
    first = draw(model, PROMPT, 0)
    np.testing.assert_array_equal(first[:1], draw(model, PROMPT[:1], 0))
    np.testing.assert_array_equal(first[1], draw(model, [[9, 9, 9], PROMPT[1]], 0)[1])
    shorter = generate(model, PROMPT, max_new_tokens=6, key=jax.random.key(0))
    np.testing.assert_array_equal(first[:, :9], shorter)


def test_samples_of_one_prompt_follow_the_models_probabilities(model):
    """The first drawn token, 2,000 times: its frequencies are those of softmax(logits / temperature)."""
    rows = 2000
    out = generate(model, [PROMPT[0]] * rows, max_new_tokens=1, temperature=1.5, key=jax.random.key(4))
    padded = jnp.zeros((1, CONFIG.context_length), int).at[0, :3].set(jnp.asarray(PROMPT[0]))
    expected = jax.nn.softmax(forward(model, padded)[0, 2] / 1.5)
    observed = np.bincount(out[:, -1], minlength=CONFIG.resolved_vocab_size) / rows
    assert np.abs(observed - np.asarray(expected)).sum() < 0.25


def test_drawing_from_the_single_best_is_greedy(model):
    greedy = generate(model, PROMPT, max_new_tokens=20, temperature=0.0)
    np.testing.assert_array_equal(draw(model, PROMPT, 5, top_k=1), greedy)


def test_end_of_text_stops_a_row_and_fills_it(model):
    free = generate(model, PROMPT, max_new_tokens=20, temperature=0.0)
    end = int(free[0, 6])
    out = generate(model, PROMPT, max_new_tokens=20, temperature=0.0, end_of_text=end)
    for row, expected in zip(out, free, strict=True):
        ends = np.flatnonzero(expected[3:] == end)
        stop = 3 + int(ends[0]) if ends.size else len(expected)
        np.testing.assert_array_equal(row[:stop], expected[:stop])
        assert (row[stop:] == end).all()
    assert (out[0, 6:] == end).all()


def test_an_end_of_text_in_the_prompt_does_not_stop_it(model):
    free = generate(model, [[5, 90, 3]], max_new_tokens=4, temperature=0.0)
    np.testing.assert_array_equal(generate(model, [[5, 90, 3]], max_new_tokens=4, temperature=0.0, end_of_text=3), free)


def test_stopping_early_saves_steps(model, monkeypatch):
    """When all rows are over the loop ends: counted by a callback in the step."""
    calls = []
    choose = room._choose
    monkeypatch.setattr(
        room, "_choose", lambda *a, **k: (jax.debug.callback(lambda: calls.append(1)), choose(*a, **k))[1]
    )
    room._continue.clear_cache()
    free = generate(model, PROMPT[:1], max_new_tokens=20, temperature=0.0)
    jax.effects_barrier()
    assert len(calls) == 20
    calls.clear()
    generate(model, PROMPT[:1], max_new_tokens=20, temperature=0.0, end_of_text=int(free[0, 5]))
    jax.effects_barrier()
    assert len(calls) == int(np.flatnonzero(free[0, 3:] == free[0, 5])[0]) + 1
    room._continue.clear_cache()


def test_repeated_calls_share_one_program(model):
    room._continue.clear_cache()
    for seed, length, new, temperature, top_p in ((0, 3, 20, 1.0, 0.9), (1, 5, 25, 0.7, 0.5), (2, 9, 10, 2.0, 0.99)):
        generate(
            model,
            [list(range(length))],
            max_new_tokens=new,
            temperature=temperature,
            top_p=top_p,
            end_of_text=seed,
            key=jax.random.key(seed),
        )
    assert room._continue._cache_size() == 1


def test_a_sharded_model_writes_the_same_text(model):
    mesh, prompt = MeshConfig(data=2, fsdp=2, tensor=2), PROMPT * 2
    with mesh.activate():
        sharded = create(CONFIG, mesh)
    out = draw(sharded, prompt, 1, top_p=0.9)
    np.testing.assert_array_equal(out, draw(model, prompt, 1, top_p=0.9))


def test_rows_that_do_not_split_over_the_devices_are_refused():
    mesh = MeshConfig(data=2, fsdp=2)
    with mesh.activate():
        sharded = abstract_model(CONFIG, mesh)
    with pytest.raises(UserError, match=r"3 rows .* 4 devices"):
        generate(sharded, [[1, 2]] * 3, max_new_tokens=2, temperature=0.0)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([[1] * 40], {"max_new_tokens": 9}, "40 prompt tokens and 9 new ones .* 48.* at most 8"),
        ([[1, 131]], {}, "0 to 130"),
        ([[1, -1]], {}, "from -1 to 1"),
        ([[1], [1, 2]], {}, r"\[1, 2\]"),
        ([[]], {}, "at least one token"),
        ([], {}, "no rows"),
        ([[1]], {"max_new_tokens": 0}, "at least 1"),
        ([[1]], {"temperature": -1.0}, "temperature is -1.0"),
        ([[1]], {"temperature": float("nan")}, "temperature is nan"),
        ([[1]], {"temperature": 1e-30}, "temperature is 1e-30"),
        ([[1]], {"top_k": 0}, "top-k is 0"),
        ([[1]], {"top_p": 0.0}, "top-p is 0.0"),
        ([[1]], {"top_p": 1.5}, "top-p is 1.5"),
    ],
)
def test_requests_that_cannot_be_met_are_explained(model, prompt, settings, message):
    with pytest.raises(UserError, match=message):
        generate(model, prompt, **{"max_new_tokens": 2, "temperature": 0.0, **settings})


def test_drawing_without_a_key_is_a_mistake_of_the_caller(model):
    with pytest.raises(ValueError, match="key="):
        generate(model, [[1]], max_new_tokens=2)
