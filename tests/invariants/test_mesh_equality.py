"""Invariant: the mesh and the number of micro-batches change no loss, and what should be sharded is sharded."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from models import open_loader
from tiny import tiny_config, write_text_shards

from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.config import TrainConfig
from gptjax.model.gpt import with_static
from gptjax.model.loss import IGNORE_INDEX
from gptjax.optim import EMA, AdamW, Constant, Linear, Muon, ParamGroup
from gptjax.runs.startup import compile_step, initialize_state
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import TrainState
from gptjax.training.step import make_eval_step

MUON = Muon(ns_dtype="float32", clip_norm=0.5, weight_decay=0.1, schedule=Constant(warmup_steps=1))
ALL_OPTIONS = replace(
    MUON,
    momentum_schedule=Constant(warmup_steps=3),
    ns_coefficients="polar_express",
    update_scale="rms",
    matrix_split="heads",
    row_normalize=True,
    normuon_beta2=0.9,
    cautious_decay=True,
    weight_decay_schedule=Linear(),
    vector=ParamGroup(0.01, beta1=0.8),
)
ADAMW = AdamW(learning_rate=3e-3, clip_norm=0.5, weight_decay=0.1, schedule=Constant(warmup_steps=1))
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
SINGLE = MeshConfig(data=1, fsdp=1, tensor=1)
Run = tuple[np.ndarray, TrainState, str]
"""(loss and gradient norm of each step, final state, text of the compiled step)."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainConfig]:
    shards = write_text_shards(tmp_path_factory.mktemp("mesh") / "shards")
    muon = tiny_config(shards, model={"dropout": 0.1}, optimizer=MUON, ema=EMA(decay=0.6), batch_size=16, grad_accum=2)
    return {
        "muon": muon,
        "all options": replace(muon, optimizer=ALL_OPTIONS),
        "adamw, modern model": replace(muon, optimizer=ADAMW, model=replace(muon.model, **MODERN)),
    }


@pytest.fixture(scope="module")
def run(configs: dict[str, TrainConfig]) -> Callable[..., Run]:
    """Runs four steps of a config on a mesh, each once, with the program and the data of `gptjax.train`."""

    @functools.cache
    def run(name: str, mesh: MeshConfig, *, grad_accum: int = 2) -> Run:
        config = replace(configs[name], grad_accum=grad_accum)
        with mesh.activate():
            state, loader = initialize_state(config, mesh), open_loader(config, mesh)
            step = compile_step(config, mesh, state, loader)
            batches, found = loader.iterate_from(0), []
            for _ in range(4):
                state, metrics = step(state, next(batches))
                found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        return np.array(found), state, step.as_text()

    return run


def evaluate_average(config: TrainConfig, mesh: MeshConfig, state: TrainState) -> float:
    """The loss of the averaged weights on the first step's batch."""
    with mesh.activate():
        batch = next(open_loader(config, mesh).iterate_from(0))
        assert state.ema is not None
        nats, count, _ = make_eval_step(config.objective)(state.ema, batch)
    return float(nats) / int(count)


