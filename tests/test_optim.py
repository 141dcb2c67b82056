"""AdamW and Muon as whole optimizers: against optax, by parameter group, and as implementations of the protocol."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import Array

from gptjax.core.errors import UserError
from gptjax.optim import AdamW, Constant, Linear, Muon, NamedGroup, Optimizer, ParamGroup, WarmupStableDecay
from gptjax.optim.param_groups import ParamHyperparams
from gptjax.optim.schedules import Step
from gptjax.sharding.axes import weight_role
from gptjax.sharding.mesh import MeshConfig

MESH = MeshConfig()
PARAMS = {
    "token_embedding": ("VD", (20, 16)),
    "position_embedding": ("TD", (8, 16)),
    "head": ("DV", (16, 20)),
    "norm.scale": ("D", (16,)),
    "blocks.qkv": ("DCHK", (2, 16, 3, 2, 8)),
    "blocks.out": ("HKD", (2, 2, 8, 16)),
    "blocks.up": ("DF", (2, 16, 64)),
    "blocks.down": ("FD", (2, 64, 16)),
    "blocks.bias": ("F", (2, 64)),
}
Tree = dict[str, Any]
Arrays = dict[str, np.ndarray]


def make_tree(seed: int, *, without: str = "") -> Tree:
    """Normal random numbers under the axis names and dotted paths of a small GPT."""
    rng = np.random.default_rng(seed)
    return {
        path: nnx.Param(jnp.asarray(rng.standard_normal(shape), jnp.float32), axis_names=axis_names)
        for path, (axis_names, shape) in PARAMS.items()
        if path != without
    }


MODEL, GRADIENTS = make_tree(0), make_tree(1)


def update(optimizer: Optimizer, *gradients: Tree, step: int = 0, steps: int = 10) -> tuple[Arrays, Any]:
    """The last update and the state after steps with these gradients, the first of them at `step`."""
    chain = optax.with_extra_args_support(optimizer.build(steps=steps, mesh=MESH))
    state, compiled = chain.init(MODEL), jax.jit(chain.update)
    updates: Tree = {}
    for number, gradient in enumerate(gradients or [GRADIENTS], step):
        updates, state = compiled(gradient, state, MODEL, step=jnp.int32(number))
    return to_numpy(updates), state


def to_numpy(tree: Tree) -> Arrays:
    return {path: np.asarray(param[...]) for path, param in tree.items()}


def list_paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.flatten_with_path(tree)[0]]


def test_adamw_with_clipping_and_decay_equals_optax():
    got, _ = update(AdamW(learning_rate=0.01, schedule=Constant(), weight_decay=0.1, clip_norm=1.0))
    is_param = lambda node: isinstance(node, nnx.Variable)
    decays = jax.tree.map(lambda p: p.replace(weight_role(p.axis_names) != "vector"), MODEL, is_leaf=is_param)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.01, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=decays)
    )
    wanted, _ = jax.jit(theirs.update)(GRADIENTS, theirs.init(MODEL), MODEL)
    for path, value in to_numpy(wanted).items():
        np.testing.assert_allclose(got[path], value, rtol=1e-5, atol=1e-8)


def test_adamw_decays_matrices_and_embeddings_only():
    zeros = jax.tree.map(jnp.zeros_like, MODEL)
    got, _ = update(AdamW(learning_rate=0.01, schedule=Constant(), weight_decay=0.5), zeros)
    for path, weight in to_numpy(MODEL).items():
        factor = 0.0 if weight_role(PARAMS[path][0]) == "vector" else -0.005
        np.testing.assert_allclose(got[path], factor * weight, rtol=1e-5)


def test_groups_override_the_learning_rate():
    plain = AdamW(learning_rate=0.01, schedule=Constant(), weight_decay=0.0)
    named = (NamedGroup("position_embedding", ParamGroup(0.07)),)
    groups = replace(
        plain, embedding=ParamGroup(0.02), head=ParamGroup(0.03), vector=ParamGroup(0.05), named_groups=named
    )
    one, two = update(plain)[0], update(groups)[0]
    ratios = {path: float(np.median(two[path] / one[path])) for path in one}
    wanted = {
        "token_embedding": 2,
        "position_embedding": 7,
        "head": 3,
        "norm.scale": 5,
        "blocks.bias": 5,
        "blocks.up": 1,
    }
    assert {path: ratios[path] for path in wanted} == pytest.approx(wanted)


def test_unset_group_fields_fall_back_to_the_optimizer():
    config = AdamW(
        learning_rate=0.01,
        beta1=0.8,
        head=ParamGroup(beta2=0.9),
        named_groups=(NamedGroup("mix", ParamGroup(0.5)), NamedGroup("head", ParamGroup(0.2))),
    )
    assert config.hyperparams("blocks.mlp.up", "DF") == ParamHyperparams(0.01, 0.8, 0.95, 1e-8, 0.1)
    assert config.hyperparams("head", "DV") == ParamHyperparams(0.2, 0.8, 0.9, 1e-8, 0.1)
    assert config.hyperparams("blocks.mix", "") == ParamHyperparams(0.5, 0.8, 0.95, 1e-8, 0.0)
    assert config.hyperparams("blocks.remix", "") == ParamHyperparams(0.01, 0.8, 0.95, 1e-8, 0.0)
    vector = lambda **group: replace(config, vector=ParamGroup(**group)).hyperparams("blocks.norm", "D")
    assert vector(learning_rate=0.3) == ParamHyperparams(0.3, 0.8, 0.95, 1e-8, 0.0)
    assert vector(weight_decay=0.2).weight_decay == 0.2
    assert (
        replace(config, embedding=ParamGroup(weight_decay=0.0)).hyperparams("token_embedding", "VD").weight_decay == 0.0
    )
    muon = Muon(0.03, weight_decay=0.2, adam_learning_rate=0.01, value_embedding=ParamGroup(0.3, weight_decay=0.4))
    assert muon.hyperparams("blocks.mlp.up", "DF")[::4] == (0.03, 0.2)
    assert muon.hyperparams("value_embeddings", "VE")[::4] == (0.3, 0.4)
    assert muon.hyperparams("token_embedding", "VD")[::4] == (0.01, 0.0)
    assert muon.hyperparams("blocks.sinks", "IHK")[::4] == (0.01, 0.0)


def test_each_group_has_its_own_adam():
    """Two steps of one chain, against optax's Adam for each group alone."""
    groups = {
        "embedding": ParamGroup(0.1, 0.5, 0.6, 1e-3),
        "head": ParamGroup(0.2, 0.6, 0.7, 1e-4),
        "vector": ParamGroup(0.3, 0.7, 0.8, 1e-5),
    }
    gradients = [make_tree(1), make_tree(2)]
    got, _ = update(replace(Muon(schedule=Constant()), **groups), *gradients)
    for role, path in {"embedding": "token_embedding", "head": "head", "vector": "norm.scale"}.items():
        rate, *betas = dataclasses.astuple(groups[role])[:4]
        adam, own = optax.scale_by_adam(*betas), [to_numpy(gradient)[path] for gradient in gradients]
        state, wanted = adam.init(own[0]), None
        for gradient in own:
            wanted, state = adam.update(gradient, state)
        np.testing.assert_allclose(got[path], -rate * wanted, rtol=1e-5, atol=1e-8)


