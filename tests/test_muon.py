"""Muon against optax where their definitions agree, and each option against a small numpy version of it."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from gptjax.optim.orthogonalize import POLAR_EXPRESS, QUINTIC, count_muon_flops, newton_schulz, scale_by_muon
from gptjax.sharding.axes import matrix_axes
from gptjax.sharding.mesh import MeshConfig, reshard
from gptjax.training.state import with_sharding

SHAPES = {"DCHK": (16, 3, 4, 4), "HKD": (4, 4, 16), "DF": (16, 48), "FD": (48, 16)}
LAYERS, STEPS = 3, 3
ALONE = MeshConfig()
LAYOUTS = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(fsdp=8),
    "fsdp × tensor": MeshConfig(fsdp=2, tensor=4),
    "all three": MeshConfig(data=2, fsdp=2, tensor=2),
}
rising = lambda step: 0.85 + 0.05 * step
OPTIONS = {
    "plain": {},
    "no nesterov": {"nesterov": False},
    "other coefficients": {"coefficients": (2.0, -1.5, 0.5), "iterations": 3},
    "polar express": {"coefficients": "polar_express", "iterations": 6},
    "rms": {"scaling": "rms"},
    "heads": {"split": "heads"},
    "equilibrated": {"equilibrate": True},
    "normuon": {"normuon_beta2": 0.9},
    "less momentum": {"momentum": lambda step: 0.8},
    "rising momentum": {"momentum": rising},
    "all": {
        "coefficients": "polar_express",
        "scaling": "rms",
        "split": "heads",
        "equilibrate": True,
        "normuon_beta2": 0.9,
        "momentum": rising,
    },
}


def weights(seed, mesh=ALONE):
    """Normal numbers, sharded as their letters say."""
    numbers, mesh = np.random.default_rng(seed), mesh.mesh()
    where = lambda axis_names: None if mesh is None else NamedSharding(mesh, mesh.weight_spec("N" + axis_names))
    draw = lambda shape: numbers.standard_normal((LAYERS, *shape)).astype(np.float32)
    return {
        axis_names: nnx.Param(jax.device_put(draw(shape), where(axis_names)), axis_names=axis_names)
        for axis_names, shape in SHAPES.items()
    }


def values(tree):
    return {axis_names: np.asarray(jax.device_get(param[...])) for axis_names, param in tree.items()}


@functools.cache
def updates_of(name, mesh=ALONE, *, dtype="float32"):
    """The updates of some steps with the options of this name, and the state that they end in."""
    with mesh.activate():
        muon = scale_by_muon(mesh=mesh, dtype=dtype, **OPTIONS[name])
        state = jax.jit(muon.init)(weights(0, mesh))
        update, found = jax.jit(muon.update), []
        for step in range(STEPS):
            got, state = update(weights(step + 1, mesh), state, step=step)
            found.append(got)
    return found, state


# ------------------------------------------------------------------------------------------------ what is computed


def polar_coefficients_for_optax():
    """optax divides by the norm alone: that Polar Express begins with 1.02 of it is put into the first step."""
    first = tuple(c / 1.02**power for c, power in zip(POLAR_EXPRESS[0], (1, 3, 5), strict=True))
    return (first, *POLAR_EXPRESS[1:], POLAR_EXPRESS[-1])


OPTAX = {
    "plain": {},
    "no nesterov": {"nesterov": False},
    "rms": {"consistent_rms": 0.2},
    "less momentum": {"beta": 0.8},
    "other coefficients": {"ns_coeffs": (2.0, -1.5, 0.5), "ns_steps": 3},
    "polar express": {"ns_coeffs": polar_coefficients_for_optax(), "ns_steps": 6},
}


@functools.cache
def optax_updates(name):
    def dimensions(axis_names):
        ins, outs = matrix_axes(axis_names)
        return optax.contrib.MuonDimensionNumbers(tuple(i + 1 for i in ins), tuple(i + 1 for i in outs))

    muon = optax.contrib.muon(1.0, muon_weight_dimension_numbers={x: dimensions(x) for x in SHAPES}, **OPTAX[name])
    params = values(weights(0))
    state, update, found = muon.init(params), jax.jit(muon.update), []
    for step in range(STEPS):
        got, state = update(values(weights(step + 1)), state, params)
        found.append({axis_names: -got[axis_names] for axis_names in SHAPES})
    return found


@pytest.mark.parametrize("name", OPTAX)
def test_it_equals_optax_over_several_steps(name):
    for got, wanted in zip(updates_of(name)[0], optax_updates(name), strict=True):
        for axis_names in SHAPES:
            np.testing.assert_allclose(got[axis_names][...], wanted[axis_names], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_equals_optax_on_eight_devices(name):
    for got, wanted in zip(updates_of("plain", LAYOUTS[name])[0], optax_updates("plain"), strict=True):
        for axis_names in SHAPES:
            np.testing.assert_allclose(values(got)[axis_names], wanted[axis_names], rtol=1e-5, atol=1e-5)


def as_matrices(axis_names, array, *, heads):
    """One layer's weight → its matrices as (in, out), cut out by hand."""
    if axis_names == "DCHK":
        parts = [array[:, c, h] for c in range(3) for h in range(4)]
        return parts if heads else [array[:, c].reshape(16, 16) for c in range(3)]
    return [array.reshape(-1, array.shape[-1])]


