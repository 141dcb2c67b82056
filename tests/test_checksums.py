"""Checksums: what has changed since it was prepared is named at the next start, and the rest is not read again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import flip_bit, tokenizer, write_shards

from gptjax.core import file_sums
from gptjax.core.errors import UserError
from gptjax.core.file_sums import FileSum, sum_file
from gptjax.data import checksums
from gptjax.data.checksums import VERIFIED_FILE, check_unchanged, verify_shards
from gptjax.data.config import TokenShards
from gptjax.process.progress import count_progress


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    splits = {"train": [np.arange(40), np.arange(9)], "val": [np.arange(20)]}
    beside = {("train", "documents"): np.array([0, 11, 40])}
    return write_shards(tmp_path / "shards", splits, own=tokenizer(), sidecars=beside)


@pytest.mark.parametrize("name", ["train_000000.bin", "val_000000.bin", "train.documents"])
def test_open_stream_after_a_changed_byte_names_the_file(directory: Path, name: str) -> None:
    TokenShards(path=str(directory)).open_stream("train")
    flip_bit(directory / name, 8 if name.endswith("documents") else 1030)
    with pytest.raises(UserError, match=rf"{name}: its SHA-256 differs from manifest\.json"):
        TokenShards(path=str(directory)).open_stream("train")
    with pytest.raises(UserError, match=name):
        verify_shards(directory)


def test_check_unchanged_reads_each_file_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def record(path: Path, **keywords: Any) -> FileSum:
        read.append(path.name)
        return sum_file(path, **keywords)

    monkeypatch.setattr(checksums, "sum_file", record)
    monkeypatch.setattr(file_sums, "READ_BYTES", 1000)
    before = count_progress()
    check_unchanged(directory)
    parts = sum(-(-(directory / name).stat().st_size // 1000) for name in read)
    assert count_progress() - before == parts > len(read), "a watchdog sees that a large file is being read"
    assert sorted(read) == ["train.documents", "train_000000.bin", "train_000001.bin", "val_000000.bin"]
    check_unchanged(directory)
    assert len(read) == 4
    os.utime(directory / "train_000001.bin", ns=(1, 1))
    check_unchanged(directory)
    assert read[4:] == ["train_000001.bin"]
    (directory / VERIFIED_FILE).write_text("not JSON")
    check_unchanged(directory)
    assert len(read) == 9


def test_check_unchanged_finds_a_change_with_its_time_set_back(directory: Path) -> None:
    check_unchanged(directory)
    path = directory / "val_000000.bin"
    before = path.stat()
    flip_bit(path, 1030)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"val_000000\.bin: its SHA-256 differs"):
        check_unchanged(directory)


def test_check_unchanged_skips_foreign_shards_and_names_missing_files(directory: Path, tmp_path: Path) -> None:
    foreign = write_shards(tmp_path / "foreign", {"train": [np.arange(40)]})
    check_unchanged(foreign)
    assert not (foreign / VERIFIED_FILE).exists()
    (directory / "train.documents").unlink()
    with pytest.raises(UserError, match=r"train\.documents: missing"):
        check_unchanged(directory)


def test_check_of_foreign_shards_names_what_changed_while_they_were_read(tmp_path: Path) -> None:
    foreign = write_shards(tmp_path / "foreign", {"train": [np.arange(40), np.arange(40)]})
    data = TokenShards(path=str(foreign))
    data.check()
    data.open_stream("train")
    write_shards(tmp_path / "more", {"train": [np.arange(9)]})
    (tmp_path / "more" / "train_000000.bin").rename(foreign / "train_000002.bin")
    data.check()
    flip_bit(foreign / "train_000001.bin", 1030)
    os.utime(foreign / "train_000001.bin", ns=(1, 1))
    with pytest.raises(UserError, match=r"train_000001\.bin was written to after this run began to read it"):
        data.check()
    data.open_stream("train")  # as the next start reads it
    data.check()
    (foreign / "train_000000.bin").unlink()
    with pytest.raises(UserError, match=r"train_000000\.bin was removed"):
        data.check()


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (
            lambda m: m["splits"].pop("val"),
            "val",
            "of the split 'val', of which manifest.json says nothing",
        ),
        (lambda m: m["companions"].clear(), "train", r"not listed train\.documents"),
    ],
)
def test_open_with_incomplete_manifest_is_an_error(
    directory: Path, change: Callable[[dict[str, Any]], Any], split: str, message: str
) -> None:
    content = json.loads((directory / "manifest.json").read_text())
    change(content)
    del content["sha256"]  # a person did it
    (directory / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        TokenShards(path=str(directory)).open_stream(split)
    with pytest.raises(UserError, match=message):
        verify_shards(directory)


def test_data_that_is_replaced_with_its_manifest_is_noticed_while_it_is_read(directory: Path) -> None:
    data = TokenShards(path=str(directory))
    data.open_stream("train")
    data.check()
    other = write_shards(
        directory.with_name("other"), {"train": [np.arange(30)], "val": [np.arange(20)]}, own=tokenizer()
    )
    shutil.rmtree(directory)
    other.rename(directory)
    with pytest.raises(UserError, match=r"manifest\.json was replaced after this run began"):
        data.check()
    data.open_stream("train")
    data.check()
