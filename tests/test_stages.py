"""What a stage says is done from its step on, and counted; what it cannot be is named; programs are compiled once."""

from dataclasses import replace
from itertools import islice

import jax.numpy as jnp
import numpy as np
import pytest
from gptjax.optim.optimizers import AdamW, Muon
from tiny import MODEL, SINGLE, read_lines, tiny_config, write_text_shards

from gptjax import train as train_door
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.batch_size import BatchSize, count_steps_by_part
from gptjax.optim.schedules import Constant, Cosine
from gptjax.sharding.mesh import MeshConfig
from gptjax.train import compile_steps, create_run_state, open_run_loader, train
from gptjax.training.checkpoint import CheckpointConfig
from gptjax.training.checkpoint_format import flatten_by_name
from gptjax.training.stages import Phase, Stage, phases
from gptjax.training.state import TrainState
from gptjax.training.step import lr_scale_at, make_eval_step

STAGES = (Stage(3, batch_size=16, grad_accum=2), Stage(5), Stage(7, batch_size=4, lr_scale=1.5), Stage(9, lr_scale=0.5))


def test_a_stage_says_only_what_is_other_than_in_the_config():
    base = BatchSize(8, 2)
    assert phases(base, MODEL, ()) == (Phase(0, base, MODEL),)
    found = phases(base, MODEL, STAGES)
    wanted = [(0, base, 1.0), (3, BatchSize(16, 2), 1.0), (5, base, 1.0), (7, BatchSize(4, 2), 1.5), (9, base, 0.5)]
    assert found == tuple(Phase(begin, batch, MODEL, rate) for begin, batch, rate in wanted)
    assert phases(base, MODEL, (Stage(0, batch_size=2),)) == (Phase(0, BatchSize(2, 2), MODEL),)
    assert found[3].describe() == "from step 7 on 4 rows = 64 tokens a step, learning rate × 1.5"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((Stage(5), Stage(3)), r"stages begin at the steps \[5, 3\]; wanted ascending"),
        ((Stage(5), Stage(5)), r"\[5, 5\]"),
        ((Stage(5, batch_size=9),), r"stages: from step 5 on batch_size 9 does not divide"),
        ((Stage(5, batch_size=0),), r"stages: from step 5 on batch_size is 0"),
        ((Stage(5, long_window=0),), r"stages: from step 5 on model\.long_window is 0"),
        ((Stage(5, short_window=4),), r"from step 5 on model\.short_window is 4, which needs model\.windows"),
    ],
)
def test_what_cannot_be_is_named(stages, words):
    with pytest.raises(UserError, match=words):
        TrainConfig(batch_size=8, grad_accum=2, stages=stages)


@pytest.mark.parametrize(("field", "words"), [({"begin": -1}, "step -1"), ({"rate": 0.0}, r"rate is 0\.0")])
def test_a_stage_by_itself_is_checked(field, words):
    with pytest.raises(UserError, match=words):
        Stage(**({"begin": 5} | field))


def test_every_stage_divides_over_the_devices():
    config = TrainConfig(batch_size=8, stages=(Stage(5, batch_size=12),))
    with pytest.raises(UserError, match="12 sequences a group do not split over 8 devices"):
        config.check_mesh(MeshConfig(data=8))


def test_tokens_and_flops_are_counted_through_the_stages():
    config = TrainConfig(batch_size=8, grad_accum=2, model=MODEL, stages=STAGES, steps=12)
    rows = np.cumsum([0] + [8] * 3 + [16] * 2 + [8] * 2 + [4] * 2 + [8] * 3)
    assert [config.tokens(steps) for steps in range(13)] == [16 * n for n in rows]
    assert config.flops(12, causal=True) == pytest.approx(16 * rows[-1] * MODEL.flops_per_token(causal=True))
    assert config.flops(0, causal=False) == 0
    assert count_steps_by_part([0, 3, 5], 4) == [3, 1, 0]
    lr_scales = [(phase.begin, phase.lr_scale) for phase in config.phases]
    assert [float(lr_scale_at(jnp.int32(step), lr_scales)) for step in (0, 6, 7, 8, 9, 99)] == [
        1,
        1,
        1.5,
        1.5,
        0.5,
        0.5,
    ]
    assert float(lr_scale_at(jnp.int32(3), ())) == 1


