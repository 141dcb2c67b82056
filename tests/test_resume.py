"""What a run that resumes takes over: the length of its schedules, and the batches of a forced resume."""

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_states import make_state, save_steps
from tiny import SINGLE, tiny_config

from gptjax.checkpoints import rotation as checkpoint_rotation
from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.serialization import to_json
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.optim import AdamW, Cosine
from gptjax.runs.resume import (
    SavedRun,
    adopt_history,
    check_same_run,
    describe_ended_schedule,
    describe_other_rows,
    describe_rate_change,
    restore_state,
)
from gptjax.runs.run_dir import CHECKPOINTS
from gptjax.training.stages import Stage


def save(config: TrainConfig, step: int) -> None:
    with CheckpointManager(config.directory / CHECKPOINTS, CheckpointConfig()) as checkpoints:
        checkpoints.save(step, make_state(), metadata={"config": to_json(config)}, best_value=None)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_config(tmp_path / "shards", steps=100)


def test_schedules_are_as_long_as_the_steps_of_the_first_start(config: TrainConfig):
    assert adopt_history(config).schedule_steps == 100
    save(adopt_history(config), 50)
    longer = replace(config, steps=200)
    assert adopt_history(longer) == replace(longer, schedule_steps=100, epoch_seeds="mixed")
    assert describe_rate_change(adopt_history(config), adopt_history(longer), 50) == []
    stretched = replace(longer, schedule_steps=200, epoch_seeds="mixed")
    assert adopt_history(stretched) == stretched
    (line,) = describe_rate_change(adopt_history(config), stretched, 50)
    assert "the learning rate of step 51 is 2.6" in line
    assert "without the change it would be 1.6" in line


def test_run_without_a_schedule_length_has_that_of_its_steps(config: TrainConfig):
    """As an earlier gptjax saved it."""
    save(config, 50)
    assert adopt_history(replace(config, steps=200)).schedule_steps == 100


def test_forced_resume_with_another_batch_reads_on_where_the_run_was(config: TrainConfig):
    begun = replace(adopt_history(config), stages=(Stage(20, batch_size=4),))
    save(begun, 50)
    forced = adopt_history(replace(config, batch_size=16, stages=(Stage(70, lr_scale=0.5),), resume="force"))
    assert forced.tokens(50) == begun.tokens(50)
    assert [(phase.begin, phase.batch.size, phase.lr_scale) for phase in forced.phases] == [
        (0, 8, 1.0),
        (20, 4, 1.0),
        (50, 16, 1.0),
        (70, 16, 0.5),
    ]
    save(forced, 60)
    again = adopt_history(replace(config, batch_size=16, stages=(Stage(70, lr_scale=0.5),), resume="force"))
    assert again.history_until(100) == forced.history_until(100)


def test_run_whose_batch_was_forced_goes_on_by_the_same_flags(config: TrainConfig):
    save(adopt_history(config), 50)
    save(forced := adopt_history(replace(config, batch_size=16, resume="force")), 60)
    on = adopt_history(replace(config, batch_size=16, steps=200))
    assert (on.batch_size, on.stages) == (8, forced.stages)
    assert not check_same_run(on, SavedRun(60, forced, {}), {})[1:], "only the steps are others"
    before = adopt_history(config)
    with pytest.raises(UserError, match="Stages"):
        check_same_run(before, SavedRun(60, forced, {}), {})


@pytest.mark.parametrize("resume", ["auto", "force", 60])
def test_stages_do_not_pile_up_where_the_batch_is_the_same(config: TrainConfig, resume: Any):
    save(adopt_history(config), 50)
    save(forced := adopt_history(replace(config, batch_size=16, resume="force")), 60)
    again = replace(config, batch_size=16, resume=resume)
    assert adopt_history(again).stages == forced.stages == (Stage(50, batch_size=16, grad_accum=1),)
    assert adopt_history(replace(again, grad_accum=2)).stages == (Stage(50, batch_size=16, grad_accum=2),)


