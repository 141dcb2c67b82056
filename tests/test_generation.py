"""Decoding with a cache equals the model without one, and filters equal plain numpy."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.generation.decoding_loop import read_prompts, write_tokens
from gptjax.generation.generate import DecodingSpeed, _check_types, generate, stream_cropped, stream_tokens
from gptjax.generation.sampling import SamplingOptions, filter_logits, penalize_repetition
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT, abstract_model, with_static
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
ROTARY = replace(CONFIG, positions="rotary", norm="rms", qk_norm=True, bias=False)
PROMPT = [[5, 90, 3], [1, 2, 130]]


@pytest.fixture(scope="module")
def model() -> GPT:
    return create_model(CONFIG)


def create_model(config: GPTConfig, mesh: MeshConfig | None = None) -> GPT:
    return jax.jit(lambda key: GPT(config, key=key, mesh=mesh))(jax.random.key(0))


forward = jax.jit(GPT.__call__)


def generate_without_cache(model: GPT, prompt: list[list[int]], count: int) -> np.ndarray:
    """Greedy decoding that reads the whole text for each token, padded so that it compiles once."""
    ids = np.zeros((len(prompt), model.config.context_length), np.int32)
    length = len(prompt[0])
    ids[:, :length] = prompt
    for position in range(length, length + count):
        ids[:, position] = np.argmax(forward(model, jnp.asarray(ids))[:, position - 1], axis=-1)
    return ids[:, : length + count]


MODELS = {
    "float32": CONFIG,
    "bfloat16, untied": replace(CONFIG, tie_embeddings=False, compute=ComputeConfig()),
    "rotary": replace(ROTARY, attention_scale=0.3, logit_softcap=5.0, gated_mlp=True, activation="silu"),
}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_equals_decoding_without_cache(name: str) -> None:
    model, count = create_model(MODELS[name]), 8 if "bfloat16" in name else 40
    out = generate(model, PROMPT, max_new_tokens=count, temperature=0.0)
    np.testing.assert_array_equal(out, generate_without_cache(model, PROMPT, count))
    assert len(np.unique(out)) > 10, "a model that repeats itself would prove little"


def test_rotary_text_goes_on_past_the_context() -> None:
    """It equals a model with a longer context whose layers see no further."""
    config = replace(ROTARY, context_length=24, tie_embeddings=False)
    model = create_model(config)
    out = generate(model, PROMPT, max_new_tokens=61, temperature=0.0)
    longer = with_static(model, config=replace(config, context_length=64, long_window=24))
    np.testing.assert_array_equal(np.argmax(forward(longer, jnp.asarray(out))[:, 2:-1], axis=-1), out[:, 3:])
    assert len(np.unique(out[:, 30:])) > 3


def filter_with_numpy(row: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
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
def test_filters_equal_plain_numpy(top_k: int | None, top_p: float | None) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32) * 2
    out = filter_logits(jnp.asarray(logits), top_k=top_k, top_p=top_p)
    np.testing.assert_array_equal(out, np.stack([filter_with_numpy(row, top_k, top_p) for row in logits]))


def test_filters_break_ties_towards_the_lower_id() -> None:
    equal = jnp.zeros((1, 8))
    assert np.isfinite(filter_logits(equal, top_k=3)).tolist() == [[True] * 3 + [False] * 5]
    assert np.isfinite(filter_logits(equal, top_p=0.5)).tolist() == [[True] * 4 + [False] * 4]


def sample(model: GPT, prompt: list[list[int]], seed: int, **settings: Any) -> np.ndarray:
    return generate(model, prompt, max_new_tokens=20, key=jax.random.key(seed), **settings)


def test_seed_decides_the_text(model: GPT) -> None:
    first = sample(model, PROMPT, 0)
    np.testing.assert_array_equal(first, sample(model, PROMPT, 0))
    assert (first != sample(model, PROMPT, 1)).any()
    assert (first[0, 3:] != first[1, 3:]).any()
    uniform = sample(model, PROMPT, 0, temperature=1e6)[0, 3:]
    assert len(set(uniform.tolist())) > 5, "each position has its own key"


def test_row_depends_neither_on_other_rows_nor_on_the_length(model: GPT) -> None:
    first = sample(model, PROMPT, 0)
    np.testing.assert_array_equal(first[:1], sample(model, PROMPT[:1], 0))
    np.testing.assert_array_equal(first[1], sample(model, [[9, 9, 9], PROMPT[1]], 0)[1])
    shorter = generate(model, PROMPT, max_new_tokens=6, key=jax.random.key(0))
    np.testing.assert_array_equal(first[:, :9], shorter)


def test_samples_follow_the_probabilities_of_the_model(model: GPT) -> None:
    """The first new token, 2,000 times: its frequencies are those of softmax(logits / temperature)."""
    rows = 2000
    out = generate(model, [PROMPT[0]] * rows, max_new_tokens=1, temperature=1.5, key=jax.random.key(4))
    padded = jnp.zeros((1, CONFIG.context_length), int).at[0, :3].set(jnp.asarray(PROMPT[0]))
    expected = jax.nn.softmax(forward(model, padded)[0, 2] / 1.5)
    observed = np.bincount(out[:, -1], minlength=CONFIG.resolved_vocab_size) / rows
    assert np.abs(observed - np.asarray(expected)).sum() < 0.25


def test_top_1_is_greedy(model: GPT) -> None:
    greedy = generate(model, PROMPT, max_new_tokens=20, temperature=0.0)
    np.testing.assert_array_equal(sample(model, PROMPT, 5, top_k=1), greedy)


def test_end_of_text_ends_a_row_and_fills_it(model: GPT) -> None:
    free = generate(model, PROMPT, max_new_tokens=20, temperature=0.0)
    end = int(free[0, 6])
    out = generate(model, PROMPT, max_new_tokens=20, temperature=0.0, end_of_text=end)
    for row, expected in zip(out, free, strict=True):
        ends = np.flatnonzero(expected[3:] == end)
        stop = 3 + int(ends[0]) if ends.size else len(expected)
        np.testing.assert_array_equal(row[:stop], expected[:stop])
        assert (row[stop:] == end).all()
    assert (out[0, 6:] == end).all()
    in_prompt = generate(model, PROMPT, max_new_tokens=20, temperature=0.0, end_of_text=3)
    assert (in_prompt[0, 3] == 3) == (free[0, 3] == 3), "an end of text in the prompt does not count"


def test_loop_ends_when_all_rows_are_finished(model: GPT) -> None:
    free = generate(model, PROMPT[:1], max_new_tokens=20, temperature=0.0)
    for end, steps in ((None, 20), (int(free[0, 5]), 1 + list(free[0, 3:]).index(free[0, 5]))):
        speeds: list[DecodingSpeed] = []
        settings = {"temperature": 0.0, "end_of_text": end, "report_speed": speeds.append}
        generate(model, PROMPT[:1], max_new_tokens=20, **settings)
        assert [(speed.steps, speed.tokens) for speed in speeds] == [(steps, steps)]


def test_speed_counts_the_bytes_of_matrices_and_cache(model: GPT) -> None:
    speeds: list[DecodingSpeed] = []
    generate(model, PROMPT, max_new_tokens=4, temperature=0.0, report_speed=speeds.append)
    [speed] = speeds
    blocks, cache = sum(leaf.nbytes for leaf in jax.tree.leaves(model.blocks)), 2 * 2 * 2 * 32 * 32 * 4
    head, norm = 256 * 32 * 4, 2 * 32 * 4
    assert speed.bytes_per_step == blocks + head + norm + cache
    assert (speed.tokens, speed.steps) == (8, 4)
    assert speed.tokens_per_second == 8 / speed.seconds
    assert speed.bytes_per_second == 4 * speed.bytes_per_step / speed.seconds


def test_repeated_calls_share_one_program(model: GPT) -> None:
    programs: tuple[Any, ...] = (read_prompts, write_tokens)
    for program in programs:
        program.clear_cache()
    for seed, length, count, temperature, top_p in ((0, 3, 20, 1.0, 0.9), (1, 5, 25, 0.7, 0.5), (2, 9, 10, 2.0, 0.99)):
        settings = {"temperature": temperature, "top_p": top_p, "end_of_text": seed, "key": jax.random.key(seed)}
        generate(model, [list(range(length))], max_new_tokens=count, **settings)
    assert [program._cache_size() for program in programs] == [1, 1]
    settings = {"max_new_tokens": 4, "options": SamplingOptions(0.0, repetition_penalty=1.5), "log_probabilities": True}
    assert len(list(stream_tokens(model, [[1, 2]], **settings))) == 4
    assert programs[1]._cache_size() == 2, "the second token, after which nothing is compiled"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_different_length_equal_rows_of_their_own(model: GPT, temperature: float) -> None:
    """A call of equal rows gives each prompt its index, from which its draws come."""
    prompts = [[5, 90, 3], [1], [7, 8, 9, 10, 11, 12, 13, 14], [2, 130]]
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "key": jax.random.key(3)}
    out = generate(model, prompts, **settings)
    assert out.shape == (4, 20)
    for row, prompt in enumerate(prompts):
        alone = generate(model, [prompt] * 4, **settings)[row]
        np.testing.assert_array_equal(out[row, : len(alone)], alone)
        assert (out[row, len(alone) :] == 0).all()


def test_sharded_model_writes_the_same_text(model: GPT) -> None:
    mesh, prompt = MeshConfig(data=2, fsdp=2, tensor=2), PROMPT * 2
    with mesh.activate():
        sharded = create_model(CONFIG, mesh)
    np.testing.assert_array_equal(sample(sharded, prompt, 1, top_p=0.9), sample(model, prompt, 1, top_p=0.9))


def test_rows_that_do_not_split_over_devices_are_refused() -> None:
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
        ([[1], []], {}, r"rows of \[1, 0\] tokens"),
        ([[1], [1] * 40], {"max_new_tokens": 9}, "40 prompt tokens"),
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
def test_impossible_requests_are_refused(
    model: GPT, prompt: list[list[int]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, prompt, **{"max_new_tokens": 2, "temperature": 0.0, **settings})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (np.array([1, 2]), "got one row. Write generate"),
        ("def", "got a text"),
        (["def"], "type <U3"),
        ([["a"]], "type <U1"),
        ([[1.7, 2.2]], "type float64"),
        ([[[1, 2]]], r"shape \(1, 2\)"),
    ],
)
def test_what_is_no_rows_of_ids_is_refused(model: GPT, prompt: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _check_types(model, prompt)
    with pytest.raises(TypeError, match=r"needs a GPT, such as run\.load_model"):
        _check_types(prompt, [[1]])


def test_sampling_without_a_key_is_an_error(model: GPT) -> None:
    with pytest.raises(ValueError, match="key="):
        generate(model, [[1]], max_new_tokens=2)


@pytest.mark.parametrize("every", [1, 4, 7])
def test_streamed_tokens_are_those_of_generate(model: GPT, every: int) -> None:
    prompt, key = [[5, 90, 3], [1, 2, 130, 7, 9]], jax.random.key(2)
    options = SamplingOptions(temperature=0.9, top_k=30)
    whole = generate(model, prompt, max_new_tokens=7, temperature=0.9, top_k=30, key=key)
    parts = list(stream_tokens(model, prompt, max_new_tokens=7, options=options, every=every, key=key))
    assert [part.tokens.shape[1] for part in parts] == [every] * (7 // every) + [7 % every] * (7 % every > 0)
    new = np.concatenate([part.tokens for part in parts], axis=1)
    for row, tokens, text in zip(new, prompt, whole, strict=True):
        np.testing.assert_array_equal(row, text[len(tokens) : len(tokens) + 7])


def test_stream_ends_when_all_rows_have_one_of_the_ends(model: GPT) -> None:
    options = SamplingOptions(temperature=0.0)
    [first] = stream_tokens(model, PROMPT, max_new_tokens=6, options=options, every=6)
    ends = [int(first.tokens[0, 2]), int(first.tokens[1, 1])]
    parts = list(stream_tokens(model, PROMPT, max_new_tokens=40, options=options, end_of_text=ends))
    new = np.concatenate([part.tokens for part in parts], axis=1)
    stops = [min(int(np.flatnonzero(row == end)[0]) for end in ends if end in row) for row in first.tokens]
    assert len(parts) == max(stops) + 1
    for row, wanted, stop in zip(new, first.tokens, stops, strict=True):
        np.testing.assert_array_equal(row[: stop + 1], wanted[: stop + 1])
        assert (row[stop + 1 :] == ends[0]).all()
    assert parts[-1].finished.all()


def test_log_probabilities_are_those_of_the_model(model: GPT) -> None:
    """Without the temperature and the filters by which the tokens were drawn."""
    options, key = SamplingOptions(temperature=0.7, top_k=3), jax.random.key(1)
    prompt = [[5, 90, 3], [1, 2, 130, 7]]
    parts = list(
        stream_tokens(model, prompt, max_new_tokens=6, options=options, key=key, log_probabilities=True, every=2)
    )
    for row, tokens in enumerate(prompt):
        new = np.concatenate([part.tokens[row] for part in parts])
        nats = np.concatenate([part.log_probabilities[row] for part in parts])
        text = np.zeros((1, CONFIG.context_length), np.int32)
        text[0, : len(tokens) + 6] = [*tokens, *new]
        expected = jax.nn.log_softmax(forward(model, jnp.asarray(text))[0])
        places = np.arange(len(tokens) - 1, len(tokens) + 5)
        np.testing.assert_allclose(nats, expected[places, new], atol=1e-5)


def test_min_p_keeps_tokens_by_their_share_of_the_likeliest() -> None:
    probabilities = np.array([[0.5, 0.3, 0.04, 0.06, 0.1]])
    kept = filter_logits(jnp.log(probabilities), min_p=0.19)
    np.testing.assert_array_equal(np.isfinite(kept), [[True, True, False, False, True]])
    np.testing.assert_array_equal(np.isfinite(filter_logits(jnp.log(probabilities), min_p=1.0, top_k=3)).sum(), 1)


def test_repetition_penalty_makes_tokens_of_the_text_less_likely(model: GPT) -> None:
    logits, seen = np.array([[2.0, -2.0, 1.0, -1.0]]), np.array([[True, True, False, False]])
    np.testing.assert_allclose(penalize_repetition(jnp.asarray(logits), jnp.asarray(seen), 2.0), [[1, -4, 1, -1]])
    ids = generate(model, PROMPT, max_new_tokens=20, temperature=0.0, repetition_penalty=100.0)
    assert all(len(set(row.tolist())) == len(row) for row in ids), "with a large penalty nothing is said twice"
    forced = np.zeros((2, CONFIG.context_length), np.int32)
    forced[:, : ids.shape[1]] = ids
    for row, logits in zip(ids, np.asarray(forward(model, jnp.asarray(forced))), strict=True):
        for place in range(3, 23):
            scores = logits[place - 1].copy()
            past = np.unique(row[:place])
            scores[past] = np.where(scores[past] > 0, scores[past] / 100, scores[past] * 100)
            assert row[place] == np.argmax(scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_p": 1.5}, "min-p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition-penalty is 0.0"),
    ],
)
def test_sampling_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingOptions(**options)  # pyright: ignore[reportArgumentType]


def test_text_past_learned_positions_sees_the_last_context(model: GPT) -> None:
    """As nanoGPT's: each token is computed from the last context of tokens, at positions from 0."""
    prompt, options, context = [[5, 90, 3] * 18, [7, 1]], SamplingOptions(temperature=0.0), CONFIG.context_length
    parts = list(stream_cropped(model, prompt, max_new_tokens=4, options=options))
    new = np.concatenate([part.tokens for part in parts], axis=1)
    for text, written in zip(prompt, new, strict=True):
        whole = [*text]
        for token in written:
            window = np.zeros((1, context), np.int32)
            last = whole[-context:]
            window[0, : len(last)] = last
            assert token == np.argmax(forward(model, jnp.asarray(window))[0, len(last) - 1])
            whole.append(int(token))
    filled = generate(model, [[1, 2]], max_new_tokens=46, temperature=0.0)[0]
    [*_, last] = stream_cropped(model, [[1, 2]], max_new_tokens=47, options=options, every=47)
    np.testing.assert_array_equal(last.tokens[0, :46], filled[2:])