def plain_numpy(
    *,
    momentum=lambda step: 0.95,
    nesterov=True,
    ns_steps=5,
    ns_coefficients="quintic",
    scaling="spectral",
    split="projections",
    row_normalize=False,
    normuon_beta2=None,
):
    """The updates by the definitions, a matrix at a time, in float64."""
    polar = coefficients == "polar_express"
    table = POLAR_EXPRESS if polar else (QUINTIC if coefficients == "quintic" else coefficients,)
    gradients = [values(weights(step + 1)) for step in range(STEPS)]
    found = []
    for axis_names in SHAPES:
        for layer in range(LAYERS):
            grads = [
                as_matrices(axis_names, g[axis_names][layer].astype(np.float64), heads=split == "heads")
                for g in gradients
            ]
            for history in zip(*grads, strict=True):
                average, weight_of_zero, second = np.zeros_like(history[0]), 1.0, 0.0
                ins, outs = average.shape
                for step, g in enumerate(history):
                    mu = momentum(step)
                    average, weight_of_zero = mu * average + (1 - mu) * g, weight_of_zero * mu
                    x = average / (1 - weight_of_zero)
                    if nesterov:
                        ahead = average / (1 - weight_of_zero * mu)
                        x = mu * ahead + (1 - mu) * g / (1 - weight_of_zero)
                    if row_normalize:
                        x = x / np.linalg.norm(x, axis=0)
                    x = x / (np.linalg.norm(x) * (1.02 if polar else 1.0))
                    for i in range(iterations):
                        a, b, c = table[min(i, len(table) - 1)]
                        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
                    if normuon_beta2 is not None:
                        second = normuon_beta2 * second + (1 - normuon_beta2) * (x**2).mean(axis=0)
                        even = x / np.sqrt(second)
                        x = even * np.linalg.norm(x) / np.linalg.norm(even)
                    x = x * (0.2 * max(ins, outs) ** 0.5 if scaling == "rms" else max(1, outs / ins) ** 0.5)
                    found.append((axis_names, layer, step, x))
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_what_its_definition_says(name):
    options = OPTIONS[name]
    got = [values(update) for update in updates_of(name)[0]]
    heads = options.get("split") == "heads"
    mine = {
        (axis_names, layer, step): iter(as_matrices(axis_names, got[step][axis_names][layer], heads=heads))
        for axis_names in SHAPES
        for layer in range(LAYERS)
        for step in range(STEPS)
    }
    for axis_names, layer, step, wanted in plain_numpy(**options):
        np.testing.assert_allclose(next(mine[axis_names, layer, step]), wanted, atol=2e-5)
    assert all(next(left, None) is None for left in mine.values())


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "plain"])
def test_each_option_makes_a_difference(name):
    plain, other = (values(updates_of(which)[0][-1]) for which in ("plain", name))
    assert max(abs(plain[axis_names] - other[axis_names]).max() for axis_names in SHAPES) > 0.01


@pytest.mark.parametrize(("coefficients", "low", "high"), [("quintic", 0.6, 1.3), ("polar_express", 0.8, 1.2)])
def test_singular_values_end_near_one(coefficients, low, high):
    x = jax.random.normal(jax.random.key(0), (2, 32, 64))
    singular = np.linalg.svd(np.asarray(newton_schulz(x, ns_coefficients=coefficients)), compute_uv=False)
    assert singular.min() > low
    assert singular.max() < high


def test_a_matrix_without_gradient_is_not_moved():
    nothing = {"DF": nnx.Param(np.zeros((1, 16, 48), np.float32), axis_names="DF")}
    muon = scale_by_muon(normuon_beta2=0.9, row_normalize=True, mesh=ALONE)
    update, _ = jax.jit(muon.update)(nothing, muon.init(nothing), step=0)
    np.testing.assert_array_equal(update["DF"][...], 0.0)


def test_momentum_and_neurons_are_float32_whatever_the_products_are():
    _, state = updates_of("normuon", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}
    shapes = {axis_names: param.shape[1:] for axis_names, param in state.neurons.items()}
    assert shapes == {"DCHK": (1, 3, 4, 4), "HKD": (1, 1, 16), "DF": (1, 48), "FD": (1, 16)}


