import dataclasses
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gptjax.core.errors import UserError
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT
from gptjax.optim import AdamW, Muon, NamedGroup, ParamGroup, ParamHyperparams
from gptjax.optim.schedules import Constant, Linear, WarmupStableDecay
from gptjax.sharding.axes import weight_role
from gptjax.sharding.mesh import MeshConfig

CONFIG = GPTConfig(
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    context_length=8,
    vocab_size=20,
    tie_embeddings=False,
    compute=ComputeConfig(dtype="float32"),
)


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: GPT(CONFIG, key=jax.random.key(0)))()


def gradients(model, seed=1):
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])


def updated(optimizer, model, grads, *, step=0, steps=10):
    chain = optimizer.build(steps=steps, mesh=MeshConfig())
    updates, state = jax.jit(chain.update)(grads, chain.init(model), model, step=jnp.int32(step))
    return updates, state


def by_name(tree):
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def no_vectors(tree):
    mark = lambda param: param.replace(weight_role(param.axis_names) != "vector")
    return jax.tree.map(mark, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


def test_adamw_equals_optax(model):
    grads = gradients(model)
    config = AdamW(learning_rate=0.01, schedule=Constant(), weight_decay=0.1, clip_norm=1.0)
    got, _ = updated(config, model, grads)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(0.01, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=no_vectors),
    )
    wanted, _ = jax.jit(theirs.update)(grads, jax.jit(theirs.init)(model), model)
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
    other = replace(
        plain,
        embedding=ParamGroup(0.02),
        head=ParamGroup(0.03),
        vector=ParamGroup(0.05),
        named_groups=(NamedGroup("positions", ParamGroup(0.07)),),
    )
    one, two = by_name(updated(plain, model, grads)[0]), by_name(updated(other, model, grads)[0])
    ratio = {name: float(np.median(two[name] / one[name])) for name in one}
    assert ratio[".tokens.value"] == pytest.approx(2)
    assert ratio[".positions.value"] == pytest.approx(7)
    assert ratio[".head.value"] == pytest.approx(3)
    assert ratio[".norm.scale.value"] == pytest.approx(5)
    assert ratio[".blocks.mlp.up.value"] == pytest.approx(1)


def test_a_group_takes_what_it_does_not_say_from_the_optimizer_or_from_its_part():
    config = AdamW(
        learning_rate=0.01,
        beta1=0.8,
        head=ParamGroup(beta2=0.9),
        named_groups=(NamedGroup("mix", ParamGroup(0.5)), NamedGroup("head", ParamGroup(0.2))),
    )
    assert config.rule("blocks.mlp.up", "DF") == ParamHyperparams(0.01, 0.8, 0.95, 1e-8, 0.1)
    assert config.rule("head", "DV") == ParamHyperparams(0.2, 0.8, 0.9, 1e-8, 0.1)
    assert config.rule("blocks.mix", "") == ParamHyperparams(0.5, 0.8, 0.95, 1e-8, 0.0)  # a vector: no decay
    assert config.rule("blocks.remix", "") == ParamHyperparams(0.01, 0.8, 0.95, 1e-8, 0.0)
    assert replace(config, vector=ParamGroup(0.3)).rule("blocks.norm", "D") == ParamHyperparams(
        0.3, 0.8, 0.95, 1e-8, 0.0
    )
    assert replace(config, vector=ParamGroup(weight_decay=0.2)).rule("blocks.norm", "D").weight_decay == 0.2
    muon = Muon(0.03, weight_decay=0.2, adam_learning_rate=0.01, value_embedding=ParamGroup(0.3, weight_decay=0.4))
    assert muon.rule("blocks.mlp.up", "DF")[::4] == (0.03, 0.2)
    assert muon.rule("value_embeddings", "VE")[::4] == (0.3, 0.4)
    assert muon.rule("tokens", "VD")[::4] == (0.01, 0.0)
    assert muon.rule("blocks.sinks", "SHK")[::4] == (0.01, 0.0)