def test_muon_uses_adam_for_all_but_unnamed_matrices():
    config = Muon(
        learning_rate=0.5,
        schedule=Constant(),
        adam_learning_rate=0.3,
        embedding=ParamGroup(0.1),
        head=ParamGroup(0.2),
        named_groups=(NamedGroup("blocks.down", ParamGroup(0.4)),),
        ns_dtype="float32",
    )
    updates, state = update(config)
    for path, rate in {"token_embedding": 0.1, "head": 0.2, "norm.scale": 0.3, "blocks.down": 0.4}.items():
        np.testing.assert_allclose(np.abs(updates[path]), rate, rtol=1e-3)  # the size of Adam's first step
    singular = np.linalg.svd(updates["blocks.up"][0] / 0.5 / 2, compute_uv=False)  # √(F / D) = 2
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    momenta = {path for path in list_paths(state["muon"]) if ".momentum[" in path}
    matrices = ("blocks.qkv", "blocks.out", "blocks.up")
    assert len(momenta) == len(matrices)
    assert all(any(name in path for path in momenta) for name in matrices)
    assert not any(name in path for path in list_paths(state["adam"]) for name in matrices)


@pytest.mark.parametrize("make", [AdamW, Muon])
def test_groups_without_parameters_are_rejected(make: Callable[..., Optimizer]):
    init = lambda model=MODEL, **groups: make(**groups).build(steps=10, mesh=MESH).init(model)
    with pytest.raises(UserError, match=r"'mix', but no parameter .* one of: .*blocks\.up"):
        init(named_groups=(NamedGroup("mix"),))
    with pytest.raises(UserError, match=r"value_embedding sets learning_rate=0\.1, but .* no value embedding"):
        init(value_embedding=ParamGroup(0.1))
    tied = make_tree(0, without="head")
    with pytest.raises(UserError, match=r"optimizer\.head .*tied to the embedding"):
        init(tied, head=ParamGroup(0.1))
    init(tied, embedding=ParamGroup(0.1), vector=ParamGroup(0.1))


def test_momentum_follows_its_schedule():
    schedule = WarmupStableDecay(warmup_steps=3, decay_fraction=0.5, min_ratio=0.5)
    config = Muon(momentum=0.97, momentum_min=0.85, momentum_schedule=schedule)
    found = [float(config.momentum_at(step, steps=20)) for step in (0, 1, 2, 3, 10, 15, 20)]
    np.testing.assert_allclose(found, [0.88, 0.91, 0.94, 0.97, 0.97, 0.94, 0.91], atol=1e-6)
    assert float(Muon().momentum_at(0, steps=20)) == pytest.approx(0.95)


DECAYING = Muon(learning_rate=0.5, schedule=Constant(), weight_decay=0.1, ns_dtype="float32", ns_steps=1)


