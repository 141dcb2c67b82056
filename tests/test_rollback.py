"""A run that goes back learns what a run learns that was told from the start which rows to pass over."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ALPHABET, read_lines, tiny_config, write_text_shards

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.checkpoints.integrity import complete_steps
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.batch_size import locate_first_row
from gptjax.data.config import TokenShards
from gptjax.data.source import DataSource, ReadSpec, RowReader, Rows
from gptjax.metrics.metrics_file import read_metrics
from gptjax.objectives.objective import MicroBatch, NextToken
from gptjax.optim import AdamW, Constant
from gptjax.runs import trainer
from gptjax.runs.resume import adopt_history
from gptjax.runs.rollback import add_offset, adopt_offsets, roll_back
from gptjax.runs.run_dir import RunDir
from gptjax.runs.trainer import train
from gptjax.supervision.divergence import Diverged, RollbackConfig


@dataclass(frozen=True)
class Spoiled(DataSource):
    """Shards in which the rows of some steps, by default of the 26th, are of a token that the text lacks."""

    path: str
    steps: tuple[int, int] = (25, 26)

    def open(self, spec: ReadSpec) -> RowReader:
        bad = range(*(8 * step for step in self.steps))
        return SpoiledRows(TokenShards(self.path).open(spec), bad)


class SpoiledRows(RowReader):
    def __init__(self, rows: RowReader, bad: range) -> None:
        self.rows, self.bad = rows, bad

    def read(self, rows: np.ndarray) -> Rows:
        found = self.rows.read(rows)
        found["targets"][np.isin(rows, self.bad)] = ALPHABET.index("z")
        return found


@dataclass(frozen=True)
class Fragile(NextToken):
    """A loss that is not a number where a whole row is of that token."""

    def sum_loss(self, model: Any, batch: MicroBatch, dropout_keys: Any = None) -> Any:
        loss, count = super().sum_loss(model, batch, dropout_keys)
        is_spoiled = jnp.any(jnp.all(batch["targets"] == ALPHABET.index("z"), axis=1))
        return loss * jnp.where(is_spoiled, jnp.nan, 1.0), count


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    shards = write_text_shards(tmp_path_factory.mktemp("rollback") / "shards")
    return tiny_config(
        shards,
        steps=32,
        model={"num_layers": 1, "dropout": 0.1},
        data=Spoiled(str(shards)),
        optimizer=AdamW(learning_rate=2e-2, schedule=Constant()),
        checkpoint=CheckpointConfig(every=12, keep=9),
        rollback=RollbackConfig(1, spike_factor=1.5),
    )


def test_run_that_goes_back_learns_as_if_told_so_from_the_start(config: TrainConfig):
    assert train(config) == 0
    offsets = ((24, 16),)  # step 24 of the program, the 25th of a person, is passed over with the one that spiked
    (event,) = [record for record in read_metrics(config.directory / "metrics.jsonl") if "row_offset" in record]
    assert (event["step"], event["rolled_back_from"], event["row_offset"], event["rollbacks"]) == (24, 26, 16, 1)
    assert "more than 1.5 times its median" in event["reason"]
    assert RunDir.open(config.directory).content["row_offsets"] == [list(one) for one in offsets]
    losses = read_lines(config.directory)
    assert [step for step, _ in losses] == list(range(1, 33))
    told = replace(config, name="told", row_offsets=offsets, rollback=RollbackConfig())
    assert train(told) == 0
    assert read_lines(told.directory) == losses


def test_run_that_was_moved_sets_no_checkpoints_of_a_new_run_aside(tmp_path: Path):
    config = tiny_config(tmp_path / "shards", output_dir=str(tmp_path), name="run")
    run, moved = config.directory, tmp_path / "moved"
    with CheckpointManager(run / "checkpoints", CheckpointConfig()) as checkpoints:
        run.rename(moved)
        (run / "checkpoints/9").mkdir(parents=True)
        before = sorted(run.rglob("*"))
        divergence = Diverged(step=5, last_good=4, reason="the loss is not finite", rollbacks=1)
        with pytest.raises(UserError, match=f"The run cannot go back: {run} is of another command now"):
            roll_back(config, checkpoints, divergence, tokenizer=None, source=None)
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_signal_while_a_run_goes_back_ends_it_and_the_command_resumes(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What comes after the step to which it goes back is not saved, and the line says so."""

    def signal_and_go_back(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return trainer.roll_back(*arguments, **keywords)

    stopped = replace(config, name="stopped", steps=28)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "roll_back", signal_and_go_back)
        assert train(stopped) == 143
    assert "stopped while going back: nothing was to be saved" in capsys.readouterr().out
    assert complete_steps(stopped.directory / "checkpoints") == [12, 24]
    assert train(stopped) == 0
    whole = replace(stopped, name="whole")
    assert train(whole) == 0
    assert read_lines(stopped.directory) == read_lines(whole.directory)


def test_offsets_continue_where_the_run_was(tmp_path: Path):
    config = tiny_config(tmp_path / "shards", steps=100)
    schedule = [(phase.begin, phase.batch) for phase in config.phases]
    once = replace(config, row_offsets=add_offset(config, back_to=24, begun=26))
    twice = replace(once, row_offsets=add_offset(once, back_to=24, begun=30))
    assert twice.row_offsets == ((24, 16), (24, 16 + 6 * 8))
    assert locate_first_row(24, schedule, twice.row_offsets) == locate_first_row(30, schedule, once.row_offsets)
    earlier = replace(twice, row_offsets=add_offset(twice, back_to=10, begun=12))
    assert earlier.row_offsets == ((10, 16),)


def test_resumed_run_takes_offsets_from_its_checkpoint_and_its_config(tmp_path: Path):
    config = tiny_config(tmp_path / "shards", steps=100)
    saved = replace(config, row_offsets=((10, 8),))
    assert adopt_offsets(config, saved, 20) == ((10, 8),)
    config.directory.mkdir(parents=True)
    (config.directory / "config.json").write_text('{"row_offsets": [[10, 8], [20, 24]]}')
    assert adopt_offsets(config, saved, 20) == ((10, 8), (20, 24)), "killed before it saved again"
    typed = replace(config, row_offsets=((5, 3), (30, 99)))
    assert adopt_offsets(typed, saved, 20) == ((10, 8), (30, 99))
    assert adopt_offsets(replace(config, row_offsets=((10, 8),)), saved, 20) == ((10, 8), (20, 24))
    assert adopt_history(config).row_offsets == ((10, 8), (20, 24)), "killed before it saved anything"
    (config.directory / "config.json").write_text('{"row_offsets": 3}')
    assert adopt_offsets(config, saved, 20) == ((10, 8),)
