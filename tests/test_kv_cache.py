"""The key-value cache: its ring, its windows, and reading a text in pieces."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import make_model, make_tokens
from tiny import MODEL

from gptjax.generation.decoding import prepare_for_decoding
from gptjax.generation.kv_cache import Cache, extend_cache, ring_mask
from gptjax.model.gpt import GPT, with_static
from gptjax.sharding.mesh import MeshConfig


@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
@pytest.mark.parametrize("start", [0, 5, 13, 100])
def test_ring_shows_the_newest_tokens_of_the_window(start: int, window: int | None) -> None:
    """Slot by slot: it is visible if its newest position is not in the future and fewer than `window` tokens back."""
    size = 8
    for position in range(start, start + 3):
        newest = {position_of_slot % size: position_of_slot for position_of_slot in range(position + 1)}
        visible = [slot in newest and position - newest[slot] < (window or size) for slot in range(size)]
        assert ring_mask(jnp.array([position]), size, window=window)[0, 0].tolist() == visible


def test_prompt_sees_no_later_token_of_itself() -> None:
    mask = ring_mask(jnp.arange(4), 8, window=2)[0]
    assert mask.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
    ]


def test_text_in_pieces_equals_the_whole_text() -> None:
    """What a longer piece would leave behind at later positions is overwritten."""
    config = replace(MODEL, window_pattern="SL", short_window=5)
    model, tokens = make_model(config), make_tokens(2, 16, vocab_size=49)
    cache = Cache.empty(config, 2, positions=16, mesh=MeshConfig())
    read = jax.jit(lambda model, ids, cache, start: extend_cache(model, ids, cache=cache, start=start))
    first, cache = read(model, tokens[:, :8], cache, 0)
    _, cache = read(model, tokens[:, :8], cache, 8)  # padding, as it were
    second, cache = read(model, tokens[:, 8:], cache, 8)
    logits = model.unembed(model.norm(jnp.concatenate([first, second], axis=1)))
    np.testing.assert_allclose(logits, jax.jit(GPT.__call__)(model, tokens), atol=1e-4)


DECODED: dict[str, dict[str, Any]] = {
    "scanned": {"long_window": 3, "num_sinks": 1, "x0_mix": True, "rotary_fraction": 0.5, "logit_softcap": 2.0},
    "unrolled": {
        "num_layers": 3,
        "window_pattern": "SL",
        "short_window": 3,
        "num_sinks": 2,
        "unet_skips": "learned",
        "value_residual": True,
        "value_embeddings": "0..",
        "x0_mix": True,
        "logit_softcap": 2.0,
        "logit_softcap_curve": "sqrt",
    },
    "learned positions": {"positions": "learned", "norm": "layer", "num_kv_heads": None, "tie_embeddings": True},
}


@pytest.mark.parametrize("name", DECODED)
def test_decoding_equals_the_whole_text_with_every_option(name: str) -> None:
    """Rows read a prompt together, then a token at a time, each from its own position on, past the context."""
    base = replace(MODEL, positions="rotary", norm="rms", qk_norm=True, num_kv_heads=2, tie_embeddings=False)
    config = replace(base, **DECODED[name], bias="learned" in name)
    goes_on = config.position_scheme.max_length is None
    model, tokens = make_model(config), make_tokens(2, 40 if goes_on else 16, vocab_size=49)
    if goes_on:  # a model with a longer context whose layers see no further
        wide = replace(config, context_length=40, long_window=config.long_window or 16)
        expected = jax.jit(GPT.__call__)(with_static(model, config=wide), tokens)
    else:
        expected = jax.jit(GPT.__call__)(model, tokens)
    starts = jnp.array([4, 7])
    steps = tokens.shape[1] - 7

    @jax.jit
    def decode(model: GPT, tokens: jax.Array) -> jax.Array:
        cache = Cache.empty(config, 2, positions=16, mesh=MeshConfig())
        _, cache = extend_cache(model, tokens[:, :8], cache=cache, start=0)

        def read(cache: Cache, step: jax.Array) -> tuple[Cache, jax.Array]:
            token = jnp.take_along_axis(tokens, (starts + step)[:, None], axis=1)
            x, cache = extend_cache(model, token, cache=cache, start=starts + step)
            return cache, x[:, 0]

        _, xs = jax.lax.scan(read, cache, jnp.arange(steps))
        return model.unembed(model.norm(jnp.moveaxis(xs, 0, 1)))

    found = decode(prepare_for_decoding(model), tokens)
    for row, start in enumerate(starts.tolist()):
        np.testing.assert_allclose(found[row], expected[row, start : start + steps], atol=1e-4)
