"""Law: how the work is laid out over devices and groups changes no loss; what is sharded really is, moments too."""

import functools
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import tiny_config, write_text_shards

from gptjax.data.config import BatchSize
from gptjax.model.gpt import with_static
from gptjax.model.loss import IGNORE_INDEX
from gptjax.optim.ema import EMA
from gptjax.optim.optimizers import AdamW, Muon, ParamGroup
from gptjax.optim.schedules import Constant, Linear
from gptjax.sharding.mesh import MeshConfig
from gptjax.train import compile_step, create_run_state, open_run_loader
from gptjax.training.checkpoint import flatten_by_name
from gptjax.training.step import make_eval_step

MUON = Muon(dtype="float32", clip_norm=0.5, weight_decay=0.1, schedule=Constant(warmup_steps=1))
EVERY_OPTION = replace(
    MUON,
    momentum_schedule=Constant(warmup_steps=3),
    ns_coefficients="polar_express",
    scaling="rms",
    split="heads",
    row_normalize=True,
    normuon_beta2=0.9,
    cautious_decay=True,
    weight_decay_schedule=Linear(),
    vector=ParamGroup(0.01, beta1=0.8),
)
ADAMW = AdamW(learning_rate=3e-3, clip_norm=0.5, weight_decay=0.1, schedule=Constant(warmup_steps=1))
SINGLE = MeshConfig(data=1, fsdp=1, tensor=1)
FSDP = MeshConfig(fsdp=8)
LAYOUTS = {
    "data parallel": MeshConfig(data=8),
    "fully sharded": FSDP,
    "tensor parallel": MeshConfig(data=2, tensor=4),
    "all three": MeshConfig(data=2, fsdp=2, tensor=2),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    shards = write_text_shards(tmp_path_factory.mktemp("mesh") / "shards")
    return tiny_config(
        shards,
        model={"dropout": 0.1},
        optimizer=MUON,
        ema=EMA(decay=0.6),
        batch_size=16,
        grad_accum=2,
    )


def losses(config, mesh, *, steps=4):
    """The losses of some steps of the shipped program on the shipped data, and the state that they end in."""
    with mesh.activate():
        state, batches = create_run_state(config, mesh), open_run_loader(config, mesh)
        step = compile_step(config, mesh, state, batches)
        rows, found = batches.iterate_from(0), []
        for _ in range(steps):
            state, metrics = step(state, next(rows))
            found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found), state


@pytest.fixture(scope="module")
def on_one(config):
    return losses(config, SINGLE)


@pytest.fixture(scope="module")
def alone(on_one):
    """Muon on one device: its losses."""
    return on_one[0]


def judged(config, mesh, state):
    """What the average of the weights makes of the first step's rows."""
    with mesh.activate():
        nats, count = make_eval_step(config.objective)(state.ema, next(open_run_loader(config, mesh).iterate_from(0)))
    return float(nats) / int(count)


