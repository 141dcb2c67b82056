"""The chunked, sharded loss against all logits at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import NamedSharding

from gptjax.core.constants import IGNORE_INDEX
from gptjax.model.layers import apply_softcap
from gptjax.model.loss import LossOptions, OutputHead, next_token_loss, split_into_chunks
from gptjax.sharding.mesh import MeshConfig

B, T, D, V, PADDED = 4, 6, 16, 50, 128
HIDDEN = jax.random.normal(jax.random.key(0), (B, T, D))
WEIGHT = jax.random.normal(jax.random.key(1), (PADDED, D))
BIAS = jax.random.normal(jax.random.key(3), (PADDED,))
TARGETS = jax.random.randint(jax.random.key(2), (B, T), 0, V).at[1, 2:].set(IGNORE_INDEX)


def sum_nats(hidden: Array, head: OutputHead, *, targets: Array = TARGETS, **options: Any) -> Array:
    settings = {"vocab_size": V, "chunk_tokens": 5, "dtype": "float32", "mesh": MeshConfig()} | options
    return next_token_loss(hidden, head, targets, options=LossOptions(**settings))[0]


def reference(
    hidden: Array,
    head: OutputHead,
    *,
    targets: Array = TARGETS,
    softcap: tuple[float, str] | None = None,
    z_loss: float = 0.0,
) -> Array:
    """All logits of the true vocabulary at once."""
    logits = hidden @ head.weight[:V].T + (0 if head.bias is None else head.bias[None, None, :V])
    if softcap is not None:
        cap, curve = softcap
        logits = cap * jnp.tanh(logits / cap) if curve == "tanh" else logits / jnp.sqrt(1 + (logits / cap) ** 2)
    scored = targets != IGNORE_INDEX
    log_z = jax.nn.logsumexp(logits, axis=2)
    label = jnp.take_along_axis(logits, jnp.where(scored, targets, 0)[..., None], axis=2)[..., 0]
    return jnp.sum((log_z - label + z_loss * log_z**2) * scored)


def assert_equal(actual: Any, expected: Any, *, rtol: float = 1e-4) -> None:
    for left, right in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(jax.device_get(left), right, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1000, 24, 7, 1])
def test_loss_and_gradients_do_not_depend_on_the_chunk(chunk_tokens: int) -> None:
    head = OutputHead(WEIGHT)
    expected = jax.jit(jax.value_and_grad(reference, (0, 1)))(HIDDEN, head)
    run = partial(sum_nats, chunk_tokens=chunk_tokens)
    nats, gradients = jax.jit(jax.value_and_grad(run, (0, 1)))(HIDDEN, head)
    np.testing.assert_allclose(nats, expected[0], rtol=1e-6)
    assert_equal(gradients, expected[1])
    np.testing.assert_allclose(jax.jit(run)(HIDDEN, head), expected[0], rtol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [64, 512])
def test_bfloat16_gradients_compile_in_full_optimization(chunk_tokens: int) -> None:
    """XLA on CPU cannot multiply bfloat16 matrices if the transposition of the result moves into their product.

    Other tests compile without optimizations, where nothing moves.
    """
    hidden_key, weight_key, target_key = jax.random.split(jax.random.key(0), 3)
    hidden, targets = jax.random.normal(hidden_key, (8, 64, 64)), jax.random.randint(target_key, (8, 64), 0, 256)
    head = OutputHead(jax.random.normal(weight_key, (256, 64)))
    run = partial(sum_nats, targets=targets, dtype="bfloat16", chunk_tokens=chunk_tokens, vocab_size=256)
    options = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
    compiled = jax.jit(jax.value_and_grad(run, (0, 1))).lower(hidden, head).compile(options)
    nats, gradients = compiled(hidden, head)
    exact = jax.jit(jax.value_and_grad(partial(run, dtype="float32"), (0, 1)))(hidden, head)
    np.testing.assert_allclose(nats, exact[0], rtol=1e-2)
    for found, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact[1]), strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.02 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("curve", ["tanh", "sqrt"])
def test_softcap_bias_and_z_loss_equal_the_formula(curve: str) -> None:
    """z-loss (arXiv:2204.02311) is only in the gradient: reported losses stay comparable."""
    head = OutputHead(WEIGHT, BIAS)
    run = partial(sum_nats, logit_softcap=3.0, logit_softcap_curve=curve, z_loss=0.1)
    nats, gradients = jax.jit(jax.value_and_grad(run, (0, 1)))(HIDDEN, head)
    expected = partial(reference, softcap=(3.0, curve))
    np.testing.assert_allclose(nats, jax.jit(expected)(HIDDEN, head), rtol=1e-6)
    assert_equal(gradients, jax.jit(jax.grad(partial(expected, z_loss=0.1), (0, 1)))(HIDDEN, head))
    assert abs(float(nats - jax.jit(reference)(HIDDEN, head))) > 1
    without = jax.jit(jax.grad(expected))(HIDDEN, head)
    assert float(jnp.abs(gradients[0] - without).max()) > 1e-2


def test_softcap_gradient_is_its_slope() -> None:
    """1 - tanh² and (1 + z²)^(-3/2), by hand."""
    z = jnp.linspace(-9.0, 9.0, 101)
    for curve, slope in (("tanh", 1 - np.tanh(z / 3) ** 2), ("sqrt", (1 + np.array(z / 3) ** 2) ** -1.5)):
        gradient = jax.vmap(jax.grad(partial(apply_softcap, cap=3.0, curve=curve)))(z)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_padding_of_the_vocabulary_takes_no_part() -> None:
    large = WEIGHT.at[V:].set(100.0)
    run = jax.jit(jax.value_and_grad(lambda weight: sum_nats(HIDDEN, OutputHead(weight))))
    (expected, _), (nats, gradient) = run(WEIGHT), run(large)
    np.testing.assert_array_equal(nats, expected)
    assert float(jnp.abs(gradient[V:]).max()) == 0.0


def test_nothing_scored_gives_zero_loss_and_gradient() -> None:
    ignored = jnp.full_like(TARGETS, IGNORE_INDEX)
    run = jax.jit(jax.value_and_grad(partial(sum_nats, targets=ignored)))
    nats, gradient = run(HIDDEN, OutputHead(WEIGHT))
    assert (float(nats), float(jnp.abs(gradient).max())) == (0.0, 0.0)


def test_scored_targets_are_counted() -> None:
    options = LossOptions(vocab_size=V, chunk_tokens=99, dtype="float32", mesh=MeshConfig())
    count = jax.jit(lambda: next_token_loss(HIDDEN, OutputHead(WEIGHT), TARGETS, options=options)[1])
    assert count() == B * T - (T - 2)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=4), MeshConfig(fsdp=4), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str
)
def test_every_mesh_gives_the_same_loss_and_gradients(mesh: MeshConfig) -> None:
    head = OutputHead(WEIGHT, BIAS)
    expected = jax.jit(jax.value_and_grad(reference, (0, 1)))(HIDDEN, head)
    with mesh.activate():
        place = lambda x, spec: jax.device_put(x, NamedSharding(jax.sharding.get_mesh(), spec))
        hidden, targets = (place(x, mesh.activation_spec(names)) for x, names in ((HIDDEN, "BTD"), (TARGETS, "BT")))
        placed = OutputHead(place(WEIGHT, mesh.weight_spec("VD")), place(BIAS, mesh.weight_spec("V")))
        run = jax.jit(jax.value_and_grad(partial(sum_nats, targets=targets, mesh=mesh), (0, 1)))
        nats, gradients = run(hidden, placed)
    assert gradients[1].weight.sharding.is_equivalent_to(placed.weight.sharding, 2)
    assert gradients[1].bias.sharding.is_equivalent_to(placed.bias.sharding, 1)
    np.testing.assert_allclose(nats, expected[0], rtol=1e-6)
    assert_equal(gradients, expected[1])


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_chunks_without_a_target_are_skipped(mesh: MeshConfig) -> None:
    """One row has all targets, one three, two none: loss and gradients are those of all logits."""
    sparse = TARGETS.at[1].set(jnp.where(jnp.arange(T) % 2, TARGETS[0], IGNORE_INDEX)).at[2:].set(IGNORE_INDEX)
    options = LossOptions(vocab_size=V, chunk_tokens=5, dtype="float32", mesh=MeshConfig(), skip_unscored=True)
    assert int(split_into_chunks(options, sparse, HIDDEN).number) == 2
    head = OutputHead(WEIGHT, BIAS)
    expected = jax.jit(jax.value_and_grad(partial(reference, targets=sparse), (0, 1)))(HIDDEN, head)
    with mesh.activate():
        place = lambda x, spec: x if spec is None else jax.device_put(x, NamedSharding(jax.sharding.get_mesh(), spec))
        hidden, targets = (place(x, mesh.activation_spec(names)) for x, names in ((HIDDEN, "BTD"), (sparse, "BT")))
        placed = OutputHead(place(WEIGHT, mesh.weight_spec("VD")), place(BIAS, mesh.weight_spec("V")))
        run = partial(sum_nats, targets=targets, mesh=mesh, skip_unscored=True)
        nats, gradients = jax.jit(jax.value_and_grad(run, (0, 1)))(hidden, placed)
        alone = jax.jit(run)(hidden, placed)
    np.testing.assert_allclose([nats, alone], expected[0], rtol=1e-6)
    assert_equal(gradients, expected[1])


def test_bfloat16_operands_stay_close() -> None:
    head = OutputHead(WEIGHT)
    found = jax.jit(partial(sum_nats, dtype="bfloat16"))(HIDDEN, head)
    np.testing.assert_allclose(found, jax.jit(reference)(HIDDEN, head), rtol=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_a_single_chunk_in_16_bits_equal_those_of_float32(dtype: str) -> None:
    """A loop of one round is unrolled, and XLA may then turn a product into a form that CPUs lack."""
    hidden, weight = (
        jax.random.normal(jax.random.key(0), (2, 64, 128)),
        0.1 * jax.random.normal(jax.random.key(1), (128, 128)),
    )
    targets = jnp.arange(128).reshape(2, 64) % 65

    def sum_nats(hidden: Array, weight: Array, dtype: str) -> Array:
        options = LossOptions(vocab_size=65, chunk_tokens=8192, dtype=dtype, mesh=MeshConfig())
        return next_token_loss(hidden, OutputHead(weight), targets, options=options)[0]

    gradients = jax.jit(jax.grad(sum_nats, argnums=(0, 1)), static_argnums=2)
    for found, wanted in zip(gradients(hidden, weight, dtype), gradients(hidden, weight, "float32"), strict=True):
        assert jnp.abs(found - wanted).max() < 0.02 * jnp.abs(wanted).max()
