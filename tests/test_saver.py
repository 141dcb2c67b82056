"""Saves by number and by time; a failed save is reported once, tried again, and ends no training."""

from pathlib import Path
from typing import Any

import pytest
from checkpoint_states import make_state
from tiny import write_text_shards

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.checkpoints.saver import RETRY_SECONDS, Saver
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeCheckpoints(CheckpointManager):
    """Checkpoints on a disk that is full while `full` is set: half of the saves fail at once, half in background."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.attempts: list[int] = []
        self.full = self.later = False
        self.begun: int | None = None

    @property
    def steps(self) -> list[int]:
        return self.saved

    @property
    def has_finished(self) -> bool:
        return self.begun is not None

    def save(self, step: int, state: Any, **_: Any) -> None:
        self.attempts.append(step)
        if self.full and not self.later:
            raise UserError("disk full.")
        self.begun = step

    def wait(self) -> None:
        begun, self.begun = self.begun, None
        if begun is not None and self.full:
            raise UserError("disk full.")
        self.saved += [] if begun is None else [begun]


def make_saver(**config: Any) -> tuple[Saver, FakeCheckpoints, Clock]:
    checkpoints, clock = FakeCheckpoints(), Clock()
    saver = Saver(checkpoints, CheckpointConfig(**config), steps=100, metadata={}, clock=clock)
    return saver, checkpoints, clock


def run_steps(saver: Saver, clock: Clock, steps: range, *, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        if saver.is_due(step):
            saver.save(step, make_state(), loss=None)


def test_saver_saves_by_number_and_by_time():
    saver, checkpoints, clock = make_saver(every=25, every_minutes=1.0)
    run_steps(saver, clock, range(1, 31), seconds=10)
    saver.wait()
    # A minute after the last save, and at 25 in any case.
    assert checkpoints.saved == [6, 12, 18, 24, 25]


def test_several_processes_ask_the_first_one_until_a_save_has_succeeded(monkeypatch: pytest.MonkeyPatch):
    """Asking waits for what is dispatched, in every process. They learn at one step that a save has failed."""
    asked: list[float] = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("gptjax.checkpoints.saver.ask_first", lambda answers: asked.append(clock.now) or answers)
    saver, checkpoints, clock = make_saver(every=95)
    run_steps(saver, clock, range(1, 96), seconds=1)
    saver.wait()
    assert asked == []
    checkpoints.full = checkpoints.later = True
    run_steps(saver, clock, range(1, 96), seconds=1)
    run_steps(saver, clock, range(1, 95), seconds=1)
    assert asked[0] == 95 + 10, "it learns that the first save has succeeded"
    assert asked[1] == 2 * 95 + 10
    assert len(checkpoints.attempts) == 3, "tried again a minute after it has failed"
    checkpoints.full = False
    run_steps(saver, clock, range(1, 95), seconds=1)
    count = len(asked)
    run_steps(saver, clock, range(1, 95), seconds=1)
    assert (len(checkpoints.attempts), len(asked)) == (4, count)
    saver, *_ = make_saver(every=100, every_minutes=1.0)
    saver.is_due(10)
    assert len(asked) == count + 1


@pytest.mark.parametrize("later", [False, True])
def test_failed_save_is_tried_again_with_one_warning(later: bool, capsys: pytest.CaptureFixture[str]):
    saver, checkpoints, clock = make_saver(every=50)
    checkpoints.full, checkpoints.later = True, later
    run_steps(saver, clock, range(49, 90), seconds=RETRY_SECONDS / 10)
    assert checkpoints.attempts[:2] == [50, 61 if later else 60]
    assert len(checkpoints.attempts) >= 4
    out = capsys.readouterr().out
    assert out.count("warning: step 50 was not saved: disk full. Training goes on") == 1
    assert out.count("warning") == 1
    checkpoints.full = False
    run_steps(saver, clock, range(90, 101), seconds=RETRY_SECONDS / 10)
    saver.finish(100, make_state(), loss=None)
    assert checkpoints.saved[-1] == 100
    assert len(checkpoints.saved) == 2  # no retry once a save has succeeded


def test_last_step_that_cannot_be_saved_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """Only after a save do the processes wait for each other: an error ends the others."""
    places: list[str] = []
    monkeypatch.setattr("gptjax.checkpoints.saver.wait_for_processes", places.append)
    saver, checkpoints, _ = make_saver(every=None)
    checkpoints.saved, checkpoints.full = [60], True
    saver.save(100, make_state(), loss=None)
    with pytest.raises(UserError, match=r"step 100 could not be saved. disk full. The last .* of step 60"):
        saver.finish(100, make_state(), loss=None)
    assert checkpoints.attempts == [100, 100]
    assert places == []
    checkpoints.full = False
    saver.finish(100, make_state(), loss=None)
    assert places == ["saved 100"]
    assert checkpoints.saved == [60, 100]


def test_data_that_has_changed_ends_the_run_before_a_save(tmp_path: Path):
    shards = write_text_shards(tmp_path / "shards")
    data = TokenShards(path=str(shards))
    data.open_stream("train")
    checkpoints = FakeCheckpoints()
    saver = Saver(checkpoints, CheckpointConfig(), steps=9, metadata={}, check_data=data.check)
    saver.save(1, make_state(), loss=None)
    file = shards / "train_000001.bin"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file}: its SHA-256 differs"):
        saver.save(2, make_state(), loss=None)
    assert checkpoints.attempts == [1]