def same(found, wanted):
    assert np.ptp(wanted[:, 0]) > 0.05, "losses that hardly move would prove little"
    assert (wanted[:, 1] > 0.5).all(), "the gradients are to be clipped"
    np.testing.assert_allclose(found[:, 0], wanted[:, 0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found[:, 1], wanted[:, 1], rtol=1e-4)


def assert_sharded_alike(state):
    """Every moment lies as the weight whose name it ends in, or as what is left of it (one place along an axis).

    The average lies as the weights do.
    """
    weights = flatten_by_name(state.model)
    for name, array in flatten_by_name(state.ema).items():
        assert array.sharding.is_equivalent_to(weights[name].sharding, array.ndim), name
    moments = {name: array for name, array in flatten_by_name(state.optimizer).items() if array.ndim}
    for name, moment in moments.items():
        weight = max((w for w in weights if name.endswith(f".{w}")), key=len)
        like = weights[weight]
        spec = [axis if moment.shape[i] == like.shape[i] else None for i, axis in enumerate(like.sharding.spec)]
        wanted = NamedSharding(like.sharding.mesh, PartitionSpec(*spec))
        assert moment.sharding.is_equivalent_to(wanted, moment.ndim), name
    assert len(moments) >= len(weights)


def unsharded_share(tree):
    """The part of all bytes that each device holds whole."""
    leaves = jax.tree.leaves(tree)
    whole = sum(leaf.nbytes for leaf in leaves if leaf.sharding.is_fully_replicated)
    return whole / sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize("name", LAYOUTS)
def test_muon_learns_the_same_on_every_layout(config, alone, on_one, name):
    mesh = LAYOUTS[name]
    found, state = losses(config, mesh)
    same(found, alone)
    assert judged(config, mesh, state) == pytest.approx(judged(config, SINGLE, on_one[1]), abs=1e-5)
    assert_sharded_alike(state)
    if mesh == FSDP:
        assert unsharded_share(state.model) < 0.02


@pytest.fixture(scope="module")
def every_option(config):
    """All of Muon's options on one device."""
    config = replace(config, optimizer=EVERY_OPTION)
    return config, losses(config, SINGLE)[0]


@pytest.mark.parametrize("name", ["fully sharded", "all three"])
def test_muon_with_every_option_learns_the_same(every_option, name):
    config, alone = every_option
    found, state = losses(config, LAYOUTS[name])
    same(found, alone)
    assert_sharded_alike(state)
    assert any("neurons" in path for path in flatten_by_name(state.optimizer))


MODERN = {
    "positions": "rotary",
    "rotary_fraction": 0.5,
    "norm": "rms",
    "qk_norm": True,
    "attention_scale": 0.12,
    "num_kv_heads": 2,
    "gated_mlp": True,
    "activation": "silu",
    "logit_softcap": 15.0,
    "bias": False,
    "tie_embeddings": False,
}


def test_a_modern_model_learns_the_same_on_three_axes(config):
    """With dropout and shared keys; the recipes have laws of their own."""
    config = replace(config, model=replace(config.model, **MODERN))
    found, state = losses(config, LAYOUTS["all three"])
    np.testing.assert_allclose(found[:, 0], losses(config, SINGLE)[0][:, 0], atol=1e-5, rtol=0)
    assert_sharded_alike(state)


def test_the_number_of_groups_changes_no_loss(config, alone):
    same(losses(replace(config, batch_size=16, grad_accum=16), SINGLE)[0], alone)


def test_adamw_learns_the_same_sharded(config):
    config = replace(config, optimizer=ADAMW)
    found, state = losses(config, LAYOUTS["all three"])
    same(found, losses(config, SINGLE)[0])
    assert_sharded_alike(state)


@pytest.fixture(scope="module")
def one_step(config):
    """Rows, and what one step says of them with a given grouping: the loss and the gradient's norm."""
    config = replace(config, model=replace(config.model, dropout=0.5), optimizer=ADAMW)
    rows = jax.device_get(next(open_run_loader(config, SINGLE).iterate_from(0)))
    state = create_run_state(config, SINGLE)

    @functools.cache
    def compiled(groups, seed):
        changed = replace(config, seed=seed, batch=BatchSize(16, groups))
        return compile_step(changed, SINGLE, state, open_run_loader(changed, SINGLE))

    def run(rows, *, groups=1, seed=0, at=0):
        own = {name: jnp.asarray(array.reshape(groups, 16 // groups, -1)) for name, array in rows.items()}
        start = replace(jax.tree.map(jnp.copy, state), step=jnp.int32(at))
        after, metrics = compiled(groups, seed)(start, own)
        return float(metrics["loss"]), float(metrics["grad_norm"]), after.model

    return rows, run


def scoring(rows, scored):
    return rows | {"targets": np.where(scored, rows["targets"].reshape(16, -1), IGNORE_INDEX)}


def test_every_scored_token_weighs_the_same_in_whatever_group_it_is(one_step):
    """Half of the rows score one token each, and lie together: a mean of the groups' means would be another loss."""
    rows, run = one_step
    first, top = np.arange(16)[None, :] == 0, np.arange(16)[:, None] < 8
    uneven = scoring(rows, first | ~top)
    together, apart = run(uneven), run(uneven, groups=4)
    assert apart[:2] == pytest.approx(together[:2], rel=1e-5)
    diff_configs = jax.tree.map(lambda a, b: float(abs(a - b).max()), together[2], apart[2])
    assert max(jax.tree.leaves(diff_configs)) < 1e-5
    halves = [run(scoring(rows, scored))[0] for scored in (first & top, np.broadcast_to(~top, (16, 16)))]
    assert abs(sum(halves) / 2 - together[0]) > 1e-3


def test_dropout_is_decided_by_seed_and_step(one_step):
    rows, run = one_step
    first = run(rows)
    assert run(rows)[:2] == first[:2]
    assert run(rows, seed=1)[0] != first[0]
    assert run(rows, at=1)[0] != first[0]


def test_dropout_is_off_in_evaluation(one_step, config):
    rows, _ = one_step
    model = create_run_state(config, SINGLE).model
    judge = make_eval_step(config.objective)
    dropped, plain = (with_static(model, config=replace(model.config, dropout=rate)) for rate in (0.5, 0.0))
    assert float(judge(dropped, rows)[0]) == float(judge(plain, rows)[0])


def collective_bytes(kind, text):
    """Bytes of the results of one kind of collective in a program's text."""
    total = 0
    for shapes in re.findall(rf"= (.*?) {kind}(?:-start)?\(", text):
        for width, dims in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes):
            total += int(width) // 8 * math.prod(int(n) for n in dims.split(",") if n)
    return total


def reduced_bytes(hlo):
    """(bytes of all-reduces inside loops, bytes of those outside) in a compiled program's text."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", hlo, re.M | re.S))
    called = {
        name: set(re.findall(r"(?:body|condition|calls|to_apply)=%?([\w.-]+)", body)) for name, body in bodies.items()
    }
    inside = {name for body in bodies.values() for name in re.findall(r"body=%?([\w.-]+)", body)}
    waiting = list(inside)
    while waiting:
        for name in called.get(waiting.pop(), set()) - inside:
            inside.add(name)
            waiting.append(name)

    sizes = {name: collective_bytes("all-reduce", body) for name, body in bodies.items()}
    return tuple(sum(sizes[name] for name in sizes if (name in inside) == wanted) for wanted in (True, False))


def compiled_text(config, mesh):
    """The text of the compiled step, and the weights it is for."""
    with mesh.activate():
        state, batches = create_run_state(config, mesh), open_run_loader(config, mesh)
        return compile_step(config, mesh, state, batches).as_text(), state.model


def test_data_parallelism_reduces_gradients_once_a_step(config):
    config = replace(config, optimizer=ADAMW, batch_size=32, grad_accum=4)
    hlo, model = compiled_text(config, LAYOUTS["data parallel"])
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    in_loops, outside = reduced_bytes(hlo)
    assert in_loops == 0
    assert weights <= outside < 1.01 * weights


def test_data_parallelism_beside_fsdp_gathers_no_weight_more(config):
    """Those of all layers stand in a loop over them; what fsdp alone gathers is as much, 0.7 of the weights."""
    hlo, model = compiled_text(replace(config, optimizer=ADAMW), MeshConfig(data=2, fsdp=4))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    assert 0 < collective_bytes("all-gather", hlo) < weights
