"""Muon's updates against optax and against numpy, on one device and on eight; and what they cost."""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from gptjax.optim.muon import Muon, MuonState, scale_by_muon
from gptjax.optim.orthogonalize import POLAR_EXPRESS, QUINTIC, Coefficients, count_muon_flops, newton_schulz
from gptjax.sharding.axes import matrix_axes
from gptjax.sharding.mesh import MeshConfig, reshard
from gptjax.training.state import with_sharding

SHAPES = {"DCHK": (16, 3, 4, 4), "HKD": (4, 4, 16), "DF": (16, 48), "FD": (48, 16)}
LAYERS, STEPS = 3, 3
SINGLE = MeshConfig()
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(fsdp=8),
    "fsdp × tensor": MeshConfig(fsdp=2, tensor=4),
    "all three": MeshConfig(data=2, fsdp=2, tensor=2),
}


@dataclass(frozen=True)
class Rising:
    """Half of the step."""

    def __call__(self, step: Any, *, steps: int) -> jax.Array:
        return 0.5 * jnp.asarray(step, jnp.float32)


CONFIGS = {
    "defaults": Muon(ns_dtype="float32"),
    "no nesterov, rms": Muon(
        ns_dtype="float32",
        nesterov=False,
        ns_coefficients=(2.0, -1.5, 0.5),
        ns_steps=3,
        momentum=0.8,
        update_scale="rms",
    ),
    "polar express": Muon(ns_dtype="float32", ns_coefficients="polar_express", ns_steps=6),
    "row_normalize": Muon(ns_dtype="float32", row_normalize=True),
    "normuon": Muon(ns_dtype="float32", normuon_beta2=0.9),
    "all": Muon(
        ns_dtype="float32",
        ns_coefficients="polar_express",
        update_scale="rms",
        matrix_split="heads",
        row_normalize=True,
        normuon_beta2=0.9,
        momentum_schedule=Rising(),
    ),
}
OPTAX = {
    "defaults": {},
    "no nesterov, rms": {
        "nesterov": False,
        "ns_coeffs": (2.0, -1.5, 0.5),
        "ns_steps": 3,
        "beta": 0.8,
        "consistent_rms": 0.2,
    },
    # optax divides by the norm alone, so Polar Express's margin of 1.02 becomes part of the first coefficients.
    "polar express": {
        "ns_coeffs": (
            tuple(c / 1.02**power for c, power in zip(POLAR_EXPRESS[0], (1, 3, 5), strict=True)),
            *POLAR_EXPRESS[1:],
            POLAR_EXPRESS[-1],
        ),
        "ns_steps": 6,
    },
}


def draw_params(seed: int, mesh: MeshConfig = SINGLE) -> dict[str, nnx.Param]:
    """Normal random numbers, sharded by their axis names."""
    rng, devices = np.random.default_rng(seed), mesh.make_mesh()
    params = {}
    for axis_names, shape in SHAPES.items():
        array = rng.standard_normal((LAYERS, *shape)).astype(np.float32)
        spec = mesh.weight_spec("N" + axis_names)
        sharding = None if devices is None or spec is None else NamedSharding(devices, spec)
        params[axis_names] = nnx.Param(jax.device_put(array, sharding), axis_names=axis_names)
    return params


def to_numpy(tree: dict[str, nnx.Param]) -> dict[str, np.ndarray]:
    return {axis_names: np.asarray(jax.device_get(param[...])) for axis_names, param in tree.items()}


@functools.cache
def run_steps(name: str, mesh: MeshConfig = SINGLE) -> tuple[list[dict[str, nnx.Param]], MuonState]:
    """The updates of some steps of the config of this name, and the final state."""
    with mesh.activate():
        muon = scale_by_muon(CONFIGS[name], steps=STEPS, mesh=mesh)
        state = jax.jit(muon.init)(draw_params(0, mesh))
        update, found = jax.jit(muon.update), []
        for step in range(STEPS):
            updates, state = update(draw_params(step + 1, mesh), state, step=step)
            found.append(updates)
    return found, state


@pytest.mark.parametrize("name", OPTAX)
def test_updates_over_several_steps_equal_optax(name: str):
    def dimensions(axis_names: str) -> optax.contrib.MuonDimensionNumbers:
        inputs, outputs = matrix_axes(axis_names)
        return optax.contrib.MuonDimensionNumbers(tuple(i + 1 for i in inputs), tuple(i + 1 for i in outputs))

    numbers = {axis_names: dimensions(axis_names) for axis_names in SHAPES}
    muon = optax.contrib.muon(1.0, muon_weight_dimension_numbers=numbers, **OPTAX[name])
    params = to_numpy(draw_params(0))
    state, update = muon.init(params), jax.jit(muon.update)
    for step, got in enumerate(run_steps(name)[0]):
        wanted, state = update(to_numpy(draw_params(step + 1)), state, params)
        for axis_names in SHAPES:
            np.testing.assert_allclose(got[axis_names][...], -wanted[axis_names], rtol=1e-5, atol=1e-5)


