from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from gptjax import state
from gptjax.core.constants import IGNORE_INDEX
from gptjax.optim.optimizers import AdamW, Muon
from gptjax.optim.schedules import Constant, Linear
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.objective import NextToken
from gptjax.training.step import make_dropout_keys, make_eval_step, make_train_step

LAYOUT = MeshConfig()
OPTIMIZERS = {
    "adamw": AdamW(learning_rate=0.01, schedule=Linear(warmup_steps=1)),
    "muon": Muon(dtype="float32", schedule=Linear(warmup_steps=1)),
}


@pytest.fixture(scope="module", params=OPTIMIZERS)
def made(request):
    """(a new state each time, the step)"""
    optimizer = OPTIMIZERS[request.param]
    first = state.create_state(MODEL, optimizer.build(steps=10, mesh=LAYOUT), seed=0, mesh=LAYOUT)
    step = make_train_step(NextToken(), optimizer, steps=10, seed=0, dropout=False, mesh=LAYOUT)
    return lambda: jax.tree.map(jnp.copy, first), step


def rows(seed=0):
    tokens = np.random.RandomState(seed).randint(0, MODEL.resolved_vocab_size, (2, 4, MODEL.context_length + 1))
    return {"tokens": jnp.asarray(tokens[..., :-1], jnp.int32), "targets": jnp.asarray(tokens[..., 1:], jnp.int32)}


def poisoned(before):
    """A state one of whose weights is not a number."""
    before.model.positions = before.model.positions.replace(before.model.positions[...].at[3].set(jnp.nan))
    return before


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_step_learns_its_batch_and_counts(made):
    fresh, step = made
    before, now, losses = fresh(), fresh(), []
    for number in range(6):
        now, metrics = step(now, rows())
        losses.append(float(metrics["loss"]))
        assert int(now.step) == number + 1
    assert losses[0] == pytest.approx(np.log(MODEL.resolved_vocab_size), abs=0.1)
    assert losses[-1] < losses[0] - 0.1
    assert (int(now.skipped), int(now.consecutive_skips)) == (0, 0)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before.model, now.model)
    assert all(jax.tree.leaves(changed)), "every weight is trained"


def test_metrics_tell_the_loss_and_the_rate_of_the_step_that_was_made(made):
    fresh, step = made
    judge = make_eval_step(NextToken())
    nats, count = judge(fresh().model, rows())
    now, metrics = step(fresh(), rows())
    assert int(count) == 2 * 4 * MODEL.context_length
    assert float(metrics["loss"]) == pytest.approx(float(nats) / int(count), rel=1e-6)
    _, following = step(now, rows())
    assert float(following["learning_rate"]) == pytest.approx(2 * float(metrics["learning_rate"]))
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "skipped", "consecutive_skips"}


def test_an_update_that_is_not_finite_is_not_made(made):
    """Weights and moments stay to the bit, the clock goes on, and the streak counts until an update is made again."""
    fresh, step = made
    start, _ = step(fresh(), rows())
    kept = jax.tree.map(jnp.copy, poisoned(start))
    now = poisoned(start)
    for consecutive_skips in (1, 2, 3):
        now, metrics = step(now, rows())
        assert not np.isfinite(float(metrics["loss"]))
        assert (int(metrics["skipped"]), int(metrics["consecutive_skips"])) == (consecutive_skips, consecutive_skips)
        assert int(now.step) == 1 + consecutive_skips
    assert_same(now.model, kept.model)
    assert_same(now.optimizer, kept.optimizer)

    healed = fresh().model
    now, metrics = step(replace(now, model=healed), rows())
    assert np.isfinite(float(metrics["loss"]))
    assert (int(metrics["skipped"]), int(metrics["consecutive_skips"])) == (3, 0)
    assert bool(jnp.any(now.model.tokens[...] != fresh().model.tokens[...]))


def test_an_update_that_overflows_is_not_made():
    """Though loss and gradient are as they should be."""
    optimizer = AdamW(learning_rate=3e38, schedule=Constant())
    make = lambda: state.create_state(MODEL, optimizer.build(steps=10, mesh=LAYOUT), seed=0, mesh=LAYOUT)
    step = make_train_step(NextToken(), optimizer, steps=10, seed=0, dropout=False, mesh=LAYOUT)
    now, metrics = step(make(), rows())
    assert np.isfinite([float(metrics["loss"]), float(metrics["grad_norm"])]).all()
    assert int(metrics["skipped"]) == 1
    assert_same(now.model, make().model)
    assert_same(now.optimizer, make().optimizer)


def test_rows_without_a_scored_token_give_a_loss_of_nothing(made):
    fresh, step = made
    unscored = rows() | {"targets": jnp.full((2, 4, MODEL.context_length), IGNORE_INDEX, jnp.int32)}
    now, metrics = step(fresh(), unscored)
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0
    assert int(now.skipped) == 0


def test_the_same_step_twice_is_the_same_to_the_bit(made):
    fresh, step = made
    assert_same(step(fresh(), rows()), step(fresh(), rows()))


def test_the_state_that_went_in_is_given_back(made):
    fresh, step = made
    before = fresh()
    step(before, rows())
    assert before.model.tokens[...].is_deleted()


def test_each_row_has_a_key_of_its_own_whatever_its_group():
    batch = rows()
    data = lambda keys: np.asarray(jax.random.key_data(keys)).reshape(8, -1)
    keys = data(make_dropout_keys(0, jnp.int32(5), batch, LAYOUT))
    assert len(np.unique(keys, axis=0)) == 8
    together = {name: array.reshape(1, 8, -1) for name, array in batch.items()}
    np.testing.assert_array_equal(data(make_dropout_keys(0, jnp.int32(5), together, LAYOUT)), keys)
    for seed, step in ((1, 5), (0, 6)):
        assert not (data(make_dropout_keys(seed, jnp.int32(step), batch, LAYOUT)) == keys).all(axis=1).any()
