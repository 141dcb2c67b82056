"""`python -m gptjax.verify` names every damaged file of runs and of prepared data."""

import json
import shutil
from pathlib import Path

import pytest
from checkpoint_states import make_state
from tiny import flip_bit, tiny_config, tokenizer, write_text_shards

import gptjax.verify
from data_pipelines.prepare import Prepare, prepare
from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.checkpoints.integrity import find_checkpoint_damage
from gptjax.core.errors import UserError
from gptjax.core.file_sums import SUMS_FILE, drop_sums, read_sums, sum_directory, sum_file, write_sum_beside, write_sums
from gptjax.core.files import file_sha256
from gptjax.runs.run_dir import CHECKPOINTS, METRICS, write_run_files
from gptjax.runs.run_sums import list_logs, seal_run, warn_of_changed_logs
from gptjax.verify import main, verify


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "runs/tiny"
    write_run_files(directory, tiny_config(tmp_path / "shards"), tokenizer(), source="config = None\n")
    (directory / METRICS).write_text('{"step": 1}\n')
    with CheckpointManager(
        directory / CHECKPOINTS, CheckpointConfig(), list_logs=lambda: list_logs(directory)
    ) as checkpoints:
        checkpoints.save(1, make_state(), metadata={}, best_value=None)
    with (directory / METRICS).open("a") as file:
        file.write('{"step": 2}\n')
    return directory


def test_verify_reads_runs_and_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shards = write_text_shards(tmp_path / "shards")
    main([str(run), str(shards)])
    files, checkpoint, _, logs, data = capsys.readouterr().out.splitlines()
    assert "config.json, config.py, environment.json, tokenizer.json are unchanged" in files
    assert checkpoint == f"{run}/checkpoints/1: unchanged"
    assert logs == f"{run}: not summed yet: 12 bytes of metrics.jsonl, written since the last checkpoint"
    assert data.startswith(f"{shards}: 3 shards")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "metrics.jsonl", "checksums.json"])
def test_verify_names_a_damaged_file_of_a_run(run: Path, name: str):
    flip_bit(run / name)
    (problem,) = verify(run)
    assert str(run / name) in problem


@pytest.mark.parametrize("name", ["train.npy", "reference.json", "1/train.npy", "1/reference.json"])
def test_verify_names_a_damaged_file_of_a_stored_reference(run: Path, name: str, capsys: pytest.CaptureFixture[str]):
    """Of a single source, or of each component of a mixture; also if it is gone."""
    for folder in (run / "reference", run / "reference/1"):
        folder.mkdir()
        (folder / "train.npy").write_bytes(bytes(64))
        (folder / "reference.json").write_text(json.dumps({"sha256": {"train": file_sha256(folder / "train.npy")}}))
    write_run_files(run, tiny_config(run.parent / "shards"), tokenizer())
    assert verify(run) == []
    assert f"{run}/reference/1: train.npy is unchanged" in capsys.readouterr().out
    flip_bit(run / "reference" / name)
    (problem,) = verify(run)
    assert problem.startswith(f"{run}/reference/{name} has changed since it was written")
    (run / "reference" / name).unlink()
    (problem,) = verify(run)
    assert problem.startswith(f"{run}/reference/{name} is missing")


def save_step(run: Path, step: int, **texts: str) -> None:
    """Add texts to logs of a run, and save a step."""
    for name, text in texts.items():
        with (run / {"metrics": METRICS, "console": "console.log"}[name]).open("a") as file:
            file.write(text)
    keep = CheckpointConfig(keep_every=1)
    with CheckpointManager(run / CHECKPOINTS, keep, list_logs=lambda: list_logs(run)) as checkpoints:
        checkpoints.save(step, make_state(), metadata={}, best_value=None)


@pytest.mark.parametrize("again", ["shorter", "also longer than it was before"])
def test_log_that_was_begun_anew_is_told_once_and_is_no_damage(
    run: Path, again: str, capsys: pytest.CaptureFixture[str]
):
    save_step(run, 2, console="the first start\n")
    (run / "console.log").unlink()
    assert verify(run) == []
    assert f"note: {run}/console.log is missing; it had 16 bytes when step 2 was saved" in capsys.readouterr().out
    save_step(run, 3, console=again)
    save_step(run, 4, console="more")
    assert verify(run) == []
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    told = "was begun anew, or repaired, after step 2 was saved and before step 3 was saved; since then it is unchanged"
    assert notes == [f"note: {run}/console.log {told}"]
    flip_bit(run / "console.log")
    (problem,) = verify(run)
    where = "from when it began until step 3 was saved" if again == "shorter" else "from when it began until step 2"
    assert f"of the time {where}" in problem


def test_metrics_that_were_repaired_are_a_note_once_the_run_has_summed_them(run: Path):
    save_step(run, 2)
    (run / METRICS).write_text('{"step": 2}\n')
    (problem,) = verify(run)
    assert "If you changed it yourself, the next start of the run sums it anew" in problem
    seal_run(run)
    assert verify(run) == []