# ------------------------------------------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_text_shards(tmp_path_factory.mktemp("stages") / "shards")


def make(shards, **changes):
    optimizer = AdamW(learning_rate=0.01, schedule=Constant())
    return tiny_config(
        shards, **({"model": {"num_layers": 1}, "batch_size": 8, "grad_accum": 2, "optimizer": optimizer} | changes)
    )


def counted(monkeypatch, *, compile=True):
    """The batches for which a step is compiled from now on, in order; without `compile` the batch is the program."""
    batches, compile_step = [], train_door.compile_step

    def counting(*args):
        batches.append(args[-1].batch)
        return compile_step(*args) if compile else args[-1].batch

    monkeypatch.setattr(train_door, "compile_step", counting)
    return batches


@pytest.fixture(scope="module")
def finished(shards):
    """A whole run in stages: its config, what was compiled, and what it printed."""
    config = make(shards, name="finished", steps=10, stages=STAGES, checkpoint=CheckpointConfig(every=4, keep=9))
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *parts, sep=" ", **_: printed.append(sep.join(map(str, parts))))
        compiled = counted(patch)
        assert train(config) == 0
    return config, compiled, "\n".join(printed)


def test_one_program_for_each_shape_before_the_first_step(finished):
    _, compiled, printed = finished
    assert compiled == [BatchSize(8, 2), BatchSize(16, 2), BatchSize(4, 2)]
    assert "compiled  3 programs for the stages to come" in printed
    assert printed.index("compiled  3") < printed.index("step 10/10  loss")
    assert "training  10 steps = 1,408 tokens" in printed
    assert "stage     from step 3 on 16 rows = 256 tokens a step" in printed


@pytest.mark.parametrize(
    ("start", "steps", "wanted"),
    [
        (0, 10, [BatchSize(8, 2), BatchSize(16, 2), BatchSize(4, 2)]),
        (5, 10, [BatchSize(8, 2), BatchSize(4, 2)]),
        (7, 10, [BatchSize(4, 2), BatchSize(8, 2)]),
        (3, 5, [BatchSize(16, 2)]),
        (10, 10, []),
    ],
)
def test_only_what_is_to_come_is_compiled_and_each_step_has_its_own(shards, monkeypatch, start, steps, wanted):
    config = make(shards, steps=steps, stages=STAGES)
    batches = open_run_loader(config, SINGLE)
    compiled = counted(monkeypatch, compile=False)
    train_step = compile_steps(config, SINGLE, object.__new__(TrainState), batches, start=start)
    assert compiled == wanted
    assert [train_step(step) for step in range(start, steps)] == [batches.batch(step) for step in range(start, steps)]


def test_the_log_counts_what_was_read(finished):
    finished = finished[0]
    tokens = dict(read_lines(finished.directory, "tokens"))
    assert tokens == {step: finished.tokens(step) for step in range(1, 11)}
    lr_scales = dict(read_lines(finished.directory, "learning_rate"))
    assert [lr_scales[step] for step in (1, 7, 8, 9, 10)] == pytest.approx([0.01, 0.01, 0.015, 0.015, 0.005])
    epochs = dict(read_lines(finished.directory, "epoch"))
    assert epochs[10] == pytest.approx(finished.tokens(10) / 16 / 197, rel=1e-6)


