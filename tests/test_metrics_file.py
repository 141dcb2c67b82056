"""Reading, truncating and writing metrics.jsonl."""

import json
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.metrics.metrics_file import MetricsFileWriter, find_number, read_metrics, to_scalar, truncate_after


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_read_metrics_names_an_invalid_line(path: Path):
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a record"):
        read_metrics(path)
    with pytest.raises(UserError, match="There is no file"):
        read_metrics(path.with_name("other.jsonl"))


def test_truncate_after_keeps_bytes_of_earlier_steps(path: Path):
    path.write_text('{"step": 1,  "loss": 2.50}\n{"step": 3}\n{"step":2}\n{"step": 2, "lo')
    assert truncate_after(path, 2) == [{"step": 1, "loss": 2.5}, {"step": 2}]
    assert path.read_text() == '{"step": 1,  "loss": 2.50}\n{"step":2}\n'
    assert truncate_after(path.with_name("none.jsonl"), 0) == []
    before = path.read_bytes()
    assert truncate_after(path, 0) == []
    assert path.with_name("metrics.jsonl.before").read_bytes() == before


def test_truncate_after_names_what_is_missing_and_keeps_what_is_broken(path: Path, capsys: pytest.CaptureFixture[str]):
    content = '{"step": 1, "loss": 2.5}\n{"ste\n{"step": 2, "val_loss": 3.0}\n{"step": 4, "loss": 1.0}\n'
    path.write_text(content)
    assert [record["step"] for record in truncate_after(path, 4)] == [1, 2, 4]
    assert path.with_name("metrics.jsonl.broken").read_text() == content
    assert len(read_metrics(path)) == 3
    broken, gap = capsys.readouterr().out.splitlines()
    assert "metrics.jsonl, line 2: no record with a step. 1 line is left out" in broken
    assert "lacks 2 of the 4 steps so far, from 2 to 3" in gap
    path.unlink()
    assert truncate_after(path, 4) == []
    assert "lacks 4 of the 4 steps so far, from 1 to 4" in capsys.readouterr().out


def test_writer_keeps_lines_for_later_on_a_full_disk(path: Path, capsys: pytest.CaptureFixture[str]):
    path.write_text('{"step": 1}\n')
    writer = MetricsFileWriter(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        for step in (2, 3):
            writer.write({"step": step, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_text() == '{"step": 1}\n'  # no part of a line
    assert capsys.readouterr().out.count("warning") == 1
    writer.write({"step": 4, "loss": 1.0})
    writer.close()
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]


def test_writer_writes_a_deleted_file_again_and_follows_one_that_was_edited(
    path: Path, capsys: pytest.CaptureFixture[str]
):
    path.write_text('{"step": 1}\n')
    writer = MetricsFileWriter(path)
    writer.write({"step": 2})
    path.unlink()
    writer.write({"step": 3})
    assert "was deleted; its lines are written again" in capsys.readouterr().out
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    edited = path.with_name("edited")
    edited.write_text('{"step": 2}\n')
    edited.replace(path)
    writer.write({"step": 4})
    assert [record["step"] for record in read_metrics(path)] == [2, 4]
    moved = path.parent.rename(path.parent.with_name(f"{path.parent.name} moved"))
    writer.write({"step": 5})
    path.parent.mkdir()  # a new run has the name
    writer.write({"step": 6})
    assert not path.exists()
    path.write_text('{"step": 1}\n')
    writer.write({"step": 7})
    writer.close()
    assert path.read_text() == '{"step": 1}\n'
    assert [record["step"] for record in read_metrics(moved / path.name)] == [2, 4, 5, 6, 7]


def test_writer_keeps_lines_for_later_while_its_file_cannot_be_opened_again(
    path: Path, capsys: pytest.CaptureFixture[str]
):
    path.write_text('{"step": 1}\n')
    writer = MetricsFileWriter(path)
    path.unlink()
    path.mkdir()
    for step in (2, 3):
        writer.write({"step": step})
    assert capsys.readouterr().out.count("cannot be written (Is a directory)") == 1
    path.rmdir()
    writer.write({"step": 4})
    writer.close()
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]


def test_number_that_an_edit_has_spoilt_counts_as_none():
    record = {"a": 1, "b": None, "c": "x", "d": [], "e": {}, "f": 10**400}
    assert {name: find_number(record, name) for name in (*record, "g")} == dict.fromkeys("abcdefg") | {"a": 1.0}


@pytest.mark.parametrize("step", ["-1", "1e3", "true1", "null", str(10**400)])
def test_line_of_an_impossible_step_is_no_record(path: Path, step: str):
    path.write_text(f'{{"step": 1, "loss": 1.0}}\n{{"step": {step}, "loss": 1.0}}\n')
    assert [record["step"] for record in truncate_after(path, 1)] == [1]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.float32(0.1), 0.1),
        (np.float64(0.1), 0.1),
        (np.int32(3), 3),
        (np.bool_(True), 1),
        ("Once", "Once"),
        (2, 2),
        (np.inf, None),
    ],
)
def test_writer_writes_short_json_numbers(path: Path, value: Any, wanted: Any):
    writer = MetricsFileWriter(path)
    writer.write({"step": 1, "value": to_scalar(value)})
    writer.close()
    assert json.loads(path.read_text()) == {"step": 1, "value": wanted}