# ------------------------------------------------------------------------------------------- how it is divided up


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("options", ["plain", "all"])
def test_spread_over_devices_it_gives_the_same_updates_sharded_like_their_weights(name, options):
    mesh = LAYOUTS[name]
    alone, _ = updates_of(options)
    spread, state = updates_of(options, mesh)
    for got, wanted in zip(spread, alone, strict=True):
        for axis_names in SHAPES:
            assert got[axis_names][...].sharding.spec == mesh.weight_spec("N" + axis_names)
            np.testing.assert_allclose(values(got)[axis_names], wanted[axis_names][...], atol=1e-5)
    for axis_names in SHAPES:
        spec = mesh.weight_spec("N" + axis_names)
        assert state.momentum[axis_names][...].sharding.spec == spec
        if state.neurons is not None:
            ins = {1 + axis for axis in matrix_axes(axis_names)[0]}
            neurons = state.neurons[axis_names][...].sharding.spec
            assert tuple(neurons) == tuple(None if axis in ins else spec[axis] for axis in range(len(spec)))


@pytest.mark.parametrize("mesh", [ALONE, LAYOUTS["all three"]], ids=["alone", "all three"])
def test_a_weight_need_not_be_stacked(mesh):
    """One matrix outside the blocks is treated as a stack of one."""
    x = np.random.default_rng(0).standard_normal((16, 48)).astype(np.float32)
    with mesh.activate():
        muon = scale_by_muon(mesh=mesh, dtype="float32", normuon_beta2=0.9)
        made = lambda array, axis_names: {
            "w": nnx.Param(reshard(jnp.asarray(array), mesh.weight_spec(axis_names)), axis_names="DF")
        }
        found = []
        for array, axis_names in ((x, "DF"), (x[None], "NDF")):
            params = made(array, axis_names)
            found.append(jax.jit(muon.update)(params, muon.init(params), step=0)[0]["w"][...])
    np.testing.assert_allclose(jax.device_get(found[0]), jax.device_get(found[1])[0], atol=1e-6)


def test_all_matrices_of_a_shape_share_their_products():
    transformation = scale_by_muon(dtype="float32", mesh=ALONE)
    params = weights(0)
    lowered = jax.jit(transformation.update).lower(params, transformation.init(params), step=0)
    assert lowered.as_text().count("dot_general") == 2 * 5 * 3  # two shapes, five iterations, three products
    named = re.findall(r'"[^"]*newton_schulz[^"]*dot_general', lowered.as_text(debug_info=True))
    assert len(named) == 3  # by this name they are counted in whole programs; the places in the source are three


# -------------------------------------------------------------------------------------------------- what it costs

LARGE = {"DCHK": (128, 3, 4, 32), "HKD": (4, 32, 128), "DF": (128, 512), "FD": (512, 128)}


def cost(mesh, **options):
    """(FLOPs of the compiled update over the analytic count, all devices; bytes received by kind over the weights')."""
    with mesh.activate():
        muon = scale_by_muon(mesh=mesh, **options)
        zeros = lambda axis_names, shape: jnp.zeros((8, *shape), out_sharding=mesh.weight_spec("N" + axis_names))
        params = jax.eval_shape(lambda: {x: nnx.Param(zeros(x, shape), axis_names=x) for x, shape in LARGE.items()})
        state = jax.eval_shape(muon.init, params)
        placed = lambda tree: jax.tree.map(with_sharding, tree)
        program = jax.jit(muon.update).lower(placed(params), placed(state), step=0).compile()
    counted = count_muon_flops(params, split=options.get("split", "projections"))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    received = {kind: size / whole for kind, size in received_bytes(program.as_text()).items()}
    return program.cost_analysis()["flops"] * mesh.num_devices / counted, received


def received_bytes(text):
    """Bytes of the results of each kind of collective in a compiled program, for one device."""
    found = {}
    for shapes, kind in re.findall(r"= (.*?) (all-[a-z-]+|reduce-scatter|collective-[a-z]+)(?:-start)?\(", text):
        for bits, sizes in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes):
            count = math.prod(int(size) for size in sizes.split(",") if size)
            found[kind] = found.get(kind, 0) + int(bits) // 8 * count
    return found


@pytest.mark.parametrize("options", [{}, {"split": "heads"}], ids=str)
def test_alone_it_computes_what_is_counted(options):
    ratio, received = cost(ALONE, **options)
    assert ratio == pytest.approx(1, abs=0.1)
    assert not received


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in LAYOUTS), ("all three", {"split": "heads"})])
def test_spread_it_computes_no_more_and_gathers_no_more_than_the_update(name, options):
    """A device that orthogonalised what another does would show in the first, a gathered stack in the second."""
    mesh = LAYOUTS[name]
    ratio, received = cost(mesh, **options)
    assert ratio == pytest.approx(1, abs=0.1)
    data, fsdp, tensor = mesh.shape
    kept = 1 / (fsdp * tensor)  # of the weights, by each device
    axes = (fsdp > 1) + (tensor > 1)
    assert received.pop("all-gather", 0) <= (kept if data > 1 else 0)
    assert received.pop("all-to-all", 0) <= 2 * axes * kept
    assert not received


def test_what_normuon_adds_is_reductions_of_neurons():
    ratio, received = cost(LAYOUTS["all three"], normuon_beta2=0.9, row_normalize=True)
    assert ratio == pytest.approx(1, abs=0.1)
    assert received.pop("all-reduce") < 0.01
    assert received.keys() == {"all-gather", "all-to-all"}
