import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.model.layers import (
    ACTIVATIONS,
    apply_rotary,
    apply_softcap,
    dropout,
    fold_in_rows,
    layer_norm,
    rms_norm,
    rotary_angles,
)


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


def test_rms_norm_scales_each_position_to_one():
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 4, 64))
    y = rms_norm(x, None, epsilon=0.0)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.square(y), axis=-1)), np.ones((2, 4)), rtol=1e-5)
    np.testing.assert_allclose(y[0, 0] / y[0, 0, 0], x[0, 0] / x[0, 0, 0], rtol=1e-5)
    scale = jnp.arange(64.0)
    np.testing.assert_allclose(rms_norm(x, scale, epsilon=0.0), y * scale[None, None], rtol=1e-6)
    assert rms_norm(x.astype(jnp.bfloat16), None, epsilon=1e-6).dtype == jnp.bfloat16


@pytest.mark.parametrize("half", [False, True])
def test_rotated_products_depend_on_the_distance_alone(half):
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 16)) for i in range(2))

    def product(at, other):
        turned = [
            apply_rotary(x, rotary_angles(jnp.array([place]), 16, base=100.0, half=half))
            for x, place in ((q, at), (k, other))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(3, 1) == pytest.approx(product(40, 38), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)
    assert product(7, 7) == pytest.approx(float(jnp.sum(q * k)), abs=1e-4)


def test_the_speeds_of_rotation():
    """From one radian a position down to about 1 / base; half of them, if asked for, and the others still."""
    one = jnp.array([1])
    whole = rotary_angles(one, 8, base=10_000.0, half=False)[0]
    np.testing.assert_allclose(whole, [1.0, 0.1, 0.01, 0.001], rtol=1e-5)
    np.testing.assert_allclose(rotary_angles(one, 8, base=1024.0, half=True)[0], [1.0, 1 / 1024, 0, 0], rtol=1e-5)


def test_squared_relu_and_soft_caps():
    x = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(ACTIVATIONS["relu2"](x), [0.0, 0.0, 9.0])
    capped = apply_softcap(jnp.array([-1e6, 0.01, 1e6]), 30.0)
    np.testing.assert_allclose(capped, [-30.0, 0.01, 30.0], rtol=1e-5)
    assert apply_softcap(x, None) is x


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
    assert not np.array_equal(dropout(x, 0.5, fold_in_rows(rows(4), 1)), together)


def test_without_keys_nothing_is_dropped():
    x = jnp.ones((2, 3, 4))
    assert dropout(x, 0.5, None) is x
