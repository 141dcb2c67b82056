import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.model.layers import ACTIVATIONS, apply_softcap, dropout, fold_in_rows, layer_norm, rms_norm


def make_row_keys(count: int) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(count))


def test_layer_norm_centres_and_scales_in_float32() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 64)) * 5 + 2
    y = layer_norm(x, jnp.ones(64), None, epsilon=1e-5)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)
    shifted = layer_norm(x, 2 * jnp.ones(64), jnp.ones(64), epsilon=1e-5)
    np.testing.assert_allclose(shifted, 2 * y + 1, rtol=1e-5, atol=1e-5)

    half = (jnp.ones((1, 1, 64)) * 300 + jnp.arange(64.0)[None, None]).astype(jnp.bfloat16)
    y = layer_norm(half, jnp.ones(64), None, epsilon=1e-5)
    assert y.dtype == jnp.bfloat16
    exact = layer_norm(half.astype(jnp.float32), jnp.ones(64), None, epsilon=1e-5)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.01)


def test_rms_norm_scales_each_position_to_one() -> None:
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 4, 64))
    y = rms_norm(x, None, epsilon=0.0)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.square(y), axis=-1)), np.ones((2, 4)), rtol=1e-5)
    np.testing.assert_allclose(y[0, 0] / y[0, 0, 0], x[0, 0] / x[0, 0, 0], rtol=1e-5)
    scale = jnp.arange(64.0)
    np.testing.assert_allclose(rms_norm(x, scale, epsilon=0.0), y * scale[None, None], rtol=1e-6)
    assert rms_norm(x.astype(jnp.bfloat16), None, epsilon=1e-6).dtype == jnp.bfloat16


def test_relu2_squares_and_softcap_bounds() -> None:
    x = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(ACTIVATIONS["relu2"](x), [0.0, 0.0, 9.0])
    for curve in ("tanh", "sqrt"):
        capped = apply_softcap(jnp.array([-1e6, 0.01, 1e6]), 30.0, curve)
        np.testing.assert_allclose(capped, [-30.0, 0.01, 30.0], rtol=1e-5)
    np.testing.assert_allclose(apply_softcap(x, 2.0), 2 * np.tanh(np.array(x) / 2), rtol=1e-6)
    np.testing.assert_allclose(apply_softcap(x, 2.0, "sqrt"), x / np.sqrt(1 + np.array(x) ** 2 / 4), rtol=1e-6)
    assert apply_softcap(x, None) is x


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    x = jnp.ones((4, 50, 50))
    y = dropout(x, 0.3, make_row_keys(4))
    assert abs(float((y == 0).mean()) - 0.3) < 0.02
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=1e-6)


def test_dropout_mask_depends_only_on_the_row_key() -> None:
    x = jnp.ones((4, 8, 8))
    together = dropout(x, 0.5, make_row_keys(4))
    np.testing.assert_array_equal(dropout(x[:2], 0.5, make_row_keys(4)[2:]), together[2:])
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(dropout(x, 0.5, fold_in_rows(make_row_keys(4), 1)), together)
    assert dropout(x, 0.5, None) is x
