"""One training step: it learns, counts, skips what is not finite, and is deterministic."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from gptjax.core.constants import IGNORE_INDEX
from gptjax.data.loader import Batch
from gptjax.objectives.objective import NextToken
from gptjax.optim import AdamW, Muon
from gptjax.optim.schedules import Constant, Linear
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import TrainState, abstract_state, create_state
from gptjax.training.step import StepConfig, make_dropout_keys, make_eval_step, make_train_step

MESH = MeshConfig()
OPTIMIZERS = {
    "adamw": AdamW(learning_rate=0.01, schedule=Linear(warmup_steps=1)),
    "muon": Muon(ns_dtype="float32", schedule=Linear(warmup_steps=1)),
}

MakeState = Callable[[], TrainState]


def make_state_and_step(optimizer: AdamW | Muon) -> tuple[MakeState, Any]:
    """Return a function that makes the same new state each time, because a step donates it, and the step."""
    state = create_state(MODEL, optimizer.build(steps=10, mesh=MESH), seed=0, mesh=MESH)
    step = make_train_step(NextToken(), optimizer, config=StepConfig(steps=10, seed=0), mesh=MESH)
    return lambda: jax.tree.map(jnp.copy, state), step


@pytest.fixture(scope="module", params=OPTIMIZERS)
def state_and_step(request: pytest.FixtureRequest) -> tuple[MakeState, Any]:
    return make_state_and_step(OPTIMIZERS[request.param])


def make_batch() -> Batch:
    tokens = np.random.RandomState(0).randint(0, MODEL.resolved_vocab_size, (2, 4, MODEL.context_length + 1))
    return {"tokens": jnp.asarray(tokens[..., :-1], jnp.int32), "targets": jnp.asarray(tokens[..., 1:], jnp.int32)}


def poison(state: TrainState) -> TrainState:
    """Set some weights to NaN."""
    positions = state.model.position_embedding
    assert positions is not None
    positions[...] = positions[...].at[3].set(jnp.nan)
    return state


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_steps_reduce_the_loss_and_train_every_weight(state_and_step: tuple[MakeState, Any]):
    make_state, step = state_and_step
    state, losses = make_state(), []
    for number in range(6):
        state, metrics = step(state, make_batch())
        losses.append(float(metrics["loss"]))
        assert int(state.step) == number + 1
    assert losses[0] == pytest.approx(np.log(MODEL.resolved_vocab_size), abs=0.1)
    assert losses[-1] < losses[0] - 0.1
    assert (int(state.skipped), int(state.consecutive_skips)) == (0, 0)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), make_state().model, state.model)
    assert all(jax.tree.leaves(changed))


def test_metrics_are_those_before_the_update(state_and_step: tuple[MakeState, Any]):
    make_state, step = state_and_step
    nats, count, _ = make_eval_step(NextToken())(make_state().model, make_batch())
    state, metrics = step(make_state(), make_batch())
    assert int(count) == 2 * 4 * MODEL.context_length
    assert float(metrics["loss"]) == pytest.approx(float(nats) / int(count), rel=1e-6)
    _, next_metrics = step(state, make_batch())
    assert float(next_metrics["learning_rate"]) == pytest.approx(2 * float(metrics["learning_rate"]))
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "skipped", "consecutive_skips"}


def test_update_with_nan_is_skipped(state_and_step: tuple[MakeState, Any]):
    """Weights and moments keep their bits, the step number goes on, and skips in a row are counted."""
    make_state, step = state_and_step
    state, _ = step(make_state(), make_batch())
    state = poison(state)
    before = jax.tree.map(jnp.copy, state)
    for skips in (1, 2, 3):
        state, metrics = step(state, make_batch())
        assert not np.isfinite(float(metrics["loss"]))
        assert (int(metrics["skipped"]), int(metrics["consecutive_skips"])) == (skips, skips)
        assert int(state.step) == 1 + skips
    assert_same((state.model, state.optimizer), (before.model, before.optimizer))

    state, metrics = step(replace(state, model=make_state().model), make_batch())
    assert np.isfinite(float(metrics["loss"]))
    assert (int(metrics["skipped"]), int(metrics["consecutive_skips"])) == (3, 0)
    assert bool(jnp.any(state.model.token_embedding[...] != make_state().model.token_embedding[...]))


def test_update_that_overflows_is_skipped():
    """The loss and the gradient are finite, but the update is not."""
    make_state, step = make_state_and_step(AdamW(learning_rate=3e38, schedule=Constant()))
    state, metrics = step(make_state(), make_batch())
    assert np.isfinite([float(metrics["loss"]), float(metrics["grad_norm"])]).all()
    assert int(metrics["skipped"]) == 1
    assert_same((state.model, state.optimizer), (make_state().model, make_state().optimizer))


def test_batch_without_scored_tokens_has_loss_zero(state_and_step: tuple[MakeState, Any]):
    make_state, step = state_and_step
    targets = jnp.full((2, 4, MODEL.context_length), IGNORE_INDEX, jnp.int32)
    state, metrics = step(make_state(), make_batch() | {"targets": targets})
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0
    assert int(state.skipped) == 0


def test_unscored_copies_of_rows_change_neither_loss_nor_gradient(state_and_step: tuple[MakeState, Any]):
    """The mean is over scored tokens. AdamW and Muon would hide another divisor, but for clipping and the log."""
    make_state, step = state_and_step
    batch = {name: jnp.concatenate([rows[:, :2], rows[:, :2]], axis=1) for name, rows in make_batch().items()}
    masked = batch | {"targets": batch["targets"].at[:, 2:].set(IGNORE_INDEX)}
    (_, every), (_, half) = step(make_state(), batch), step(make_state(), masked)
    for name in ("loss", "grad_norm"):
        assert float(half[name]) == pytest.approx(float(every[name]), rel=1e-5)


def test_step_holds_one_gradient_and_one_update_beside_the_state():
    """Moments and weights are written in place: beside them there are two copies of the weights, not three or four."""
    model = replace(MODEL, num_layers=1, vocab_size=4096, embed_dim=128)
    optimizer = AdamW(learning_rate=0.01, clip_norm=1.0)
    state = abstract_state(model, optimizer.build(steps=10, mesh=MESH), mesh=MESH)
    step = make_train_step(NextToken(), optimizer, config=StepConfig(steps=10, seed=0), mesh=MESH)
    row = jax.ShapeDtypeStruct((1, 1, MODEL.context_length), jnp.int32)
    compiled = step.lower(state, {"tokens": row, "targets": row}).compile()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.model))
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * weights


def test_step_is_deterministic_and_donates_its_state(state_and_step: tuple[MakeState, Any]):
    make_state, step = state_and_step
    state = make_state()
    assert_same(step(state, make_batch()), step(make_state(), make_batch()))
    assert state.model.token_embedding[...].is_deleted()


def test_dropout_keys_depend_on_seed_step_and_row():
    """They do not depend on how rows are divided into micro-batches."""
    batch = make_batch()

    def make_key_data(seed: int, step: int, batch: Batch) -> np.ndarray:
        keys = make_dropout_keys(seed, jnp.int32(step), batch=batch, mesh=MESH)
        return np.asarray(jax.random.key_data(keys)).reshape(8, -1)

    keys = make_key_data(0, 5, batch)
    assert len(np.unique(keys, axis=0)) == 8
    one_group = {name: array.reshape(1, 8, -1) for name, array in batch.items()}
    np.testing.assert_array_equal(make_key_data(0, 5, one_group), keys)
    for seed, step in ((1, 5), (0, 6)):
        assert not (make_key_data(seed, step, batch) == keys).all(axis=1).any()