def assert_same_losses(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.ptp(wanted[:, 0]) > 0.05, "losses that hardly change would prove little"
    assert (wanted[:, 1] > 0.5).all(), "the gradients are to be clipped"
    np.testing.assert_allclose(found[:, 0], wanted[:, 0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found[:, 1], wanted[:, 1], rtol=1e-4)


def assert_sharded_like_weights(state: TrainState) -> None:
    """Every average and moment has the sharding of the weight whose name it ends in; axes of size 1 have none."""
    weights = flatten_by_name(state.model)
    for name, array in flatten_by_name(state.ema).items():
        assert array.sharding.is_equivalent_to(weights[name].sharding, array.ndim), name
    moments = {name: array for name, array in flatten_by_name(state.optimizer).items() if array.ndim}
    for name, moment in moments.items():
        weight = weights[max((w for w in weights if name.endswith(f".{w}")), key=len)]
        spec = [axis if moment.shape[i] == weight.shape[i] else None for i, axis in enumerate(weight.sharding.spec)]
        wanted = NamedSharding(weight.sharding.mesh, PartitionSpec(*spec))
        assert moment.sharding.is_equivalent_to(wanted, moment.ndim), name
    assert len(moments) >= len(weights)


def replicated_fraction(tree: Any) -> float:
    """The fraction of all bytes that every device has."""
    leaves = jax.tree.leaves(tree)
    replicated = sum(leaf.nbytes for leaf in leaves if leaf.sharding.is_fully_replicated)
    return replicated / sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("muon", MeshConfig(data=8)),
        pytest.param("muon", MeshConfig(data=2, tensor=4), marks=pytest.mark.slow),
        ("all options", MeshConfig(fsdp=8)),
        pytest.param("all options", MeshConfig(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
        ("adamw, modern model", MeshConfig(data=2, fsdp=4)),
    ],
    ids=lambda value: value.describe() if isinstance(value, MeshConfig) else value,
)
def test_losses_are_the_same_on_every_mesh(
    configs: dict[str, TrainConfig], run: Callable[..., Run], name: str, mesh: MeshConfig
):
    losses, state, _ = run(name, mesh)
    single_losses, single_state, _ = run(name, SINGLE)
    assert_same_losses(losses, single_losses)
    assert_sharded_like_weights(state)
    averages = [evaluate_average(configs[name], m, s) for m, s in ((mesh, state), (SINGLE, single_state))]
    assert averages[0] == pytest.approx(averages[1], abs=1e-5)
    if mesh.shape == (1, 8, 1):
        assert replicated_fraction(state.model) < 0.02
        assert any("second_moment" in path for path in flatten_by_name(state.optimizer))


def test_losses_do_not_depend_on_grad_accum(run: Callable[..., Run]):
    assert_same_losses(run("muon", SINGLE, grad_accum=16)[0], run("muon", SINGLE)[0])


@pytest.fixture(scope="module")
def one_step(configs: dict[str, TrainConfig]) -> tuple[dict[str, np.ndarray], Callable[..., Any], Any]:
    """(a batch, a function that makes one step on it, the model before) with dropout of a half and one layer."""
    config = configs["muon"]
    config = replace(config, model=replace(config.model, dropout=0.5, num_layers=1), optimizer=ADAMW)
    batch = jax.device_get(next(open_loader(config, SINGLE).iterate_from(0)))
    state = initialize_state(config, SINGLE)

    @functools.cache
    def compile_for(grad_accum: int, seed: int) -> Callable[..., Any]:
        changed = replace(config, seed=seed, batch_size=16, grad_accum=grad_accum)
        return compile_step(changed, SINGLE, state, open_loader(changed, SINGLE))

    def step(batch: dict[str, np.ndarray], *, grad_accum: int = 1, seed: int = 0, at: int = 0) -> tuple:
        """(loss, gradient norm, new model)."""
        micro = {name: jnp.asarray(x.reshape(grad_accum, 16 // grad_accum, -1)) for name, x in batch.items()}
        start = replace(jax.tree.map(jnp.copy, state), step=jnp.int32(at))
        after, metrics = compile_for(grad_accum, seed)(start, micro)
        return float(metrics["loss"]), float(metrics["grad_norm"]), after.model

    return batch, step, state.model


def test_scored_tokens_weigh_the_same_in_every_micro_batch(one_step: tuple):
    """Half of the sequences score one token each, and are neighbors: a mean of means would be another loss."""
    batch, step, _ = one_step
    mask = lambda scored: batch | {"targets": np.where(scored, batch["targets"].reshape(16, -1), IGNORE_INDEX)}
    first, top = np.arange(16)[None, :] == 0, np.arange(16)[:, None] < 8
    uneven = mask(first | ~top)
    together, apart = step(uneven), step(uneven, grad_accum=4)
    assert apart[:2] == pytest.approx(together[:2], rel=1e-5)
    changes = jax.tree.map(lambda a, b: float(abs(a - b).max()), together[2], apart[2])
    assert max(jax.tree.leaves(changes)) < 1e-5
    halves = [step(mask(scored))[0] for scored in (first & top, np.broadcast_to(~top, (16, 16)))]
    assert together[0] == pytest.approx(np.average(halves, weights=(8, 128)), rel=1e-5)
    assert abs(sum(halves) / 2 - together[0]) > 1e-3


def test_dropout_depends_on_seed_and_step(one_step: tuple):
    batch, step, _ = one_step
    first = step(batch)
    assert step(batch)[:2] == first[:2]
    assert step(batch, seed=1)[0] != first[0]
    assert step(batch, at=1)[0] != first[0]


def test_evaluation_has_no_dropout(one_step: tuple, configs: dict[str, TrainConfig]):
    batch, _, model = one_step
    eval_step = make_eval_step(configs["muon"].objective)
    losses = [eval_step(with_static(model, config=replace(model.config, dropout=p)), batch)[0] for p in (0.5, 0.0)]
    assert float(losses[0]) == float(losses[1])


def count_collective_bytes(kind: str, text: str) -> int:
    """Bytes of the results of one kind of collective in the text of a program."""
    total = 0
    for shapes in re.findall(rf"= (.*?) {kind}(?:-start)?\(", text):
        for width, dims in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes):
            total += int(width) // 8 * math.prod(int(n) for n in dims.split(",") if n)
    return total


def count_reduced_bytes(hlo: str) -> tuple[int, ...]:
    """Bytes of all-reduces (inside loops, outside of them) in the text of a compiled program."""
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

    sizes = {name: count_collective_bytes("all-reduce", body) for name, body in bodies.items()}
    return tuple(sum(sizes[name] for name in sizes if (name in inside) == wanted) for wanted in (True, False))


def test_data_parallelism_reduces_gradients_once_a_step(run: Callable[..., Run]):
    _, state, hlo = run("muon", MeshConfig(data=8))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(state.model))
    in_loops, outside = count_reduced_bytes(hlo)
    assert in_loops == 0
    assert weights <= outside < 1.01 * weights


def test_data_beside_fsdp_gathers_each_weight_at_most_once(run: Callable[..., Run]):
    """The text has the gathers of all layers once, in a loop over them: 0.6 of the weights, as under fsdp alone."""
    _, state, hlo = run("adamw, modern model", MeshConfig(data=2, fsdp=4))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(state.model))
    assert 0 < count_collective_bytes("all-gather", hlo) < weights
