"""A checkpoint counts once all of it is on the disk, and nothing that changed afterwards is believed."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from checkpoint_states import CONFIG, assert_same, list_names, make_abstract_state, make_state, save_steps
from tiny import flip_bit

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.checkpoints.checkpoint_format import find_step
from gptjax.checkpoints.integrity import complete_steps, find_checkpoint_damage
from gptjax.checkpoints.weights import restore_model
from gptjax.core import file_sums
from gptjax.core.errors import UserError
from gptjax.core.file_sums import list_files
from gptjax.model.gpt import abstract_model

FULL = r"File too large \(ulimit -f unlimited raises the limit\)"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    save_steps(directory, 10, 20, losses={10: 3.0, 20: 2.0})
    return directory


@pytest.fixture
def checkpoints(saved: Path, tmp_path: Path) -> Path:
    """Steps 10 and 20 of a run, to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def truncate_to_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


# The order in which a save reaches the disk


def watch_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record (what, path) of every fsync, rename and deletion of a tree, in order."""
    events: list[tuple[str, str]] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def record_fsync(descriptor: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_rename(self: Path, target: Any) -> Path:
        events.append(("rename", str(target)))
        return rename(self, target)

    def record_rmtree(path: Any, *args: Any, **kwargs: Any) -> None:
        events.append(("delete", str(path)))
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    monkeypatch.setattr(shutil, "rmtree", record_rmtree)
    return events


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="file names of descriptors need /proc")
def test_save_syncs_everything_before_it_counts_and_deletes_older_steps_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory, record = tmp_path / "run/checkpoints", tmp_path / "run/metrics.jsonl"
    state = save_steps(directory, 1)
    record.write_text('{"step": 1}\n')
    events = watch_disk(monkeypatch)
    with CheckpointManager(directory, CheckpointConfig(keep=1), list_logs=lambda: [record]) as manager:
        manager.save(2, state, metadata={}, best_value=None)
        manager.wait()
    monkeypatch.undo()
    counts = events.index(("rename", str(directory / "2")))
    before, after = events[:counts], events[counts + 1 :]
    unfinished = directory / "2.unfinished"
    names = list_files(directory / "2")
    folders = {str((unfinished / name).parent) for name in names}
    wanted = {str(unfinished / name) for name in names} | folders | {str(record), str(record.parent)}
    synced = [path for what, path in before if what == "sync"]
    assert wanted <= set(synced)
    sums = next(i for i, path in enumerate(synced) if ".checksums.json." in path)
    assert wanted - {str(unfinished)} <= set(synced[:sums])  # the sums come after what they count
    assert synced[-1] == str(unfinished)  # the entry of the sums themselves
    assert after[0] == ("sync", str(directory))
    assert ("delete", str(directory / "1.deleted")) in after
    assert not [event for event in before if event[0] == "delete"]
    assert list_names(directory) == {"2"}


def test_new_directories_are_synced_in_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events = watch_disk(monkeypatch)
    with CheckpointManager(tmp_path / "runs/one/checkpoints", CheckpointConfig()):
        pass
    synced = [path for what, path in events if what == "sync"]
    assert synced[:3] == [str(tmp_path), str(tmp_path / "runs"), str(tmp_path / "runs/one")]


# Damage


def test_flipped_bit_in_any_file_is_named_and_its_step_passed_over(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    names = [*list_files(checkpoints / "20"), "checksums.json"]
    assert len(names) > 10
    for name in names:
        content = (checkpoints / "20" / name).read_bytes()
        flip_bit(checkpoints / "20" / name)
        (problem,) = find_checkpoint_damage(checkpoints / "20")
        assert str(checkpoints / "20" / name) in problem
        assert find_step(checkpoints, "latest", items=None) == find_step(checkpoints, "best", items=None) == 10
        warning = capsys.readouterr().err
        assert warning.count("Step 10 is used instead of 20.") == 1, "said once"
        assert name in warning
        (checkpoints / "20" / name).write_bytes(content)
    assert find_checkpoint_damage(checkpoints / "20") == []
    assert find_step(checkpoints, "latest", items=None) == 20


@pytest.mark.parametrize("damage", [Path.unlink, truncate_to_half, flip_bit])
def test_damaged_weights_are_not_read(checkpoints: Path, damage: Any):
    file = max((checkpoints / "20/model").rglob("d/*"), key=lambda file: file.stat().st_size)
    damage(file)
    with pytest.raises(UserError, match=rf"{file}.*Use step 10"):
        restore_model(checkpoints, abstract_model(CONFIG), step=20)
    assert find_step(checkpoints, "latest") == 10
    assert_same(restore_model(checkpoints, abstract_model(CONFIG), step=10), make_state().model)


def test_damaged_optimizer_does_not_keep_weights_from_being_read(checkpoints: Path):
    flip_bit(max((checkpoints / "20/optimizer").rglob("d/*"), key=lambda file: file.stat().st_size))
    assert find_step(checkpoints, "latest") == 20
    assert_same(restore_model(checkpoints, abstract_model(CONFIG), step=20), make_state().model)


def test_run_goes_on_from_the_newest_undamaged_step(checkpoints: Path, capsys: pytest.CaptureFixture[str]):
    flip_bit(max((checkpoints / "20/optimizer").rglob("d/*"), key=lambda file: file.stat().st_size))
    with CheckpointManager(checkpoints, CheckpointConfig()) as manager:
        assert manager.choose_step() == 10
        assert_same(manager.restore(make_abstract_state(), 10), make_state())
        assert "Checkpoint 20 is passed over; training keeps it as 20.damaged" in capsys.readouterr().out
        assert list_names(checkpoints) == {"10", "20"}  # the start may still be refused
        manager.clear()
        manager.save(20, make_state(), metadata={}, best_value=None)
    assert list_names(checkpoints) == {"10", "20", "20.damaged"}
    flip_bit(checkpoints / "10/metadata/metadata")
    (checkpoints / "20/counters/_METADATA").unlink()
    with (
        CheckpointManager(checkpoints, CheckpointConfig()) as manager,
        pytest.raises(UserError, match=r"checkpoint left\. Passed over: 10, 20, 20\.damaged\. .*mv .*\.damaged$"),
    ):
        manager.choose_step()


def test_checkpoint_of_an_earlier_version_is_complete_without_sums(checkpoints: Path):
    """Yet one whose sums were deleted is not."""
    (checkpoints / "20/checksums.json").unlink()
    assert complete_steps(checkpoints) == [10]
    metadata = checkpoints / "20/metadata/metadata"
    content = json.loads(metadata.read_text())
    del content["checksums"]
    metadata.write_text(json.dumps(content))
    assert complete_steps(checkpoints) == [10, 20]
    assert find_checkpoint_damage(checkpoints / "20") == []
    assert_same(restore_model(checkpoints, abstract_model(CONFIG), step=20), make_state().model)


def test_best_compares_only_losses_of_the_same_metric(tmp_path: Path):
    state = save_steps(tmp_path, 1, losses={1: 0.5})
    with CheckpointManager(tmp_path, CheckpointConfig(best_metric="val_loss/books", keep=9)) as manager:
        for step, loss in ((2, 3.0), (3, float("nan")), (4, 4.0), (5, None)):
            manager.save(step, state, metadata={}, best_value=loss)
        manager.wait()
        assert manager.best == 2


def test_file_that_the_medium_cannot_read_is_damage(checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    bad = max((checkpoints / "20/optimizer").rglob("d/*"), key=lambda file: file.stat().st_size)
    read = file_sums.sum_file

    def fail(path: Path, **options: Any) -> Any:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path, **options)

    monkeypatch.setattr(file_sums, "sum_file", fail)
    assert find_checkpoint_damage(checkpoints / "20") == [f"{bad} cannot be read (Input/output error)"]
    with CheckpointManager(checkpoints, CheckpointConfig()) as manager:
        assert manager.choose_step() == 10


def test_file_that_the_user_may_not_read_is_no_damage(checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, **_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(file_sums, "sum_file", refuse)
    with CheckpointManager(checkpoints, CheckpointConfig()) as manager, pytest.raises(PermissionError):
        manager.choose_step()
    assert list_names(checkpoints) == {"10", "20"}


def test_older_step_that_cannot_be_deleted_does_not_fail_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    state = save_steps(tmp_path, 1)

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with CheckpointManager(tmp_path, CheckpointConfig(keep=1)) as manager:
        manager.save(2, state, metadata={}, best_value=None)
        manager.wait()
        assert manager.steps == [2]
    assert "checkpoints older than 2 cannot be deleted" in capsys.readouterr().out


def test_files_of_other_people_are_left_alone(tmp_path: Path):
    names = {"notes.begun", "30.x.y.z.begun", "30.deleted", "notes.unfinished"}
    for name in names:
        (tmp_path / name).touch()
    with CheckpointManager(tmp_path, CheckpointConfig()) as manager:
        assert manager.steps == []
    assert list_names(tmp_path) == names


@pytest.mark.parametrize("name", ["lr[1]", "a*b", "a?", "a\\b"])
def test_path_that_orbax_reads_as_a_pattern_is_refused(name: str, tmp_path: Path):
    """It would find nothing, and end a save without its arrays."""
    with pytest.raises(UserError, match=r"has the characters . in it, and no checkpoint can be saved there"):
        CheckpointManager(tmp_path / name / "checkpoints", CheckpointConfig())
    assert not list(tmp_path.iterdir())


def test_save_into_a_run_that_was_moved_makes_no_second_one(tmp_path: Path):
    """Orbax would make the directories again, without the config, and without the checkpoints so far."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    state = save_steps(run / "checkpoints", 1)
    with CheckpointManager(run / "checkpoints", CheckpointConfig()) as manager:
        run.rename(moved)
        with pytest.raises(UserError, match=f"could not be written: {run} was moved or deleted; put it back"):
            manager.save(2, state, metadata={}, best_value=None)
        assert not run.exists()
        strange = run / "checkpoints/2.unfinished"
        strange.mkdir(parents=True)  # of a new run of this name, which has saved more
        (run / "checkpoints/2").mkdir()
        before = sorted(run.rglob("*"))
        with pytest.raises(UserError, match=f"{run} is of another command now: this run was moved; put it back"):
            manager.save(2, state, metadata={}, best_value=None)
        assert sorted(run.rglob("*")) == before
        shutil.rmtree(run)
        moved.rename(run)
        manager.save(2, state, metadata={}, best_value=None)
        manager.wait()
        assert manager.steps == [1, 2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `report_unraisable` is silent there
def test_full_disk_is_one_error_without_tracebacks_of_threads(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """A limit of the size of files stands for the disk."""
    state = save_steps(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointManager(tmp_path, CheckpointConfig()) as manager:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        try:
            manager.save(2, state, metadata={}, best_value=None)
            with pytest.raises(UserError, match=rf"A checkpoint in {tmp_path} could not be written: {FULL}\."):
                manager.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert manager.steps == [1]
        manager.save(2, state, metadata={}, best_value=None)
        manager.wait()
        assert manager.steps == [1, 2]
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr("gptjax.checkpoints.checkpoint.commit_checkpoint", Mock(side_effect=full))
        manager.save(3, state, metadata={}, best_value=None)
        with pytest.raises(UserError, match=r"No space left on device\. A checkpoint takes .* free on its file system"):
            manager.wait()
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not caplog.records