@pytest.fixture(scope="module")
def undecayed() -> Arrays:
    """The updates of DECAYING without weight decay; its learning rate is the same at every step."""
    return update(replace(DECAYING, weight_decay=0.0))[0]


def test_muon_decay_is_decoupled_and_of_matrices_only(undecayed: Arrays):
    got, _ = update(DECAYING)
    np.testing.assert_allclose(got["blocks.up"] - undecayed["blocks.up"], -0.05 * MODEL["blocks.up"][...], atol=1e-6)
    np.testing.assert_array_equal(got["token_embedding"], undecayed["token_embedding"])


def test_cautious_decay_follows_its_schedule_where_updates_shrink(undecayed: Arrays):
    """At half of the run, so that the schedule halves the decay."""
    config = replace(DECAYING, cautious_decay=True, weight_decay_schedule=Linear())
    got, weight = update(config, step=5)[0]["blocks.up"], to_numpy(MODEL)["blocks.up"]
    shrinking = undecayed["blocks.up"] * weight < 0
    assert 0.3 < shrinking.mean() < 0.7
    np.testing.assert_allclose(got - undecayed["blocks.up"], np.where(shrinking, -0.025 * weight, 0.0), atol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    scale = 3.0 / float(optax.tree.norm(GRADIENTS))
    config = AdamW(schedule=Constant(), clip_norm=3.0, epsilon=1.0)  # a large epsilon keeps Adam sensitive to size
    clipped, scaled = update(config)[0], update(config, jax.tree.map(lambda g: g * scale, GRADIENTS))[0]
    for path, value in scaled.items():
        np.testing.assert_allclose(clipped[path], value, rtol=1e-3, atol=1e-6)


def test_learning_rate_depends_on_the_given_step_only():
    config = AdamW(learning_rate=0.01, schedule=Linear(warmup_steps=0, min_ratio=0.0), weight_decay=0.0)
    start, middle = update(config, step=0)[0], update(config, step=5)[0]
    assert float(config.learning_rate_at(5, steps=10)) == pytest.approx(0.005)
    for path, value in start.items():
        np.testing.assert_allclose(middle[path], 0.5 * value, rtol=1e-5)


@dataclass(frozen=True)
class Lion:
    """An optimizer as a user would write it: a plain optax transformation, which takes no extra arguments."""

    learning_rate: float = 1e-3

    def build(self, *, steps: int, mesh: MeshConfig) -> optax.GradientTransformation:
        return optax.lion(optax.cosine_decay_schedule(self.learning_rate, steps))

    def learning_rate_at(self, step: Step, *, steps: int) -> Array:
        return jnp.asarray(optax.cosine_decay_schedule(self.learning_rate, steps)(step))


def test_any_class_with_the_methods_is_an_optimizer():
    assert all(isinstance(optimizer, Optimizer) for optimizer in (AdamW(), Muon(), Lion()))
    assert not isinstance(Constant(), Optimizer)
    np.testing.assert_allclose(np.abs(update(Lion())[0]["blocks.up"]), 1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(learning_rate=0.0), "optimizer.learning_rate is 0.0; it must be above 0"),
        (lambda: AdamW(learning_rate=math.nan), "optimizer.learning_rate is nan"),
        (lambda: AdamW(beta2=1.0), r"optimizer.beta2 is 1.0; it must be in \[0, 1\)"),
        (lambda: AdamW(epsilon=1e-50), "optimizer.epsilon is 1e-50; .* smallest normal float32"),
        (lambda: AdamW(clip_norm=0.0), "optimizer.clip_norm"),
        (lambda: AdamW(clip_norm=math.inf), "optimizer.clip_norm is inf"),
        (lambda: AdamW(head=ParamGroup(beta1=1.5)), r"ParamGroup\.beta1 is 1\.5"),
        (lambda: Muon(weight_decay=-1.0), "optimizer.weight_decay"),
        (lambda: Muon(weight_decay=math.nan), "optimizer.weight_decay is nan"),
        (lambda: Muon(ns_steps=0), "optimizer.ns_steps"),
        (lambda: Muon(ns_coefficients=(math.nan, 0.0, 0.0)), "optimizer.ns_coefficients"),
        (lambda: Muon(momentum_min=1.0), "optimizer.momentum_min"),
        (lambda: Muon(momentum_min=0.5), "momentum_min is 0.5, but without an optimizer.momentum_schedule"),
        (lambda: Muon(normuon_beta2=-0.1), "optimizer.normuon_beta2"),
        (lambda: Muon(adam_learning_rate=0.0), "optimizer.adam_learning_rate"),
    ],
)
def test_values_out_of_range_are_rejected(make: Callable[[], Optimizer], message: str):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_updates_keep_the_axis_names(optimizer: Optimizer):
    chain = optax.with_extra_args_support(optimizer.build(steps=10, mesh=MESH))
    updates, _ = jax.eval_shape(lambda: chain.update(GRADIENTS, chain.init(MODEL), MODEL, step=0))
    assert {path: param.axis_names for path, param in updates.items()} == {
        path: names for path, (names, _) in PARAMS.items()
    }