def test_change_after_a_log_was_begun_anew_lies_between_steps_in_their_order(run: Path):
    for step, text in ((2, "x" * 90), (3, "y" * 9), (4, "z" * 99)):
        if step == 3:
            (run / "console.log").unlink()
        save_step(run, step, console=text)
    (run / "console.log").write_text("y" * 9 + "z" * 98 + "!")
    (problem,) = verify(run)
    assert "between its bytes 9 and 108, of the time from when step 3 was saved until step 4 was saved" in problem


def test_checkpoint_that_is_gone_since_the_end_of_a_run_is_named(run: Path, capsys: pytest.CaptureFixture[str]):
    save_step(run, 2)
    seal_run(run)
    first, second = (run / CHECKPOINTS / str(step) for step in (1, 2))
    shutil.rmtree(first)
    assert verify(run) == []
    assert f"note: {first} is missing; it was there when the run ended" in capsys.readouterr().out
    second.rename(second.with_name("2.damaged"))
    missing, none_left = verify(run)
    assert missing == f"{first} is missing; it was there when the run ended"
    assert none_left == f"{run}/checkpoints has no whole checkpoint left, only what was passed over: 2.damaged"
    shutil.rmtree(run / CHECKPOINTS)
    assert [str(path) in line for path, line in zip((first, second), verify(run), strict=True)] == [True, True]
    warn_of_changed_logs(run)
    assert f"warning: {second} is missing; it was there when the run ended" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["loss.png", "traceback-1.txt", "metrics.jsonl.broken", "wandb_id"])
def test_file_that_may_be_thrown_away_is_a_note(run: Path, name: str, capsys: pytest.CaptureFixture[str]):
    (run / name).write_text("written by the run")
    seal_run(run)
    (run / name).unlink()
    assert verify(run) == []
    assert f"note: {run / name} was deleted" in capsys.readouterr().out


def test_logs_of_an_earlier_build_are_not_called_new(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "goodput.jsonl").write_text("{}\n")
    assert verify(run) == []
    lines = capsys.readouterr().out.splitlines()
    assert f"{run}: metrics.jsonl is unchanged" in lines
    assert lines[-1] == f"{run}: without sums: goodput.jsonl (begun since the last checkpoint, or by an earlier gptjax)"


