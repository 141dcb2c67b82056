import jax
import jax.numpy as jnp
import numpy as np

from gptjax.ops import dropout, fold_rows, layer_norm


def rows(count, *, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def test_layer_norm_centres_and_scales_each_position():
    x = jax.random.normal(jax.random.key(0), (2, 3, 64)) * 5 + 2
    y = layer_norm(x, jnp.ones(64), None, epsilon=1e-5)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)
    shifted = layer_norm(x, 2 * jnp.ones(64), jnp.ones(64), epsilon=1e-5)
    np.testing.assert_allclose(shifted, 2 * y + 1, rtol=1e-5, atol=1e-5)


def test_layer_norm_keeps_the_type_but_computes_in_float32():
    x = (jnp.ones((1, 1, 64)) * 300 + jnp.arange(64.0)[None, None]).astype(jnp.bfloat16)
    y = layer_norm(x, jnp.ones(64), None, epsilon=1e-5)
    assert y.dtype == jnp.bfloat16
    exact = layer_norm(x.astype(jnp.float32), jnp.ones(64), None, epsilon=1e-5)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.01)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = jnp.ones((4, 50, 50))
    y = dropout(x, 0.3, rows(4))
    assert abs(float((y == 0).mean()) - 0.3) < 0.02
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=1e-6)


def test_a_rows_mask_depends_on_its_key_alone():
    x = jnp.ones((4, 8, 8))
    together = dropout(x, 0.5, rows(4))
    np.testing.assert_array_equal(dropout(x[:2], 0.5, rows(4)[2:]), together[2:])
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(dropout(x, 0.5, fold_rows(rows(4), 1)), together)


def test_without_keys_nothing_is_dropped():
    x = jnp.ones((2, 3, 4))
    assert dropout(x, 0.5, None) is x