def test_the_rate_of_a_stage_is_that_of_the_optimizer(shards):
    """Twice the factor is twice every learning rate, weight decay included."""
    optimizer = Muon(ns_dtype="float32", weight_decay=0.1, schedule=Cosine(warmup_steps=1))
    names = [field for field in vars(optimizer) if field.endswith("learning_rate")]
    doubled = replace(optimizer, **{name: 2 * getattr(optimizer, name) for name in names})
    one = make(shards, optimizer=doubled, steps=4)
    other = make(shards, optimizer=optimizer, stages=(Stage(0, lr_scale=2.0),), steps=4)
    found = []
    for config in (one, other):
        state, batches = create_run_state(config, SINGLE), open_run_loader(config, SINGLE)
        state, _ = compile_steps(config, SINGLE, state, batches, start=0)(0)(state, next(batches.iterate_from(0)))
        found.append(flatten_by_name(state.model))
    for name, array in found[0].items():
        np.testing.assert_allclose(np.asarray(array), np.asarray(found[1][name]), rtol=2e-5, atol=1e-7, err_msg=name)


def test_windows_are_those_of_the_stage_and_alter_no_weights(shards):
    """Two steps are those of a narrow run; the third sees all that the config's model does, with the same weights."""
    staged = make(shards, steps=4, stages=(Stage(0, long_window=3), Stage(2)))
    narrow = make(shards, steps=4, model={"num_layers": 1, "long_window": 3})
    batches = open_run_loader(staged, SINGLE)
    one, other = create_run_state(staged, SINGLE), create_run_state(narrow, SINGLE)
    train_step = compile_steps(staged, SINGLE, one, batches, start=0)
    narrow_step = compile_steps(narrow, SINGLE, other, batches, start=0)(0)
    losses = []
    for step, rows in enumerate(islice(batches.iterate_from(0), 3)):
        nats, count = make_eval_step(staged.objective)(one.model, rows)
        one, metrics = train_step(step)(one, rows)
        other, wanted = narrow_step(other, rows)
        losses.append((float(metrics["loss"]), float(wanted["loss"]), float(nats) / int(count)))
    assert losses[0][0] == losses[0][1]
    assert losses[1][0] == losses[1][1]
    assert losses[2][0] == pytest.approx(losses[2][2], abs=1e-5), "as it is judged"
    assert abs(losses[2][0] - losses[2][1]) > 1e-4
    assert abs(losses[1][0] - losses[1][2]) > 1e-4


def test_what_stages_see_is_counted():
    """A narrower window has fewer FLOPs; in words it is told what is seen."""
    model = replace(MODEL, window_pattern="SL", short_window=4)
    config = TrainConfig(batch_size=8, model=model, stages=(Stage(0, long_window=8), Stage(2, short_window=8)))
    one, other = (phase.model.flops_per_token(causal=True) * 128 for phase in config.phases)
    assert one < other
    assert config.flops(5, causal=True) == pytest.approx(2 * one + 3 * other)
    assert config.history_until(2) == (
        "from step 0 on 8 rows = 128 tokens a step, long attention windows of 8, short attention windows of 4"
    )


def test_a_coming_stage_may_be_added_and_a_past_one_may_not_change(finished, capsys):
    finished = finished[0]
    longer = replace(finished, steps=12)
    past = (*STAGES[:3], Stage(9, lr_scale=0.7))
    with pytest.raises(UserError, match=r"learned something else:\n  stages until step 10: .*× 0\.5 → .*× 0\.7"):
        train(replace(longer, stages=past))
    with pytest.raises(UserError, match="stages until step 10"):
        train(replace(longer, stages=()))
    with pytest.raises(UserError, match="stages until step 10"):
        train(replace(longer, stages=(STAGES[0], *STAGES[2:])))  # a stage that says nothing ends the one before it
    harmless = (Stage(3, batch_size=16, grad_accum=8), *STAGES[1:3], Stage(8, lr_scale=1.5, batch_size=4), STAGES[3])
    assert train(replace(longer, stages=(*harmless, Stage(11, batch_size=32)))) == 0
    assert "changed: stages" in capsys.readouterr().out
    assert dict(read_lines(finished.directory, "tokens"))[12] - finished.tokens(11) == 32 * 16
