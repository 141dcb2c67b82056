"""The average is the mean that its words promise, starts when they say, is saved, and is what others are given."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL as TINY
from tiny import SINGLE, read_lines, tiny_config, write_text_shards

from gptjax import state
from gptjax.convert import ToHf, export_model
from gptjax.core.errors import UserError
from gptjax.evaluate import Evaluate, evaluate
from gptjax.optim import AdamW
from gptjax.optim.ema import EMA
from gptjax.optim.schedules import Constant
from gptjax.run_dir import RunDir
from gptjax.train import train
from gptjax.training.checkpoint import CheckpointConfig, flatten_by_name
from gptjax.training.evaluators import ValidationLoss
from gptjax.training.objective import NextToken
from gptjax.training.step import make_train_step

MODEL = replace(TINY, num_layers=1)


def averages(ema, values, *, steps):
    found, average = [], jnp.float32(99.0)
    for step, value in enumerate(values):
        average = ema(average, jnp.float32(value), jnp.int32(step), steps=steps)
        found.append(float(average))
    return found


VALUES = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0]


def test_it_is_the_plain_mean_until_it_forgets():
    running = [np.mean(VALUES[: i + 1]) for i in range(8)]
    np.testing.assert_allclose(averages(EMA(decay=1.0), VALUES, steps=8), running, rtol=1e-6)
    forgetting = averages(EMA(decay=0.75), VALUES, steps=8)
    np.testing.assert_allclose(forgetting[:4], running[:4], rtol=1e-6)
    for before, value, after in zip(forgetting[3:], VALUES[4:], forgetting[4:], strict=False):
        assert after == pytest.approx(0.75 * before + 0.25 * value)


def test_before_its_part_of_the_run_it_is_the_weights_to_the_bit():
    ema = EMA(decay=1.0, fraction=0.5)
    found = averages(ema, VALUES, steps=8)
    assert found[:5] == VALUES[:5]
    np.testing.assert_allclose(found[5:], [np.mean(VALUES[4:end]) for end in (6, 7, 8)], rtol=1e-6)
    assert [ema.has_started(completed, steps=8) for completed in range(9)] == [False] * 6 + [True] * 3


@pytest.mark.parametrize("field", [{"decay": 1.1}, {"decay": -0.1}, {"fraction": 0.0}, {"fraction": 1.5}])
def test_shares_beyond_one_are_refused(field):
    with pytest.raises(UserError, match=rf"averaging\.{next(iter(field))} is"):
        EMA(**field)


def rows(seed):
    tokens = np.random.RandomState(seed).randint(0, MODEL.resolved_vocab_size, (1, 4, MODEL.context_length + 1))
    return {"tokens": jnp.asarray(tokens[..., :-1], jnp.int32), "targets": jnp.asarray(tokens[..., 1:], jnp.int32)}


def test_the_step_averages_what_it_makes_and_learns_as_without():
    optimizer, ema = AdamW(learning_rate=0.01, schedule=Constant()), EMA(decay=0.5)
    built = optimizer.build(steps=5, mesh=SINGLE)
    words = {"steps": 5, "seed": 0, "dropout": False, "mesh": SINGLE}
    plain, kept = (make_train_step(NextToken(), optimizer, ema=one, **words) for one in (EMA(), ema))
    without = state.create_state(MODEL, built, seed=0, mesh=SINGLE)
    now = state.create_state(MODEL, built, seed=0, mesh=SINGLE, has_ema=True)
    wanted = jax.tree.map(np.asarray, now.model)
    for number in range(4):
        without, _ = plain(without, rows(number))
        now, _ = kept(now, rows(number))
        wanted = jax.tree.map(np.asarray, ema(wanted, now.model, number, steps=5))
    for name, array in flatten_by_name(now.model).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(flatten_by_name(without.model)[name]))
        np.testing.assert_allclose(
            np.asarray(flatten_by_name(now.average)[name]), flatten_by_name(wanted)[name], rtol=1e-5, atol=1e-7
        )
    assert without.eval_model is without.model
    assert now.eval_model is now.average

    before = jax.tree.map(np.asarray, now.average)
    now.model.positions = now.model.positions.replace(now.model.positions[...].at[0].set(jnp.nan))
    after, _ = kept(now, rows(9))
    assert int(after.skipped) == 1
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), before, after.ema)))


def test_it_costs_as_much_memory_as_the_weights():
    optimizer = AdamW().build(steps=1, mesh=SINGLE)
    size = lambda has_ema: sum(
        leaf.size for leaf in jax.tree.leaves(state.abstract_state(MODEL, optimizer, mesh=SINGLE, has_ema=has_ema))
    )
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.abstract_state(MODEL, optimizer, mesh=SINGLE).model))
    assert size(True) - size(False) == weights


# ------------------------------------------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_text_shards(tmp_path_factory.mktemp("ema") / "shards")


@pytest.fixture(scope="module")
def run(shards):
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


def test_the_average_is_judged_and_the_last_weights_beside_it(run):
    judged, last = dict(read_lines(run.directory, "val_loss")), dict(read_lines(run.directory, "val_loss_last"))
    assert judged.keys() == {0, 5, 10, 15, 20}
    assert last.keys() == {15, 20}, "before, they are the same"
    assert judged[20] > last[20] + 0.01, "it learns so fast yet that a mean lags behind"
    found = [evaluate(Evaluate(str(run.directory), mesh=SINGLE, ema=choice)) for choice in (True, False)]
    assert [one["val_loss"] for one in found] == pytest.approx([judged[20], last[20]], abs=1e-6)
    assert [one["weights"] for one in found] == ["average", "last"]


def test_who_opens_the_run_is_given_the_average(run, tmp_path, capsys):
    opened = RunDir.open(run.directory)
    assert opened.has_ema()
    average, last = flatten_by_name(opened.model()), flatten_by_name(opened.model(ema=False))
    assert all((np.asarray(array) != np.asarray(last[name])).any() for name, array in average.items())
    early, same = flatten_by_name(opened.model(10)), flatten_by_name(opened.model(10, ema=False))
    assert all((np.asarray(array) == np.asarray(same[name])).all() for name, array in early.items())
    for average, said in ((True, "its average of the weights, in float32"), (False, "tiny in float32")):
        export_model(ToHf(str(run.directory), str(tmp_path / str(average)), ema=average, verify=False))
        assert said in capsys.readouterr().out
    files = [(tmp_path / choice / "model.safetensors").read_bytes() for choice in ("True", "False")]
    assert files[0] != files[1]


def test_it_may_be_turned_on_and_off_by_a_run_that_goes_on(shards, capsys):
    """A checkpoint without one, as older ones are, gives the average its first weights; training notices nothing."""
    optimizer = AdamW(learning_rate=0.02, schedule=Constant())
    config = tiny_config(shards, name="turned", steps=3, model={"num_layers": 1}, optimizer=optimizer)
    assert train(config) == 0
    assert not RunDir.open(config.directory).has_ema()
    on = replace(config, ema=EMA(0.999))
    assert train(replace(on, steps=6)) == 0
    printed = capsys.readouterr().out
    assert "changed: ema.decay: None → 0.999" in printed
    assert "step 3 has no average: it begins with these weights" in printed
    assert re.search(r"averaging the mean of the weights from step 1 on, looking back about 1,000 steps", printed)
    assert RunDir.open(config.directory).has_ema(6)
    assert train(replace(config, steps=9)) == 0
    assert not RunDir.open(config.directory).has_ema(9)
    whole = replace(config, name="never turned", steps=9)
    assert train(whole) == 0
    assert read_lines(whole.directory) == read_lines(config.directory)