def test_verify_names_all_damaged_files_at_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shards = write_text_shards(tmp_path / "shards")
    damaged = [
        shards / "train_000001.bin",
        shards / "val_000000.bin",
        run / "config.py",
        *sorted((run / CHECKPOINTS / "1").rglob("d/*")),
    ]
    assert len(damaged) > 4
    for path in damaged:
        flip_bit(path)
    with pytest.raises(SystemExit) as stopped:
        main([str(run), str(shards)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {len(damaged)} differ")
    for path in damaged:
        assert str(path) in error


def test_step_that_a_live_run_deletes_meanwhile_is_no_problem(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def find_late(path: Path) -> list[str]:
        shutil.rmtree(path)
        return find_checkpoint_damage(path)

    monkeypatch.setattr(gptjax.verify, "find_checkpoint_damage", find_late)
    assert verify(run) == []
    assert "checkpoints/1: deleted meanwhile" in capsys.readouterr().out


@pytest.mark.parametrize(("why", "is_read"), [("after_1", True), ("rolled_back", True), ("damaged", False)])
def test_verify_reads_checkpoints_that_a_run_has_gone_back_from(run: Path, why: str, is_read: bool):
    aside = run / CHECKPOINTS / f"2.{why}"
    shutil.copytree(run / CHECKPOINTS / "1", aside)
    flip_bit(file := min(aside.rglob("d/*")))
    assert [str(file) in problem for problem in verify(run)] == [True] * is_read


def test_verify_lists_files_of_which_nothing_is_known(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert verify(run) == []
    assert "not compared" not in capsys.readouterr().out
    for name in ("wandb/a/b", "wandb/c", "checkpoints/1/model/stray", "notes.txt", ".lock", "checkpoints/1.after_1"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    shutil.copytree(run / CHECKPOINTS / "1", aside := run / CHECKPOINTS / "0.damaged")
    count = sum(path.is_file() for path in aside.rglob("*"))
    assert verify(run) == []
    *_, line = capsys.readouterr().out.splitlines()
    files = f"checkpoints/0.damaged/ ({count} files), checkpoints/1/model/stray, notes.txt, wandb/ (2 files)"
    assert line == f"{run}: not compared, for nothing is known of it: {files}"
    shards = write_text_shards(tmp_path / "shards")
    (shards / "README.md").write_text("x")
    assert verify(shards) == []
    assert capsys.readouterr().out.endswith("nothing is known of it: README.md\n")


@pytest.mark.parametrize("name", ["console.log", "goodput.jsonl", "tensorboard/events"])
def test_start_tells_of_every_log_that_is_shorter_or_gone(run: Path, name: str, capsys: pytest.CaptureFixture[str]):
    path = run / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("a" * 50)
    save_step(run, 2)
    with path.open("a") as file:
        file.write("b" * 50)
    save_step(run, 3)
    for content, said in (
        ("a" * 50 + "b" * 49, f"{path} has 99 bytes; 100 were written when step 3 was saved. The run"),
        ("a" * 49 + "c" + "b" * 49, "has 99 bytes; 100 were written when step 3 was saved. What is left has changed"),
        (None, f"{name} of {run} is missing, and there when step 3 was saved. The run goes on"),
    ):
        path.write_text(content) if content else path.unlink()
        warn_of_changed_logs(run)
        (line,) = capsys.readouterr().out.splitlines()
        is_needed = content is not None or name == "goodput.jsonl"
        assert line.startswith("warning: " if is_needed else "note: ")
        assert said in line
        if content and "c" in content:
            assert "bytes 0 and 50, of the time from when it began until step 2 was saved" in line


def test_start_that_sums_a_changed_log_anew_tells_of_it(run: Path, capsys: pytest.CaptureFixture[str]):
    warn_of_changed_logs(run)
    assert capsys.readouterr().out == ""
    flip_bit(run / METRICS)
    warn_of_changed_logs(run)
    said = f"warning: {run / METRICS} has changed since it was written: between its bytes 0 and 12, of the time from"
    assert capsys.readouterr().out.startswith(said)


def test_verify_finds_what_lies_below_a_directory(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shards = write_text_shards(tmp_path / "data/shards")
    tokenizer().save(export := run / "hf")
    sum_directory(export)
    for name in ("notes.txt", "package/checkpoints/module.py", "package/manifest.json", ".start-0123456789ab/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"x")
    write_sum_beside(tmp_path / "data/model.gguf", sum_file(tmp_path / "model.gguf"))
    (tmp_path / "model.gguf").rename(tmp_path / "data/model.gguf")
    main([str(tmp_path)])
    *lines, summed, rest = capsys.readouterr().out.splitlines()
    counts = "1 folder with sums, 1 data set, 1 run, 1 tokenizer"
    assert summed == f"{tmp_path}: {counts}: as written"
    assert rest == f"{tmp_path}: not compared, for nothing is known of it: notes.txt, package/ (2 files)"
    assert not [line for line in lines if "not compared" in line]
    flip_bit(export / "tokenizer.json")
    flip_bit(shards / "train_000000.bin")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    said = capsys.readouterr()
    assert f"{tmp_path}: {counts}: 2 of 4 differ or cannot be read" in said.out
    assert said.err.startswith("error: 2 differ")
    for path in (export / "tokenizer.json", shards / "train_000000.bin"):
        assert str(path) in said.err


def test_run_that_has_saved_nothing_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "runs/tiny"
    (run / CHECKPOINTS).mkdir(parents=True)
    (run / "console.log").write_text("config x\n")
    (run / ".lock").write_text("1")
    main([str(run)])
    assert f"{run}: this run has saved nothing, so there is nothing to compare" in capsys.readouterr().out
    write_run_files(run, tiny_config(tmp_path / "shards"), tokenizer())
    main([str(run)])
    assert f"{run}: has no checkpoint: none was saved, or none is left" in capsys.readouterr().out


def test_verify_refuses_what_is_no_run(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="neither a run"):
        verify(tmp_path)


def test_verify_says_what_is_missing(run: Path):
    (run / METRICS).unlink()
    (run / "config.json").unlink()
    assert [problem.split(";")[0] for problem in verify(run)] == [
        f"{run}/config.json is missing (No such file or directory)",
        f"{run}/metrics.jsonl is missing",
    ]


def test_sums_of_a_folder_that_is_written_anew_go_and_all_others_stay(run: Path):
    """The start may still be refused."""
    before = read_sums(run)
    assert before is not None
    write_sums(run, before[0] | {"reference/train.npy": before[0]["config.json"]}, extra=before[1])
    drop_sums(run, "reference")
    assert read_sums(run) == before
    (run / SUMS_FILE).write_text("{}")
    drop_sums(run, "reference")  # the next start tells that it is damaged
    assert (run / SUMS_FILE).read_text() == "{}"


def test_verify_says_that_the_sums_of_a_run_are_missing(run: Path):
    (run / "checksums.json").unlink()
    (problem,) = verify(run)
    assert problem.startswith(f"{run}/checksums.json is missing")


def test_directory_that_is_no_run_does_not_hide_what_is_wrong_with_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (empty := tmp_path / "empty").mkdir()
    flip_bit(run / "config.json")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "absent"), str(run), str(run), str(empty)])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 1 differ from what was written:"
    assert f"{run}/config.json" in lines[1]
    assert f"{tmp_path}/absent does not exist." in lines[2]
    assert f"{empty} is neither a run" in lines[3]


def test_verify_refuses_other_directories(tmp_path: Path):
    with pytest.raises(UserError, match="neither a run"):
        verify(tmp_path)


def test_verify_names_every_file_of_prepared_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, data = tmp_path / "text.txt", tmp_path / "data"
    source.write_text("one two three\n" * 9)
    prepare(Prepare(source=str(source), output=data, tokenizer="bytes", split="none", processes=1))
    verify(data)
    for file in sorted(data.iterdir()):
        content = file.read_bytes()
        for place in (0, len(content) // 3, len(content) // 2, len(content) - 2):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert file.name.startswith(".") or file.name in " ".join(verify(data)), (file, place)
        file.write_bytes(content)
