import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gptjax.errors import UserError
from gptjax.gpt_config import GPTConfig
from gptjax.layout import Layout
from gptjax.model import GPT
from gptjax.optim import AdamW, Muon, learning_rate, where_role
from gptjax.schedules import Constant, Linear

CONFIG = GPTConfig(num_layers=2, width=16, num_heads=2, context=8, vocab_size=20, dtype="float32", tied=False)


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: GPT(CONFIG, key=jax.random.key(0)))()


def gradients(model, seed=1):
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])


def updated(optimizer, model, grads, *, step=0, steps=10):
    chain = optimizer.build(steps=steps, layout=Layout())
    updates, state = jax.jit(chain.update)(grads, chain.init(model), model, step=jnp.int32(step))
    return updates, state


def by_name(tree):
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_adamw_equals_optax(model):
    grads = gradients(model)
    config = AdamW(learning_rate=0.01, schedule=Constant(), weight_decay=0.1, clip_norm=1.0)
    got, _ = updated(config, model, grads)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(0.01, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=lambda t: where_role(t, "vector", inside=False)),
    )
    wanted, _ = theirs.update(grads, theirs.init(model), model)
    for name, value in by_name(wanted).items():
        np.testing.assert_allclose(by_name(got)[name], value, rtol=1e-5, atol=1e-8)


def test_only_matrices_and_tables_decay(model):
    nothing = jax.tree.map(jnp.zeros_like, model)
    got, _ = updated(AdamW(learning_rate=0.01, schedule=Constant(), weight_decay=0.5), model, nothing)
    weights = by_name(model)
    for name, update in by_name(got).items():
        vector = "norm" in name or "bias" in name
        np.testing.assert_allclose(update, 0.0 if vector else -0.005 * weights[name], rtol=1e-5)


def test_groups_have_their_own_rates(model):
    grads = gradients(model)
    plain = AdamW(learning_rate=0.01, schedule=Constant(), weight_decay=0.0)
    other = AdamW(
        learning_rate=0.01, schedule=Constant(), weight_decay=0.0, embedding_rate=2.0, head_rate=3.0, vector_rate=5.0
    )
    one, two = by_name(updated(plain, model, grads)[0]), by_name(updated(other, model, grads)[0])
    ratio = {name: float(np.median(two[name] / one[name])) for name in one}
    assert ratio[".tokens.value"] == pytest.approx(2)
    assert ratio[".positions.value"] == pytest.approx(2)
    assert ratio[".head.value"] == pytest.approx(3)
    assert ratio[".norm.scale.value"] == pytest.approx(5)
    assert ratio[".blocks.mlp.up.value"] == pytest.approx(1)


def test_muon_takes_the_blocks_matrices_and_adam_the_rest(model):
    grads = gradients(model)
    config = Muon(
        learning_rate=0.5,
        schedule=Constant(),
        embedding_learning_rate=0.1,
        head_learning_rate=0.2,
        vector_learning_rate=0.3,
        dtype="float32",
    )
    got, state = updated(config, model, grads)
    updates = by_name(got)
    for name, rate in {".tokens.value": 0.1, ".head.value": 0.2, ".norm.scale.value": 0.3}.items():
        np.testing.assert_allclose(np.abs(updates[name]), rate, rtol=1e-3)  # Adam's first step has the size of its rate
    up = np.linalg.svd(updates[".blocks.mlp.up.value"][0] / 0.5 / 2, compute_uv=False)  # √(F / D) = 2
    assert up.min() > 0.6
    assert up.max() < 1.3
    momentum = {name for name in by_name(state["muon"]) if "momentum" in name}
    assert len(momentum) == 4
    assert all("blocks" in name and "bias" not in name for name in momentum)
    assert not any("mlp.up.value" in name for name in by_name(state["adam"]))


def test_gradients_are_clipped_together(model):
    grads = gradients(model)
    factor = 3.0 / float(optax.tree.norm(grads))
    scaled = jax.tree.map(lambda g: g * factor, grads)
    config = Muon(schedule=Constant(), clip_norm=3.0, epsilon=1.0)  # a large epsilon makes Adam feel the size
    clipped = by_name(updated(config, model, grads)[0])
    for name, value in by_name(updated(config, model, scaled)[0]).items():
        np.testing.assert_allclose(clipped[name], value, rtol=1e-3, atol=1e-6)


def test_the_step_alone_decides_the_learning_rate(model):
    grads = gradients(model)
    config = AdamW(learning_rate=0.01, schedule=Linear(warmup=0, floor=0.0), weight_decay=0.0)
    start, middle = updated(config, model, grads, step=0)[0], updated(config, model, grads, step=5)[0]
    ratio = float(learning_rate(config, 5, steps=10) / learning_rate(config, 0, steps=10))
    assert ratio == pytest.approx(0.5)
    for name, value in by_name(start).items():
        np.testing.assert_allclose(by_name(middle)[name], ratio * value, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: AdamW(learning_rate=0.0), "optimizer.learning_rate"),
        (lambda: AdamW(beta2=1.0), "optimizer.beta2"),
        (lambda: Muon(weight_decay=-1.0), "optimizer.weight_decay"),
        (lambda: Muon(dtype="float16"), "optimizer.dtype"),
        (lambda: Muon(iterations=0), "optimizer.iterations"),
        (lambda: AdamW(clip_norm=0.0), "optimizer.clip_norm"),
    ],
)
def test_bad_values_are_named(make, field):
    with pytest.raises(UserError, match=field):
        make()


def test_variables_keep_their_letters(model):
    updates, _ = updated(Muon(), model, gradients(model))
    marks = jax.tree.leaves(updates, is_leaf=lambda node: isinstance(node, nnx.Variable))
    assert {mark.letters for mark in marks} == {"VD", "TD", "DV", "DCHK", "HKD", "DF", "FD", "D", "CHK", "F"}
