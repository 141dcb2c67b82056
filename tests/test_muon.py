import jax
import numpy as np
import optax
import pytest
from flax import nnx

from gptjax.layout import Layout
from gptjax.muon import newton_schulz, scale_by_muon
from gptjax.shapes import matrix_axes

SHAPES = {"DCHK": (16, 3, 4, 4), "HKD": (4, 4, 16), "DF": (16, 48), "FD": (48, 16)}
LAYERS = 3


def weights(seed):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        letters: nnx.Param(jax.random.normal(key, (LAYERS, *shape)), letters=letters)
        for key, (letters, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def values(tree):
    return {letters: np.asarray(param[...]) for letters, param in tree.items()}


@pytest.mark.parametrize("nesterov", [True, False])
def test_it_equals_optax_over_several_steps(nesterov):
    def dimensions(letters):
        ins, outs = matrix_axes(letters)
        return optax.contrib.MuonDimensionNumbers(tuple(i + 1 for i in ins), tuple(i + 1 for i in outs))

    theirs = optax.contrib.muon(
        1.0,
        nesterov=nesterov,
        muon_weight_dimension_numbers={letters: dimensions(letters) for letters in SHAPES},
    )
    ours = scale_by_muon(nesterov=nesterov, dtype="float32", layout=Layout())
    params = weights(0)
    state = ours.init(params)
    their_params = values(params)
    their_state = theirs.init(their_params)
    update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
    for seed in range(1, 4):
        got, state = update(weights(seed), state)
        wanted, their_state = their_update(values(weights(seed)), their_state, their_params)
        for letters in SHAPES:
            np.testing.assert_allclose(got[letters][...], -wanted[letters], rtol=1e-4, atol=1e-5)


def test_singular_values_end_near_one():
    x = jax.random.normal(jax.random.key(0), (2, 32, 64))
    singular = np.linalg.svd(np.asarray(newton_schulz(x)), compute_uv=False)
    assert singular.min() > 0.6
    assert singular.max() < 1.3


@pytest.mark.parametrize("layout", [Layout(data=8), Layout(fsdp=4, data=2), Layout(data=2, fsdp=2, tensor=2)])
def test_spread_over_devices_it_gives_the_same_update_sharded_like_its_weights(layout):
    alone = scale_by_muon(dtype="float32", layout=Layout())
    wanted, _ = jax.jit(alone.update)(weights(1), alone.init(weights(0)))
    with layout.active():
        place = lambda tree: {
            name: param.replace(jax.sharding.reshard(param[...], layout.weights("N" + name)))
            for name, param in tree.items()
        }
        spread = scale_by_muon(dtype="float32", layout=layout)
        params = place(weights(0))
        state = jax.jit(spread.init)(params)
        got, state = jax.jit(spread.update)(place(weights(1)), state)
        for name in SHAPES:
            assert got[name][...].sharding == params[name][...].sharding
            assert state.momentum[name][...].sharding == params[name][...].sharding
    for name in SHAPES:
        np.testing.assert_allclose(jax.device_get(got[name][...]), wanted[name][...], atol=1e-5)


def test_all_matrices_of_a_shape_share_their_products():
    transformation = scale_by_muon(dtype="float32", layout=Layout())
    params = weights(0)
    text = jax.jit(transformation.update).lower(params, transformation.init(params)).as_text()
    assert text.count("dot_general") == 2 * 5 * 3  # two shapes, five iterations, three products
