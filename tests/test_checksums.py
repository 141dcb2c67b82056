"""What has changed since it was prepared is named at the next start, and what has not is not read again."""

import json
import os

import numpy as np
import pytest
from tiny import tokenizer, write_shards

from gptjax import integrity
from gptjax.core.errors import UserError
from gptjax.data.checksums import VERIFIED_FILE, check_unchanged, verify_shards
from gptjax.data.config import TokenShards


@pytest.fixture
def directory(tmp_path):
    splits = {"train": [np.arange(40), np.arange(9)], "val": [np.arange(20)]}
    beside = {("train", "documents"): np.array([0, 11, 40])}
    return write_shards(tmp_path / "shards", splits, own=tokenizer(), sidecars=beside)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train_000000.bin", "val_000000.bin", "train.documents"])
def test_a_changed_byte_is_named_at_the_next_start(directory, name):
    TokenShards(path=str(directory)).load_tokenizer()
    flip(directory / name, 8 if name.endswith("documents") else 1030)
    with pytest.raises(UserError, match=rf"{name}: its SHA-256 differs from manifest\.json"):
        TokenShards(path=str(directory)).load_tokenizer()
    with pytest.raises(UserError, match=name):
        verify_shards(directory)


def test_what_was_found_right_is_read_once(directory, monkeypatch):
    read = []
    real = integrity.file_sha256
    monkeypatch.setattr(integrity, "file_sha256", lambda path: read.append(path.name) or real(path))
    check_unchanged(directory)
    assert sorted(read) == ["train.documents", "train_000000.bin", "train_000001.bin", "val_000000.bin"]
    check_unchanged(directory)
    assert len(read) == 4
    os.utime(directory / "train_000001.bin")
    check_unchanged(directory)
    assert read[4:] == ["train_000001.bin"]
    (directory / VERIFIED_FILE).write_text("not JSON")
    check_unchanged(directory)
    assert len(read) == 9


def test_a_change_whose_time_was_set_back_is_named(directory):
    check_unchanged(directory)
    path = directory / "val_000000.bin"
    before = path.stat()
    flip(path, 1030)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"val_000000\.bin: its SHA-256 differs"):
        check_unchanged(directory)


def test_foreign_shards_have_nothing_to_compare_and_missing_files_are_named(directory, tmp_path):
    foreign = write_shards(tmp_path / "foreign", {"train": [np.arange(40)]})
    check_unchanged(foreign)
    assert not (foreign / VERIFIED_FILE).exists()
    (directory / "train.documents").unlink()
    with pytest.raises(UserError, match=r"train\.documents: missing"):
        check_unchanged(directory)


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
def test_a_manifest_that_says_too_little_is_refused(directory, change, split, message):
    content = json.loads((directory / "manifest.json").read_text())
    change(content)
    (directory / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        TokenShards(path=str(directory)).split(split)
    with pytest.raises(UserError, match=message):
        verify_shards(directory)