def test_each_group_has_its_own_adam(model):
    """Two steps of one chain against optax's Adam for each group alone."""
    groups = {
        "embedding": ParamGroup(0.1, 0.5, 0.6, 1e-3),
        "head": ParamGroup(0.2, 0.6, 0.7, 1e-4),
        "vector": ParamGroup(0.3, 0.7, 0.8, 1e-5),
    }
    config = Muon(schedule=Constant(), **groups)
    chain, grads = config.build(steps=10, mesh=MeshConfig()), [gradients(model, seed) for seed in (1, 2)]
    update, state = jax.jit(chain.update), chain.init(model)
    for step, gradient in enumerate(grads):
        got, state = update(gradient, state, model, step=step)
    for part, name in {"embedding": ".tokens.value", "head": ".head.value", "vector": ".norm.scale.value"}.items():
        rate, *betas = dataclasses.astuple(groups[part])[:4]
        adam, own = optax.scale_by_adam(*betas), [by_name(gradient)[name] for gradient in grads]
        theirs = adam.init(own[0])
        for gradient in own:
            wanted, theirs = adam.update(gradient, theirs)
        np.testing.assert_allclose(by_name(got)[name], -rate * wanted, rtol=1e-5, atol=1e-8)


def test_a_named_matrix_is_left_to_adam(model):
    config = Muon(schedule=Constant(), named_groups=(NamedGroup("mlp.up", ParamGroup(0.5)),))
    updates, state = updated(config, model, gradients(model))
    np.testing.assert_allclose(np.abs(by_name(updates)[".blocks.mlp.up.value"]), 0.5, rtol=1e-3)
    assert not any("mlp.up.value" in name for name in by_name(state["muon"]))
    assert any("mlp.up.value" in name for name in by_name(state["adam"]))


@pytest.mark.parametrize("make", [AdamW, Muon])
def test_a_name_that_no_weight_has_is_refused(model, make):
    config = make(named_groups=(NamedGroup("mix"),))
    with pytest.raises(UserError, match=r"'mix', but no weight .* one of: .*blocks\.mlp\.up"):
        config.build(steps=10, mesh=MeshConfig()).init(model)


@pytest.mark.parametrize("make", [AdamW, Muon])
def test_a_group_without_a_weight_is_refused(model, make):
    """Of a tied head, say, whose rate would be the embedding's."""
    with pytest.raises(UserError, match=r"value_embedding says learning_rate=0\.1, but .* no value embedding"):
        make(value_embedding=ParamGroup(0.1)).build(steps=10, mesh=MeshConfig()).init(model)
    tied = nnx.eval_shape(lambda: GPT(replace(CONFIG, tie_embeddings=True), key=jax.random.key(0)))
    with pytest.raises(UserError, match=r"optimizer\.head .*tied to the embedding"):
        make(head=ParamGroup(0.1)).build(steps=10, mesh=MeshConfig()).init(tied)
    jax.eval_shape(
        make(embedding=ParamGroup(0.1), vector=ParamGroup(0.1)).build(steps=10, mesh=MeshConfig()).init, tied
    )


def test_momentum_follows_its_schedule_between_low_and_high():
    config = Muon(
        momentum=0.97,
        momentum_min=0.85,
        momentum_schedule=WarmupStableDecay(warmup_steps=3, decay_fraction=0.5, min_ratio=0.5),
    )
    found = [float(config.momentum_at(step, steps=20)) for step in (0, 1, 2, 3, 10, 15, 20)]
    np.testing.assert_allclose(found, [0.88, 0.91, 0.94, 0.97, 0.97, 0.94, 0.91], atol=1e-6)
    assert float(Muon().momentum_at(0, steps=20)) == pytest.approx(0.95)


def test_the_momentum_of_a_step_is_the_one_that_is_used(model):
    """Without Nesterov, a second gradient at momentum 0 is all that counts."""
    config = Muon(
        momentum=0.9,
        momentum_min=0.0,
        momentum_schedule=Linear(decay_steps=1),
        nesterov=False,
        dtype="float32",
        schedule=Constant(),
    )
    chain, grads = config.build(steps=10, mesh=MeshConfig()), [gradients(model, seed) for seed in (1, 2)]
    update, state = jax.jit(chain.update), chain.init(model)
    for step, gradient in enumerate(grads):
        got, state = update(gradient, state, model, step=step)
    wanted, _ = updated(config, model, grads[1])
    np.testing.assert_allclose(by_name(got)[MATRIX], by_name(wanted)[MATRIX], atol=1e-6)


