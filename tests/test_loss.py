import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax.core.constants import IGNORE_INDEX
from gptjax.model.loss import next_token_loss
from gptjax.sharding.mesh import MeshConfig

B, T, D, V, PADDED = 4, 6, 16, 50, 128


def inputs():
    hidden = jax.random.normal(jax.random.key(0), (B, T, D))
    head = jax.random.normal(jax.random.key(1), (PADDED, D))
    targets = jax.random.randint(jax.random.key(2), (B, T), 0, V).at[1, 2:].set(IGNORE_INDEX)
    return hidden, head, targets


BIAS = jax.random.normal(jax.random.key(3), (PADDED,))


def reference(hidden, head, targets, logit_softcap=None, bias=None):
    """Everything at once: all logits, the true vocabulary only."""
    logits = hidden @ head[:V].T + (0 if bias is None else bias[None, None, :V])
    log_p = jax.nn.log_softmax(logits if softcap is None else softcap * jnp.tanh(logits / softcap))
    picked = jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return -(picked * (targets != IGNORE_INDEX)).sum()


def ours(hidden, head, targets, *, bias=None, chunk_tokens=1000, dtype="float32", logit_softcap=None, mesh=None):
    settings = {"bias": bias, "vocab_size": V, "chunk_tokens": chunk_tokens, "dtype": dtype, "logit_softcap": softcap}
    return next_token_loss(hidden, head, targets, **settings, mesh=mesh or MeshConfig())


@pytest.mark.parametrize("chunk_tokens", [1000, 24, 7, 1])
def test_loss_and_gradients_equal_the_whole_formula_whatever_the_chunk(chunk_tokens):
    hidden, head, targets = inputs()
    wanted, wanted_gradients = jax.value_and_grad(reference, (0, 1))(hidden, head, targets)
    run = jax.jit(jax.value_and_grad(lambda *a: ours(*a, targets, chunk_tokens=chunk_tokens), (0, 1), has_aux=True))
    (nats, count), gradients = run(hidden, head)
    assert count == B * T - (T - 2)
    np.testing.assert_allclose(nats, wanted, rtol=1e-6)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours(hidden, head, targets, chunk_tokens=chunk_tokens)[0], wanted, rtol=1e-6)


def test_capped_logits_with_a_bias_are_those_of_the_whole_formula():
    arrays, wrt = (*inputs(), BIAS), (0, 1, 3)
    wanted = lambda cap: jax.value_and_grad(lambda h, w, y, b: reference(h, w, y, cap, b), wrt)(*arrays)
    capped, free = wanted(3.0), wanted(None)
    run = lambda h, w, y, b: ours(h, w, y, bias=b, logit_softcap=3.0, chunk_tokens=5)[0]
    nats, gradients = jax.value_and_grad(run, wrt)(*arrays)
    assert abs(float(capped[0] - free[0])) > 1
    np.testing.assert_allclose(nats, capped[0], rtol=1e-6)
    for got, want in zip(gradients, capped[1], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_root_caps_logits_and_z_loss_pulls_at_the_partition():
    """z-loss (arXiv:2204.02311) is in the gradient alone: what is reported stays comparable."""
    hidden, head, targets = inputs()
    scored = targets != IGNORE_INDEX

    def whole(hidden, head, z_loss):
        logits = jnp.einsum("btd,vd->btv", hidden, head[:V], preferred_element_type=jnp.float32)
        logits = logits / jnp.sqrt(1 + (logits / 3.0) ** 2)
        log_z = jax.nn.logsumexp(logits, axis=2)
        label = jnp.take_along_axis(logits, jnp.where(scored, targets, 0)[..., None], axis=2)[..., 0]
        return jnp.sum((log_z - label + z_loss * log_z**2) * scored)

    settings = {
        "vocab_size": V,
        "chunk_tokens": 5,
        "dtype": "float32",
        "logit_softcap": 3.0,
        "logit_softcap_curve": "sqrt",
    }
    run = lambda h, w: next_token_loss(h, w, targets, **settings, z_loss=0.1, mesh=MeshConfig())[0]
    nats, gradients = jax.value_and_grad(run, (0, 1))(hidden, head)
    np.testing.assert_allclose(nats, whole(hidden, head, 0.0), rtol=1e-6)
    for got, want in zip(gradients, jax.grad(whole, (0, 1))(hidden, head, 0.1), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    plain = jax.grad(whole)(hidden, head, 0.0)
    assert float(jnp.abs(gradients[0] - plain).max()) > 1e-2


def test_rows_that_pad_the_vocabulary_take_no_part():
    hidden, head, targets = inputs()
    louder = head.at[V:].set(100.0)
    np.testing.assert_array_equal(ours(hidden, louder, targets)[0], ours(hidden, head, targets)[0])
    gradient = jax.grad(lambda head: ours(hidden, head, targets)[0])(louder)
    assert float(jnp.abs(gradient[V:]).max()) == 0.0


def test_nothing_scored_is_nothing_lost():
    hidden, head, targets = inputs()
    run = jax.value_and_grad(lambda h: ours(h, head, jnp.full_like(targets, IGNORE_INDEX)), has_aux=True)
    (nats, count), gradient = run(hidden)
    assert (float(nats), int(count), float(jnp.abs(gradient).max())) == (0.0, 0, 0.0)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=4), MeshConfig(fsdp=4), MeshConfig(tensor=8), MeshConfig(data=2, fsdp=2, tensor=2)]
)
def test_every_layout_gives_the_same_loss_and_gradients(mesh):
    arrays = (*inputs(), BIAS)
    wanted_of = lambda h, w, y, b: reference(h, w, y, bias=b)
    wanted, wanted_gradients = jax.value_and_grad(wanted_of, (0, 1, 3))(*arrays)
    with mesh.activate():
        specs = (mesh.activation_spec("BTD"), mesh.weight_spec("VD"), mesh.activation_spec("BT"), mesh.weight_spec("V"))
        mesh = jax.sharding.get_mesh()
        hidden, head, targets, bias = (
            jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)
        )
        nats_of = lambda h, w, b: ours(h, w, targets, bias=b, chunk_tokens=5, mesh=mesh)[0]
        nats, gradients = jax.jit(jax.value_and_grad(nats_of, (0, 1, 2)))(hidden, head, bias)
        assert gradients[1].sharding.is_equivalent_to(head.sharding, 2)
        assert gradients[2].sharding.is_equivalent_to(bias.sharding, 1)
    np.testing.assert_allclose(nats, wanted, rtol=1e-6)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(jax.device_get(got), want, rtol=1e-4, atol=1e-5)


def test_sixteen_bit_operands_stay_close():
    hidden, head, targets = inputs()
    np.testing.assert_allclose(
        ours(hidden, head, targets, dtype="bfloat16")[0], reference(hidden, head, targets), rtol=0.01
    )