def split_matrices(axis_names: str, array: np.ndarray, *, heads: bool) -> list[np.ndarray]:
    """The matrices of one layer's parameter as (in, out), cut by hand."""
    if axis_names == "DCHK":
        cut = [array[:, c, h] for c in range(3) for h in range(4)]
        return cut if heads else [array[:, c].reshape(16, 16) for c in range(3)]
    return [array.reshape(-1, array.shape[-1])]


def update_matrix(config: Muon, gradients: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The updates of one matrix by Muon's definition, in float64."""
    coefficients, polar = config.ns_coefficients, config.ns_coefficients == "polar_express"
    named = {"quintic": (QUINTIC,), "polar_express": POLAR_EXPRESS}
    table = named[coefficients] if isinstance(coefficients, str) else (coefficients,)
    average, product, second = np.zeros_like(gradients[0]), 1.0, 0.0
    inputs, outputs = average.shape
    for step, gradient in enumerate(gradients):
        momentum = float(config.momentum_at(step, steps=STEPS))
        average, product = momentum * average + (1 - momentum) * gradient, product * momentum
        x = average / (1 - product)
        if config.nesterov:
            ahead = average / (1 - product * momentum)
            x = momentum * ahead + (1 - momentum) * gradient / (1 - product)
        if config.row_normalize:
            x = x / np.linalg.norm(x, axis=0)
        x = x / (np.linalg.norm(x) * (1.02 if polar else 1.0))
        for i in range(config.ns_steps):
            a, b, c = table[min(i, len(table) - 1)]
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        if config.normuon_beta2 is not None:
            second = config.normuon_beta2 * second + (1 - config.normuon_beta2) * (x**2).mean(axis=0)
            even = x / np.sqrt(second)
            x = even * np.linalg.norm(x) / np.linalg.norm(even)
        rms = config.update_scale == "rms"
        yield x * (0.2 * max(inputs, outputs) ** 0.5 if rms else max(1, outputs / inputs) ** 0.5)


@pytest.mark.parametrize("name", CONFIGS)
def test_updates_with_every_option_equal_numpy(name: str):
    config = CONFIGS[name]
    split = functools.partial(split_matrices, heads=config.matrix_split == "heads")
    gradients = [to_numpy(draw_params(step + 1)) for step in range(STEPS)]
    updates = [to_numpy(update) for update in run_steps(name)[0]]
    for axis_names in SHAPES:
        for layer in range(LAYERS):
            histories = zip(
                *[split(axis_names, g[axis_names][layer].astype(np.float64)) for g in gradients], strict=True
            )
            found = zip(*[split(axis_names, update[axis_names][layer]) for update in updates], strict=True)
            for history, got in zip(histories, found, strict=True):
                np.testing.assert_allclose(got, list(update_matrix(config, list(history))), atol=2e-5)


@pytest.mark.parametrize(("coefficients", "low", "high"), [("quintic", 0.6, 1.3), ("polar_express", 0.8, 1.2)])
def test_newton_schulz_brings_singular_values_near_one(coefficients: Coefficients, low: float, high: float):
    x = jax.random.normal(jax.random.key(0), (2, 32, 64))
    singular = np.linalg.svd(np.asarray(newton_schulz(x, ns_coefficients=coefficients)), compute_uv=False)
    assert singular.min() > low
    assert singular.max() < high


def test_zero_gradient_gives_zero_update():
    zeros = {"DF": nnx.Param(jnp.zeros((1, 16, 48)), axis_names="DF")}
    muon = scale_by_muon(Muon(normuon_beta2=0.9, row_normalize=True), steps=1, mesh=SINGLE)
    update, _ = jax.jit(muon.update)(zeros, muon.init(zeros), step=0)
    np.testing.assert_array_equal(update["DF"][...], 0.0)


def test_state_is_float32_for_bfloat16_products():
    muon = scale_by_muon(Muon(normuon_beta2=0.9), steps=1, mesh=SINGLE)
    params = draw_params(0)
    _, state = jax.eval_shape(lambda: muon.update(params, muon.init(params), step=0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}
    shapes = {axis_names: param.shape[1:] for axis_names, param in state.second_moment.items()}
    assert shapes == {"DCHK": (1, 3, 4, 4), "HKD": (1, 1, 16), "DF": (1, 48), "FD": (1, 16)}


@pytest.mark.parametrize(
    ("mesh_name", "name"),
    [
        ("data", "defaults"),
        ("fsdp", "defaults"),
        ("fsdp × tensor", "all"),
        ("all three", "defaults"),
        ("all three", "all"),
    ],
)
def test_sharded_updates_equal_those_of_one_device(mesh_name: str, name: str):
    mesh = MESHES[mesh_name]
    updates, state = run_steps(name, mesh)
    for got, wanted in zip(updates, run_steps(name)[0], strict=True):
        for axis_names in SHAPES:
            np.testing.assert_allclose(to_numpy(got)[axis_names], wanted[axis_names][...], rtol=1e-4, atol=1e-5)
    for axis_names in SHAPES:
        spec = mesh.weight_spec("N" + axis_names)
        assert spec is not None
        assert updates[-1][axis_names][...].sharding.spec == spec
        assert state.momentum[axis_names][...].sharding.spec == spec
        if state.second_moment is not None:
            inputs = {1 + axis for axis in matrix_axes(axis_names)[0]}
            wanted = tuple(None if axis in inputs else spec[axis] for axis in range(len(spec)))
            assert tuple(state.second_moment[axis_names][...].sharding.spec) == wanted


@pytest.mark.parametrize("mesh", [SINGLE, MESHES["all three"]], ids=["single", "all three"])
def test_unstacked_parameter_equals_a_stack_of_one(mesh: MeshConfig):
    x = np.random.default_rng(0).standard_normal((16, 48)).astype(np.float32)
    found = []
    with mesh.activate():
        muon = scale_by_muon(CONFIGS["normuon"], steps=1, mesh=mesh)
        for array, axis_names in ((x, "DF"), (x[None], "NDF")):
            params = {"w": nnx.Param(reshard(jnp.asarray(array), mesh.weight_spec(axis_names)), axis_names="DF")}
            updates, _ = jax.jit(muon.update)(params, muon.init(params), step=0)
            found.append(np.asarray(jax.device_get(updates["w"][...])))
    np.testing.assert_allclose(found[0], found[1][0], atol=1e-5)


def test_matrices_of_one_shape_share_their_products():
    muon = scale_by_muon(CONFIGS["defaults"], steps=1, mesh=SINGLE)
    params = draw_params(0)
    lowered = jax.jit(muon.update).lower(params, muon.init(params), step=0)
    assert lowered.as_text().count("dot_general") == 2 * 5 * 3  # two shapes, five iterations, three products
    named = re.findall(r'"[^"]*newton_schulz[^"]*dot_general', lowered.as_text(debug_info=True))
    assert len(named) == 3  # benchmarks count products by this name; it occurs at three places of the source


LARGE = {"DCHK": (128, 3, 4, 32), "HKD": (4, 32, 128), "DF": (128, 512), "FD": (512, 128)}


def measure_cost(mesh: MeshConfig, config: Muon) -> tuple[float, dict[str, float]]:
    """(compiled FLOPs over `count_muon_flops`, bytes received by each collective over those of the parameters)."""
    with mesh.activate():
        muon = scale_by_muon(config, steps=1, mesh=mesh)
        zeros = lambda axis_names, shape: jnp.zeros((8, *shape), out_sharding=mesh.weight_spec("N" + axis_names))
        params = jax.eval_shape(lambda: {x: nnx.Param(zeros(x, shape), axis_names=x) for x, shape in LARGE.items()})
        state = jax.eval_shape(muon.init, params)
        params, state = (jax.tree.map(with_sharding, tree) for tree in (params, state))
        program = jax.jit(muon.update).lower(params, state, step=0).compile()
    text, cost = program.as_text(), program.cost_analysis()
    assert text is not None
    assert cost is not None
    counted = count_muon_flops(params, matrix_split=config.matrix_split)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    received = {kind: count / size for kind, count in count_received_bytes(text).items()}
    return cost["flops"] * mesh.num_devices / counted, received


def count_received_bytes(text: str) -> Counter[str]:
    """Bytes of the results of each kind of collective in a compiled program, on one device."""
    found = Counter()
    for shapes, kind in re.findall(r"= (.*?) (all-[a-z-]+|reduce-scatter|collective-[a-z]+)(?:-start)?\(", text):
        for bits, sizes in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes):
            found[kind] += int(bits) // 8 * math.prod(int(size) for size in sizes.split(",") if size)
    return found


@pytest.mark.parametrize("config", [Muon(), Muon(matrix_split="heads")], ids=["projections", "heads"])
def test_single_device_computes_the_counted_flops(config: Muon):
    ratio, received = measure_cost(SINGLE, config)
    assert ratio == pytest.approx(1, abs=0.1)
    assert not received


@pytest.mark.parametrize(
    ("mesh_name", "config"),
    [
        ("data", Muon()),
        ("fsdp", Muon()),
        ("all three", Muon()),
        ("all three", Muon(matrix_split="heads", normuon_beta2=0.9, row_normalize=True)),
    ],
    ids=["data", "fsdp", "all three", "all three, options"],
)
def test_sharded_update_repeats_no_product_and_gathers_only_updates(mesh_name: str, config: Muon):
    """A product computed by two devices would raise the FLOPs; a gathered stack would raise the bytes."""
    mesh = MESHES[mesh_name]
    ratio, received = measure_cost(mesh, config)
    assert ratio == pytest.approx(1, abs=0.1)
    data, fsdp, tensor = mesh.shape
    shard = 1 / (fsdp * tensor)  # of the parameters, on each device
    assert received.pop("all-gather", 0) <= (shard if data > 1 else 0)
    assert received.pop("all-to-all", 0) <= 2 * ((fsdp > 1) + (tensor > 1)) * shard
    if config.normuon_beta2 is not None:
        assert received.pop("all-reduce") < 0.01  # one value for each neuron
    assert not received