MATRIX = ".blocks.mlp.up.value"
DECAYING = {"learning_rate": 0.5, "schedule": Constant(), "weight_decay": 0.1, "dtype": "float32"}


def decay_of(model, step=0, **changes):
    """What decay alone takes from a matrix and from the tokens' table, and the update of the matrix without it."""
    config, grads = Muon(**(DECAYING | changes)), gradients(model)
    plain, decayed = (
        by_name(updated(c, model, grads, step=step)[0]) for c in (replace(config, weight_decay=0.0), config)
    )
    return decayed[MATRIX] - plain[MATRIX], decayed[".tokens.value"] - plain[".tokens.value"], plain[MATRIX]


def test_decay_of_the_matrices_is_decoupled(model):
    matrix, table, _ = decay_of(model)
    np.testing.assert_allclose(matrix, -0.05 * by_name(model)[MATRIX], atol=1e-6)
    np.testing.assert_array_equal(table, 0.0)


def test_decay_has_a_schedule_of_its_own(model):
    matrix, _, _ = decay_of(model, step=5, weight_decay_schedule=Linear())
    np.testing.assert_allclose(matrix, -0.025 * by_name(model)[MATRIX], atol=1e-6)


def test_cautious_decay_is_where_the_update_too_makes_a_weight_smaller(model):
    matrix, _, update = decay_of(model, cautious_decay=True)
    weight = by_name(model)[MATRIX]
    shrinking = update * weight < 0
    assert 0.3 < shrinking.mean() < 0.7
    np.testing.assert_allclose(matrix, np.where(shrinking, -0.05 * weight, 0.0), atol=1e-6)


def test_muon_takes_the_blocks_matrices_and_adam_the_rest(model):
    grads = gradients(model)
    config = Muon(
        learning_rate=0.5,
        schedule=Constant(),
        adam_learning_rate=0.3,
        embedding=ParamGroup(0.1),
        head=ParamGroup(0.2),
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
    config = AdamW(learning_rate=0.01, schedule=Linear(warmup_steps=0, min_ratio=0.0), weight_decay=0.0)
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
        (lambda: Muon(ns_steps=0), "optimizer.ns_steps"),
        (lambda: AdamW(learning_rate=math.nan), "optimizer.learning_rate is nan"),
        (lambda: AdamW(clip_norm=math.inf), "optimizer.clip_norm is inf"),
        (lambda: Muon(weight_decay=math.nan), "optimizer.weight_decay is nan"),
        (lambda: AdamW(clip_norm=0.0), "optimizer.clip_norm"),
        (lambda: Muon(momentum_min=1.0), "optimizer.momentum_min"),
        (lambda: Muon(momentum_min=0.5), "momentum_min is 0.5, which needs optimizer.momentum_schedule"),
        (lambda: Muon(ns_coefficients=(math.nan, 0.0, 0.0)), "optimizer.ns_coefficients"),
        (lambda: AdamW(epsilon=1e-50), "optimizer.epsilon is 1e-50, which float32 takes for 0"),
        (lambda: Muon(normuon_beta2=-0.1), "optimizer.normuon_beta2"),
        (lambda: Muon(adam_learning_rate=0.0), "optimizer.adam_learning_rate"),
        (lambda: AdamW(head=ParamGroup(beta1=1.5)), r"Adam\.beta1 is 1\.5"),
    ],
)
def test_bad_values_are_named(make, field):
    with pytest.raises(UserError, match=field):
        make()


def test_variables_keep_their_letters(model):
    updates, _ = updated(Muon(), model, gradients(model))
    marks = jax.tree.leaves(updates, is_leaf=lambda node: isinstance(node, nnx.Variable))
    assert {mark.axis_names for mark in marks} == {"VD", "TD", "DV", "DCHK", "HKD", "DF", "FD", "D", "CHK", "F"}
