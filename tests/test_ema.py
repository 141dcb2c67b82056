"""The moving average: its values, its place in the training step, and its use by a run."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL as TINY
from tiny import SINGLE, read_lines, tiny_config, write_text_shards

from gptjax.checkpoints.checkpoint import CheckpointConfig, flatten_by_name
from gptjax.config import TrainConfig
from gptjax.conversion.exports import ToHf, export_model
from gptjax.core.errors import UserError
from gptjax.evaluate import evaluate
from gptjax.evaluation.options import Evaluate
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.objective import NextToken
from gptjax.optim import EMA, AdamW, Constant
from gptjax.runs.run_dir import RunDir
from gptjax.runs.trainer import train
from gptjax.training import state
from gptjax.training.step import StepConfig, make_train_step

MODEL = replace(TINY, num_layers=1)
VALUES = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0]


def average_values(ema: EMA) -> list[float]:
    """The averages of VALUES, one after each step of a run of eight."""
    found, average = [], jnp.float32(99.0)
    for step, value in enumerate(VALUES):
        average = ema.update(average, jnp.float32(value), step=jnp.int32(step), steps=len(VALUES))
        found.append(float(average))
    return found


def test_average_is_the_plain_mean_until_it_forgets():
    means = [np.mean(VALUES[: i + 1]) for i in range(8)]
    np.testing.assert_allclose(average_values(EMA(decay=1.0)), means, rtol=1e-6)
    forgetting = average_values(EMA(decay=0.75))
    np.testing.assert_allclose(forgetting[:4], means[:4], rtol=1e-6)
    for before, value, after in zip(forgetting[3:], VALUES[4:], forgetting[4:], strict=False):
        assert after == pytest.approx(0.75 * before + 0.25 * value)


def test_average_equals_the_weights_before_it_starts():
    ema = EMA(decay=1.0, fraction=0.5)
    found = average_values(ema)
    assert found[:5] == VALUES[:5]
    np.testing.assert_allclose(found[5:], [np.mean(VALUES[4:end]) for end in (6, 7, 8)], rtol=1e-6)
    assert [ema.has_started(completed, steps=8) for completed in range(9)] == [False] * 6 + [True] * 3


@pytest.mark.parametrize("field", [{"decay": 1.1}, {"decay": -0.1}, {"fraction": 0.0}, {"fraction": 1.5}])
def test_values_out_of_range_are_rejected(field: dict[str, float]):
    with pytest.raises(UserError, match=rf"ema\.{next(iter(field))} is"):
        EMA(**field)


def draw_batch(seed: int) -> dict[str, jax.Array]:
    tokens = np.random.RandomState(seed).randint(0, MODEL.resolved_vocab_size, (1, 4, MODEL.context_length + 1))
    return {"tokens": jnp.asarray(tokens[..., :-1], jnp.int32), "targets": jnp.asarray(tokens[..., 1:], jnp.int32)}


def to_numpy(model: object) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in flatten_by_name(model).items()}


def test_step_updates_the_average_and_trains_as_without():
    optimizer, ema = AdamW(learning_rate=0.01, schedule=Constant()), EMA(decay=0.5)
    built = optimizer.build(steps=5, mesh=SINGLE)
    configs = [StepConfig(steps=5, seed=0, ema=one) for one in (EMA(), ema)]
    plain_step, ema_step = (make_train_step(NextToken(), optimizer, config=one, mesh=SINGLE) for one in configs)
    plain = state.create_state(MODEL, built, seed=0, mesh=SINGLE)
    averaged = state.create_state(MODEL, built, seed=0, mesh=SINGLE, has_ema=True)
    wanted = jax.tree.map(np.asarray, averaged.model)
    for number in range(4):
        plain, _ = plain_step(plain, draw_batch(number))
        averaged, _ = ema_step(averaged, draw_batch(number))
        wanted = jax.tree.map(np.asarray, ema.update(wanted, averaged.model, step=number, steps=5))
    same, mean, wanted = to_numpy(plain.model), to_numpy(averaged.ema), to_numpy(wanted)
    for name, array in to_numpy(averaged.model).items():
        np.testing.assert_allclose(array, same[name], atol=1e-4)  # Adam enlarges rounding where a gradient is 0
        np.testing.assert_allclose(mean[name], wanted[name], rtol=1e-5, atol=1e-7)
    assert plain.eval_model is plain.model
    assert averaged.eval_model is averaged.ema

    positions = averaged.model.position_embedding
    assert positions is not None
    positions[...] = positions[...].at[0].set(jnp.nan)
    after, _ = ema_step(averaged, draw_batch(9))
    assert int(after.skipped) == 1
    for name, array in to_numpy(after.ema).items():
        np.testing.assert_array_equal(array, mean[name])


def test_average_takes_as_much_memory_as_the_weights():
    optimizer = AdamW().build(steps=1, mesh=SINGLE)
    with_ema, without = (state.abstract_state(MODEL, optimizer, mesh=SINGLE, has_ema=has) for has in (True, False))
    size, less, weights = (sum(leaf.size for leaf in jax.tree.leaves(x)) for x in (with_ema, without, without.model))
    assert size - less == weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("ema") / "shards")


@pytest.fixture(scope="module")
def run(shards: Path) -> TrainConfig:
    """Twenty steps, averaged over the last ten."""
    config = tiny_config(
        shards,
        steps=20,
        model={"num_layers": 1},
        optimizer=AdamW(learning_rate=0.02, schedule=Constant()),
        ema=EMA(0.999, fraction=0.5),
        evaluators=(ValidationLoss(every=5),),
        checkpoint=CheckpointConfig(every=10, keep=9),
    )
    assert train(config) == 0
    return config


def test_run_evaluates_the_average_and_the_last_weights(run: TrainConfig):
    averaged, last = dict(read_lines(run.directory, "val_loss")), dict(read_lines(run.directory, "val_loss_last"))
    assert averaged.keys() == {0, 5, 10, 15, 20}
    assert last.keys() == {15, 20}, "before the average starts, both are the same"
    assert averaged[20] > last[20] + 0.01, "while the loss falls this fast, a mean lags behind"
    found = [evaluate(Evaluate((str(run.directory),), mesh=SINGLE, ema=choice)) for choice in (True, False)]
    assert [one["val_loss"] for one in found] == pytest.approx([averaged[20], last[20]], abs=1e-6)
    assert found[0]["weights"] != found[1]["weights"]


def test_opened_run_and_export_use_the_average(run: TrainConfig, tmp_path: Path):
    opened = RunDir.open(run.directory)
    assert opened.has_ema()
    average, last = to_numpy(opened.load_model()), to_numpy(opened.load_model(ema=False))
    assert all((array != last[name]).any() for name, array in average.items())
    early, same = to_numpy(opened.load_model(10)), to_numpy(opened.load_model(10, ema=False))
    assert all((array == same[name]).all() for name, array in early.items())
    files = []
    for ema in (True, False):
        export_model(ToHf(str(run.directory), str(tmp_path / str(ema)), ema=ema, verify=False))
        files.append((tmp_path / str(ema) / "model.safetensors").read_bytes())
    assert files[0] != files[1]


@pytest.mark.slow
def test_resumed_run_may_turn_the_average_on_and_off(shards: Path, capsys: pytest.CaptureFixture[str]):
    """A checkpoint without an average starts it from its weights; training itself is unchanged."""
    optimizer = AdamW(learning_rate=0.02, schedule=Constant())
    config = tiny_config(shards, name="turned", steps=3, model={"num_layers": 1}, optimizer=optimizer)
    assert train(config) == 0
    assert not RunDir.open(config.directory).has_ema()
    assert train(replace(config, ema=EMA(0.999), steps=6)) == 0
    printed = capsys.readouterr().out
    assert "ema.decay: None → 0.999" in printed
    assert "mean of the weights from step 1 on, looking back about 1,000 steps" in printed
    assert RunDir.open(config.directory).has_ema(6)
    assert train(replace(config, steps=9)) == 0
    assert not RunDir.open(config.directory).has_ema(9)
    whole = replace(config, name="never turned", steps=9)
    assert train(whole) == 0
    # A step with an average is another program, which rounds in another order.
    wanted, found = (np.array(read_lines(run.directory)) for run in (whole, config))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