def test_forced_batch_holds_from_the_step_that_is_restored(config: TrainConfig, capsys: pytest.CaptureFixture[str]):
    for step in (50, 60):
        save(adopt_history(config), step)
    damaged = min(path for path in (config.directory / CHECKPOINTS / "60/model").rglob("d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    forced = adopt_history(replace(config, batch_size=16, resume="force"))
    assert [stage.begin for stage in forced.stages] == [50]
    assert "the first 50 steps keep their batches" in capsys.readouterr().out
    back = adopt_history(replace(config, batch_size=16, resume=50))
    with pytest.raises(UserError, match=r"go back first: .* --resume=50 --steps=50\. Then .* --resume=force in place"):
        check_same_run(back, SavedRun(50, adopt_history(config), {}), {})


@pytest.mark.parametrize("step", [0, 40])
def test_step_to_go_back_to_is_looked_for_before_all_else(config: TrainConfig, step: int):
    with pytest.raises(UserError, match=rf"--resume={step}: .* There are: none\."):
        adopt_history(replace(config, resume=step))
    save(config, 50)
    with pytest.raises(UserError, match=rf"--resume={step}: .* There are: 50\."):
        adopt_history(replace(config, resume=step))


def test_forced_resume_with_another_tokenizer_is_refused(config: TrainConfig):
    saved, config = SavedRun(50, config, {"tokenizer": "one"}), replace(config, resume="force")
    assert not check_same_run(config, saved, {"tokenizer": "one"})
    with pytest.raises(UserError, match=r"\n  tokenizer: one… → two…\ntokenizer: .* not even with --resume=force"):
        check_same_run(replace(config, resume="auto"), saved, {"tokenizer": "two"})
    shorter = replace(config, model=replace(config.model, context_length=8))
    for changed in (config, shorter):  # weights of other ids are of no use in a new run
        with pytest.raises(
            UserError, match=r"^tokenizer: one… → two… gives ids .* choose another --name\. .*--tokenizer="
        ):
            check_same_run(changed, saved, {"tokenizer": "two"})


def test_steps_behind_the_end_of_a_schedule_are_told(config: TrainConfig, capsys: pytest.CaptureFixture[str]):
    save(adopt_history(config), 50)
    with CheckpointManager(config.directory / CHECKPOINTS, CheckpointConfig()) as checkpoints:
        with contextlib.suppress(Exception):
            restore_state(adopt_history(replace(config, steps=50)), checkpoints, 50, {}, SINGLE)
        assert "the run is complete. --steps=100" in capsys.readouterr().out, "nothing is evaluated again"
        for steps, flags, is_told in ((100, {}, False), (200, {}, True), (200, {"schedule_steps": 200}, False)):
            with contextlib.suppress(Exception):  # the saved state is of another model
                restore_state(adopt_history(replace(config, steps=steps, **flags)), checkpoints, 50, {}, SINGLE)
            told = "the schedule ends at step 100; from there on the learning rate is"
            assert (told in (printed := capsys.readouterr().out)) == is_told
            assert f"--schedule-steps={steps}" in printed or not is_told


@pytest.mark.parametrize(
    ("min_ratio", "told"),
    [(0.0, "warning: the schedule .* is 0, and steps change nothing"), (0.1, "note: .* is 3.00e-04")],
)
def test_steps_that_change_nothing_are_a_warning(config: TrainConfig, min_ratio: float, told: str):
    optimizer = AdamW(learning_rate=3e-3, schedule=Cosine(warmup_steps=1, min_ratio=min_ratio))
    (line,) = describe_ended_schedule(replace(config, optimizer=optimizer, steps=200, schedule_steps=100))
    assert re.match(told, line)


def test_forced_resume_says_that_rows_of_the_epoch_come_twice(config: TrainConfig):
    saved = SavedRun(50, replace(config, epoch_seeds="mixed"), {"data": "one"})
    assert describe_other_rows(saved, replace(saved.config, steps=200), {"data": "one"}) == []
    (line,) = describe_other_rows(saved, replace(saved.config, seed=7), {"data": "one"})
    assert "another seed gives the rest of this epoch another order" in line
    (line,) = describe_other_rows(saved, saved.config, {"data": "two"})
    assert "the other data are read from the row at which the run was" in line


def test_forced_resume_with_other_rows_is_refused(config: TrainConfig):
    save(adopt_history(config), 50)
    moved = config.directory.parent.rename(config.directory.parent.with_name("other place"))
    config = replace(config, output_dir=str(moved), resume="force")
    longer = replace(config, model=replace(config.model, context_length=32))
    packed = replace(config, data=TokenShards(packing="best_fit"))
    with CheckpointManager(config.directory / CHECKPOINTS, CheckpointConfig()) as checkpoints:
        for changed, field in (
            (longer, "model.context_length: 16 → 32"),
            (packed, "data.packing: concat → best_fit"),
        ):
            with pytest.raises(UserError, match=f"^{field} makes other rows.*--init-from='{config.directory}'"):
                restore_state(changed, checkpoints, 50, {}, SINGLE)
            with pytest.raises(
                UserError, match=rf"learned something else:\n(.*\n)*{field} makes other.* not even with"
            ):
                restore_state(replace(changed, resume="auto"), checkpoints, 50, {}, SINGLE)


def test_forced_resume_with_other_rows_of_a_mixture_is_refused(config: TrainConfig):
    concat, fit = (MixtureComponent(TokenShards(packing=packing)) for packing in ("concat", "best_fit"))
    config = replace(config, data=Mixture((concat, fit)))
    save(config, 50)
    config = replace(config, resume="force")
    heavier, later = replace(concat, weight=3.0), replace(concat, weight_schedule=((50, 3.0),))
    with CheckpointManager(config.directory / CHECKPOINTS, CheckpointConfig()) as checkpoints:
        for data, message in (
            (Mixture((concat, concat)), r"data.packing: \(concat, best_fit\) → \(concat, concat\) makes other rows"),
            (Mixture((heavier, fit)), r"data.components until step 50: weights \(1.0, 1.0\) .* → weights \(3.0, 1.0\)"),
        ):
            with pytest.raises(UserError, match=f"^{message}"):
                restore_state(replace(config, data=data), checkpoints, 50, {}, SINGLE)
    saved = SavedRun(50, replace(config, resume="auto"), {})
    assert check_same_run(replace(config, data=Mixture((later, fit))), saved, {})


def test_going_back_keeps_later_checkpoints_and_happens_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_steps(tmp_path, 10, 20, 30)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        with pytest.raises(UserError, match=r"--resume=15: .* There are: 10, 20, 30"):
            checkpoints.choose_step(15)
        assert checkpoints.choose_step(10) == 10
        assert {path.name for path in tmp_path.iterdir()} == {"10", "20", "30"}
        checkpoints.clear()
        assert {path.name for path in tmp_path.iterdir()} == {"10", "10.after_10", "20.after_10", "30.after_10"}
        checkpoints.save(20, make_state(), metadata={}, best_value=None)
        checkpoints.wait()
        assert checkpoints.choose_step(10) == 20
        assert "has gone back to step 10 before" in capsys.readouterr().out


def test_going_back_to_the_newest_step_leaves_a_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_steps(tmp_path, 10)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.choose_step(10) == 10
        checkpoints.clear()
        assert "has gone back" not in capsys.readouterr().out
        checkpoints.save(20, make_state(), metadata={}, best_value=None)
        checkpoints.wait()
        assert checkpoints.choose_step(10) == 20, "a restart with the same words repeats nothing"


def test_going_back_to_a_damaged_step_moves_nothing(tmp_path: Path):
    save_steps(tmp_path, 10, 20)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        damaged = next(path for path in (tmp_path / "10" / "model").rglob("*") if path.is_file())
        damaged.write_bytes(damaged.read_bytes() + b"x")
        with pytest.raises(UserError, match=r"--resume=10: .*bytes.* Use step 20, which is complete \(--resume=20\)"):
            checkpoints.choose_step(10)
        assert {path.name for path in tmp_path.iterdir()} == {"10", "20"}
        assert checkpoints.choose_step() == 20


def test_going_back_that_was_killed_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in (10, 20, 30, 40):
        (tmp_path / str(step)).mkdir()

    def rename_and_stop(path: Path, why: str) -> None:
        path.rename(path.with_name(f"{path.name}.{why}"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_rotation, "_set_aside", rename_and_stop)
        patch.setattr(checkpoint_rotation, "find_damage_once", lambda path: [])
        with pytest.raises(KeyboardInterrupt):
            checkpoint_rotation.make_way(tmp_path, checkpoint_rotation.choose_step(tmp_path, 10))
    assert {path.name for path in tmp_path.iterdir()} == {"10", "20", "30", "40.after_10", "10.after_10.begun"}
    assert checkpoint_rotation.find_last_kept(tmp_path) == 10
    monkeypatch.setattr(checkpoint_rotation, "describe_incomplete", lambda path: None)
    checkpoint_rotation.clear_unfinished(tmp_path)
    aside = {f"{step}.after_10" for step in (10, 20, 30, 40)}
    assert {path.name for path in tmp_path.iterdir()} == {"10", *aside}


def test_the_same_command_after_its_step_was_pruned_keeps_the_history(config: TrainConfig):
    save(replace(adopt_history(config), epoch_seeds="added"), 50)
    (config.directory / CHECKPOINTS / "50.after_10").mkdir()
    again = adopt_history(replace(config, steps=200, resume=10))
    assert (again.schedule_steps, again.epoch_seeds) == (100, "added")
