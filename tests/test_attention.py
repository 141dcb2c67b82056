import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.attention import attend, causal, choose
from gptjax.errors import UserError
from gptjax.layout import Layout


def qkv(shape=(2, 6, 3, 8)):
    return [jax.random.normal(jax.random.key(i), shape) for i in range(3)]


def test_it_is_the_textbook_formula():
    q, k, v = qkv()
    got = attend(q, k, v, kernel="xla", layout=Layout())
    for b, t, h in [(0, 0, 0), (1, 3, 2), (0, 5, 1)]:
        scores = np.array([q[b, t, h] @ k[b, s, h] for s in range(t + 1)]) / np.sqrt(8)
        weights = np.exp(scores) / np.exp(scores).sum()
        wanted = sum(w * np.asarray(v[b, s, h]) for s, w in enumerate(weights))
        np.testing.assert_allclose(got[b, t, h], wanted, rtol=1e-5, atol=1e-6)


def test_a_late_query_with_an_offset_equals_the_same_row_of_the_whole():
    q, k, v = qkv()
    whole = causal(q, k, v)
    np.testing.assert_allclose(causal(q[:, 4:5], k, v, offset=4), whole[:, 4:5], rtol=1e-5, atol=1e-6)


def test_dropped_probabilities_keep_their_mean_and_their_keys():
    q, k, v = qkv((1, 64, 2, 8))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(1))
    dropped = attend(q, k, jnp.ones_like(v), kernel="xla", dropout=0.4, keys=keys, layout=Layout())
    again = attend(q, k, jnp.ones_like(v), kernel="xla", dropout=0.4, keys=keys, layout=Layout())
    np.testing.assert_array_equal(dropped, again)
    assert abs(float(dropped.mean()) - 1.0) < 0.1
    assert float(dropped.std()) > 0.1
    assert not np.allclose(dropped[:, :, 0], dropped[:, :, 1])


def test_the_kernel_is_chosen_openly():
    fast = {"dtype": "bfloat16", "dropout": 0.0, "head_width": 64, "backend": "gpu"}
    assert choose("auto", **fast) == "cudnn"
    assert choose("xla", **fast) == "xla"
    assert choose("auto", **fast | {"dtype": "float32"}) == "xla"
    assert choose("auto", **fast | {"dropout": 0.1}) == "xla"
    assert choose("auto", **fast | {"backend": "cpu"}) == "xla"
    assert choose("auto", **fast | {"head_width": 20}) == "xla"
    with pytest.raises(UserError, match="cudnn cannot run: the backend is cpu"):
        choose("cudnn", **fast | {"backend": "cpu"})
