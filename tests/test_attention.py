from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import attention as room
from gptjax.core.errors import UserError
from gptjax.model.attention import Sinks, attend, causal_attention, cudnn_attention, select_kernel
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.sharding.mesh import MeshConfig


def qkv(shape=(2, 6, 3, 8)):
    return [jax.random.normal(jax.random.key(i), shape) for i in range(3)]


def test_it_is_the_textbook_formula():
    q, k, v = qkv()
    got = attend(q, k, v, kernel="xla", mesh=MeshConfig())
    for b, t, h in [(0, 0, 0), (1, 3, 2), (0, 5, 1)]:
        scores = np.array([q[b, t, h] @ k[b, s, h] for s in range(t + 1)]) / np.sqrt(8)
        weights = np.exp(scores) / np.exp(scores).sum()
        wanted = sum(w * np.asarray(v[b, s, h]) for s, w in enumerate(weights))
        np.testing.assert_allclose(got[b, t, h], wanted, rtol=1e-5, atol=1e-6)


def by_hand(q, k, v, *, scale, window=None, segments=None, sinks=None):
    """Every query by itself, in numpy."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        j = h // (q.shape[2] // k.shape[2])
        seen = [s for s in range(t + 1) if window is None or t - s < window]
        seen = [s for s in seen if segments is None or segments[b, s] == segments[b, t]]
        scores, values = [q[b, t, h] @ k[b, s, j] for s in seen], [v[b, s, j] for s in seen]
        if sinks is not None:
            turned, keys, more = (np.asarray(x, np.float64) for x in sinks)
            scores += [turned[b, t, h] @ key[j] for key in keys]
            values += [value[j] for value in more]
        weights = np.exp(scale * np.array(scores))
        out[b, t, h] = weights / weights.sum() @ np.array(values)
    return out


def draw(*shape, key=0):
    return jax.random.normal(jax.random.key(key), shape)


SINKS = Sinks(draw(2, 6, 4, 8, key=7), draw(3, 2, 8, key=8), draw(3, 2, 8, key=9))
SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 1, 1]])
OPTIONS = [
    {"window": 3},
    {"segments": SEGMENTS},
    {"num_sinks": SINKS},
    {"window": 2, "segments": SEGMENTS, "num_sinks": SINKS},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_windows_documents_sinks_and_shared_keys_are_what_they_say(options):
    q, k, v = draw(2, 6, 4, 8), draw(2, 6, 2, 8, key=1), draw(2, 6, 2, 8, key=2)
    got = attend(q, k, v, kernel="xla", scale=0.3, mesh=MeshConfig(), **options)
    np.testing.assert_allclose(got, by_hand(q, k, v, scale=0.3, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, *OPTIONS, {"window": 1}], ids=lambda options: "+".join(options) or "plain")
def test_blocks_of_queries_and_the_whole_row_are_the_same(monkeypatch, options):
    """Values and gradients, with a last block that is not full."""
    q, k, v = draw(2, 6, 4, 8), draw(2, 6, 2, 8, key=1), draw(2, 6, 2, 8, key=2)

    def loss(q, k, v, block):
        monkeypatch.setattr(room, "BLOCK", block)
        return jnp.sum(jnp.sin(attend(q, k, v, kernel="xla", mesh=MeshConfig(), **options)))

    whole, blocks = (jax.value_and_grad(partial(loss, block=block), argnums=(0, 1, 2))(q, k, v) for block in (99, 4))
    for got, wanted in zip(*map(jax.tree.leaves, (blocks, whole)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_blocks_read_only_the_keys_that_a_window_reaches(monkeypatch):
    monkeypatch.setattr(room, "BLOCK", 4)
    x = jax.ShapeDtypeStruct((1, 32, 2, 8), jnp.float32)
    flops = lambda window: (
        jax.jit(partial(causal_attention, scale=1.0, window=window)).lower(x, x, x).compile().cost_analysis()
    )
    assert flops(4)["flops"] < 0.5 * flops(None)["flops"]


def test_blocks_drop_probabilities_by_their_keys(monkeypatch):
    monkeypatch.setattr(room, "BLOCK", 16)
    q, k, v = qkv((1, 64, 2, 8))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(1))
    dropped = attend(q, k, jnp.ones_like(v), kernel="xla", dropout=0.4, keys=keys, mesh=MeshConfig())
    assert abs(float(dropped.mean()) - 1.0) < 0.1
    assert not np.allclose(dropped[:, :16], dropped[:, 16:32], atol=1e-2)


def test_the_fast_kernel_is_given_sinks_as_tokens_before_the_text(monkeypatch):
    """What the kernel is asked to compute, computed by XLA instead."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **k: plain(*a, **k | {"implementation": "xla"}))
    q, k, v = draw(2, 6, 4, 8), draw(2, 6, 2, 8, key=1), draw(2, 6, 2, 8, key=2)
    for options in ({"window": None, "num_sinks": SINKS}, {"window": 3, "num_sinks": None}):
        got = cudnn_attention(q, k, v, scale=0.3, **options)
        np.testing.assert_allclose(got, by_hand(q, k, v, scale=0.3, **options), rtol=1e-5, atol=1e-5)


def test_dropped_probabilities_keep_their_mean_and_their_keys():
    q, k, v = qkv((1, 64, 2, 8))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(1))
    dropped = attend(q, k, jnp.ones_like(v), kernel="xla", dropout=0.4, keys=keys, mesh=MeshConfig())
    again = attend(q, k, jnp.ones_like(v), kernel="xla", dropout=0.4, keys=keys, mesh=MeshConfig())
    np.testing.assert_array_equal(dropped, again)
    assert abs(float(dropped.mean()) - 1.0) < 0.1
    assert float(dropped.std()) > 0.1
    assert not np.allclose(dropped[:, :, 0], dropped[:, :, 1])


def test_the_kernel_is_chosen_openly():
    def chosen(wanted="auto", backend="gpu", **changes):
        return select_kernel(GPTConfig(**changes, compute=ComputeConfig(attention_impl=wanted)), backend=backend)

    assert chosen() == "cudnn"
    assert chosen("xla") == "xla"
    assert chosen(dtype="float32") == "xla"
    assert chosen(dropout=0.1) == "xla"
    assert chosen(backend="cpu") == "xla"
    assert chosen(num_heads=64) == "xla"
    assert chosen(intra_document_mask=True) == "xla"
    assert chosen(num_sinks=4, long_window=128) == "xla"
    assert chosen(num_sinks=4, num_heads=6) == "xla", "twice 128 channels are too many"
    assert chosen(num_sinks=4, num_kv_heads=4) == "cudnn"
    assert chosen(window_pattern="SL", short_window=128) == "cudnn"
    with pytest.raises(UserError, match="cudnn cannot run: the backend is cpu"):
        chosen("cudnn", backend="cpu")


@pytest.mark.parametrize(
    ("found", "wanted", "why"),
    [
        ("9.0", "cudnn", None),
        ("8.0", "cudnn", None),
        ("7.5", "xla", "has compute capability 7.5 and .* 8"),
        ("gfx90a", "xla", "not NVIDIA"),
    ],
)
def test_old_gpus_and_those_of_others_get_the_formula(monkeypatch, found, wanted, why):
    device = SimpleNamespace(platform="gpu", compute_capability=found)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert select_kernel(GPTConfig(), backend="gpu") == wanted
    if why:
        with pytest.raises(UserError, match=why):
            select_kernel(GPTConfig(compute=ComputeConfig(attention_impl="cudnn")), backend="gpu")
