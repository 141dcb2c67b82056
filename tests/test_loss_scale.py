"""float16 with dynamic loss scaling: it learns as float32 does, and an overflow costs a step and half of the scale."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import assert_same, disable_jaxtyping
from tiny import MODEL, read_lines, tiny_config, write_text_shards

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.model.config import GPTConfig
from gptjax.objectives.objective import NextToken
from gptjax.optim import AdamW
from gptjax.optim.schedules import Constant
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, MAX_SCALE, LossScale
from gptjax.training.state import TrainState, abstract_state, create_state
from gptjax.training.step import StepConfig, make_train_step

MESH = MeshConfig()
OPTIMIZER = AdamW(learning_rate=0.01, schedule=Constant())
FLOAT16 = replace(MODEL, compute=replace(MODEL.compute, dtype="float16"))


def make_state(config: GPTConfig, **scale: float) -> TrainState:
    """A new state whose scale has the given fields."""
    state = create_state(config, OPTIMIZER.build(steps=10, mesh=MESH), seed=0, mesh=MESH)
    if state.loss_scale is None:
        return state
    types = {"scale": jnp.float32, "finite_steps": jnp.int32}
    return replace(
        state, loss_scale=replace(state.loss_scale, **{name: types[name](value) for name, value in scale.items()})
    )


@pytest.fixture(scope="module")
def step() -> Any:
    return make_train_step(NextToken(), OPTIMIZER, config=StepConfig(steps=10, seed=0), mesh=MESH)


@pytest.fixture(scope="module")
def batch() -> dict[str, jax.Array]:
    tokens = np.random.RandomState(0).randint(0, MODEL.resolved_vocab_size, (2, 4, MODEL.context_length + 1))
    return {"tokens": jnp.asarray(tokens[..., :-1], jnp.int32), "targets": jnp.asarray(tokens[..., 1:], jnp.int32)}


def test_scale_grows_after_finite_updates_in_a_row() -> None:
    scale = LossScale(jnp.float32(1024), jnp.int32(GROWTH_INTERVAL - 2))
    scale = scale.update(jnp.bool_(True))
    assert (float(scale.scale), int(scale.finite_steps)) == (1024, GROWTH_INTERVAL - 1)
    scale = scale.update(jnp.bool_(True))
    assert (float(scale.scale), int(scale.finite_steps)) == (2048, 0)
    assert (
        float(LossScale(jnp.float32(MAX_SCALE), jnp.int32(GROWTH_INTERVAL)).update(jnp.bool_(True)).scale) == MAX_SCALE
    )


def test_scale_is_halved_by_an_update_that_is_not_finite() -> None:
    scale = LossScale(jnp.float32(2), jnp.int32(7))
    for wanted in (1, 1):
        scale = scale.update(jnp.bool_(False))
        assert (float(scale.scale), int(scale.finite_steps)) == (wanted, 0)


def test_overflow_skips_the_update_and_halves_the_scale(step: Any, batch: Any) -> None:
    state = make_state(FLOAT16, scale=2.0**40, finite_steps=5)
    before = jax.tree.map(jnp.copy, state)
    state, metrics = step(state, batch)
    assert_same((state.model, state.optimizer), (before.model, before.optimizer))  # pyright: ignore[reportArgumentType]
    assert (int(metrics["skipped"]), int(metrics["consecutive_skips"])) == (1, 1)
    assert float(metrics["loss"]) == pytest.approx(np.log(MODEL.resolved_vocab_size), abs=0.1)  # it did not overflow
    assert float(metrics["loss_scale"]) == 2.0**40
    assert (float(state.loss_scale.scale), int(state.loss_scale.finite_steps)) == (2.0**39, 0)


def test_float16_learns_like_float32(step: Any, batch: Any) -> None:
    states = {"float32": make_state(MODEL), "float16": make_state(FLOAT16, finite_steps=GROWTH_INTERVAL - 2)}
    losses: dict[str, list[float]] = {name: [] for name in states}
    for name, state in states.items():
        for _ in range(8):
            state, metrics = step(state, batch)
            losses[name].append(float(metrics["loss"]))
            assert int(metrics["skipped"]) == 0
        states[name] = state
    assert losses["float32"][-1] < losses["float32"][0] - 0.3
    np.testing.assert_allclose(losses["float16"], losses["float32"], atol=2e-3)
    assert losses["float16"] != losses["float32"]
    assert states["float32"].loss_scale is None
    assert float(states["float16"].loss_scale.scale) == 2 * INITIAL_SCALE


def test_scale_is_saved_and_restored(tmp_path: Path) -> None:
    with disable_jaxtyping():
        abstract = abstract_state(FLOAT16, OPTIMIZER.build(steps=10, mesh=MESH), mesh=MESH)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        saved = make_state(FLOAT16, scale=32.0, finite_steps=3)
        checkpoints.save(1, saved, metadata={}, best_value=None)
        checkpoints.save(2, make_state(MODEL), metadata={}, best_value=None)
        checkpoints.wait()
        assert_same(checkpoints.restore(abstract, 1), saved)
        begun = checkpoints.restore(abstract, 2).loss_scale  # the run was in float32 until then
        assert float(begun.scale) == INITIAL_SCALE
        assert checkpoints.restore(replace(abstract, loss_scale=None), 1).loss_scale is None


@pytest.mark.slow
def test_resumed_float16_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    shards = write_text_shards(tmp_path / "shards")
    config = tiny_config(shards, steps=4, model={"compute": FLOAT16.compute}, optimizer=OPTIMIZER)
    whole, parts = replace(config, name="whole"), replace(config, name="parts")
    for part in (whole, replace(parts, steps=2), parts):
        assert train(part) == 0
    for name in ("loss", "grad_norm", "loss_scale"):
        assert read_lines(parts.directory, name) == read_lines(whole.directory, name)
    assert [value for _, value in read_lines(whole.directory, "loss_scale")] == [INITIAL_SCALE] * 4
