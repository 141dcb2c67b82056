"""The key-value cache: its ring, its windows, and reading a text in pieces."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import make_model, make_tokens
from tiny import MODEL

from gptjax.model.gpt import GPT
from gptjax.model.kv_cache import Cache, extend_cache, ring_mask
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
