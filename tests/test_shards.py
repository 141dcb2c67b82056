"""Shards, streams, splits and their manifest: what is written is read, and what is damaged is named."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import edit_manifest

from gptjax.core.errors import UserError
from gptjax.core.files import file_sha256
from gptjax.data.checksums import verify_shards
from gptjax.data.manifest import Counts, Manifest, ShardFile, Sidecar, read_manifest
from gptjax.data.shards import open_shard, token_dtype, write_shard
from gptjax.data.splits import open_split


def draw_tokens(n: int, dtype: type = np.uint16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 60_000, n).astype(dtype)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three train files and one val file with their manifest."""
    files = {}
    for i, (split, n) in enumerate([("train", 50), ("train", 7), ("train", 43), ("val", 30)]):
        name = f"{split}_{i:06d}.bin"
        write_shard(tmp_path / name, draw_tokens(n, seed=i))
        files[name] = ShardFile(split, n, 1024 + 2 * n, file_sha256(tmp_path / name))
    counts = {"train": Counts(5, 100, 400), "val": Counts(1, 30, 120)}
    Manifest("gpt2", "abc", 60_000, "uint16", counts, files, request={"source": "x"}).write(tmp_path)
    return tmp_path


def read_train_files(directory: Path) -> np.ndarray:
    return np.concatenate([open_shard(path) for path in sorted(directory.glob("train*.bin"))])


@pytest.mark.parametrize(("dtype", "magic", "version"), [(np.uint16, 20240520, 1), (np.uint32, 20240801, 7)])
def test_shard_header_is_that_of_llm_c(tmp_path: Path, dtype: type, magic: int, version: int) -> None:
    tokens = draw_tokens(1000, dtype)
    write_shard(tmp_path / "train.bin", tokens)
    raw = (tmp_path / "train.bin").read_bytes()
    header = np.frombuffer(raw[:1024], "<i4")
    assert header[:3].tolist() == [magic, version, 1000]
    assert not header[3:].any()
    assert len(raw) == 1024 + tokens.nbytes
    back = open_shard(tmp_path / "train.bin")
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, tokens)


def test_token_dtype_depends_on_the_vocabulary() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


def test_open_shard_reads_raw_files_of_nanogpt(tmp_path: Path) -> None:
    tokens = draw_tokens(999)
    tokens.tofile(tmp_path / "train.bin")
    np.testing.assert_array_equal(open_shard(tmp_path / "train.bin", format="raw-uint16"), tokens)
    with pytest.raises(UserError, match="raw-uint16"):
        open_shard(tmp_path / "train.bin")
    assert len(open_split(tmp_path, "train", format="raw-uint16")) == 999


def test_open_split_as_raw_refuses_shards(directory: Path) -> None:
    with pytest.raises(UserError, match="format shards"):
        open_split(directory, "train", format="raw-uint16")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-2], "promises 100 tokens, 1,224 bytes; found 1,222"),
        (lambda raw: raw + b"xx", "after its end.*1,224 bytes; found 1,226"),
        (lambda raw: raw[:500], "too few"),
        (lambda raw: raw[:5], "too few"),
        (lambda raw: b"", "too few"),
        (lambda raw: b"\x01" + raw[1:], "not a token shard"),
        (lambda raw: raw[:4] + b"\x09" + raw[5:], "version 9 is unknown; wanted 1"),
        (lambda raw: raw[:8] + b"\xff\xff\xff\xff" + raw[12:], "promises -1"),
    ],
)
def test_open_shard_with_damaged_file_names_the_damage(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "train.bin"
    write_shard(path, draw_tokens(100))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        open_shard(path)
    assert str(path) in str(caught.value)


def test_open_missing_files_and_splits_is_an_error(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(UserError, match="no such shard"):
        open_shard(tmp_path / "absent.bin")
    with pytest.raises(UserError, match="no such directory"):
        open_split(tmp_path / "absent", "train")
    with pytest.raises(UserError, match="give the directory"):
        open_split(directory / "val_000003.bin", "train")
    with pytest.raises(UserError, match="no files of the split 'test'"):
        open_split(directory, "test")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a book.txt", "prepare --source='{path}' "),
        ("a.npy", "index_shards {folder} "),
        ("gpt_text.idx", "index_shards"),
    ],
)
def test_what_is_no_shard_is_sent_to_the_command_that_makes_some(name: str, command: str, tmp_path: Path) -> None:
    (path := tmp_path / name).write_bytes(b"text")
    if path.suffix == ".idx":
        path.with_suffix(".bin").write_bytes(b"ids")  # as Megatron has it
    for given in (path, tmp_path):
        wanted = re.escape(command.format(path=path, folder=tmp_path)) if given == path else command.split()[0]
        with pytest.raises(UserError, match=rf"python -m data_pipelines\.{wanted}.* --output=DIR"):
            open_split(given, "train")


def test_open_split_recognises_published_names(tmp_path: Path) -> None:
    for name in ("fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin", "interval.bin"):
        write_shard(tmp_path / name, draw_tokens(10))
    assert len(open_split(tmp_path, "train")) == 20
    assert len(open_split(tmp_path, "val")) == 10


def test_stream_read_crosses_files(directory: Path) -> None:
    stream, everything = open_split(directory, "train"), read_train_files(directory)
    assert len(stream) == 100
    assert stream.name == f"{directory} (train)"
    for start, length in [(0, 100), (45, 20), (49, 1), (50, 7), (57, 43), (99, 1), (100, 0), (0, 0), (48, 10)]:
        np.testing.assert_array_equal(stream.read(start, length), everything[start : start + length])
    for start, length in [(-1, 5), (99, 2), (101, 0), (0, -1)]:
        with pytest.raises(IndexError):
            stream.read(start, length)


@pytest.mark.parametrize("length", [1, 5, 9, 60, 100])
def test_stream_read_sequences_returns_slices(directory: Path, length: int) -> None:
    stream, everything = open_split(directory, "train"), read_train_files(directory)
    starts = np.random.default_rng(1).permutation(np.repeat(np.arange(101 - length), 2))
    rows = stream.read_sequences(starts, length)
    assert rows.shape == (len(starts), length)
    np.testing.assert_array_equal(rows, np.stack([everything[s : s + length] for s in starts]))
    assert stream.read_sequences(np.zeros(0, np.int64), length).shape == (0, length)
    with pytest.raises(IndexError):
        stream.read_sequences(np.array([101 - length]), length)


def test_open_split_with_mixed_types_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "train_0.bin", draw_tokens(10))
    write_shard(tmp_path / "train_1.bin", draw_tokens(10, np.uint32))
    with pytest.raises(UserError, match="mixed"):
        open_split(tmp_path, "train")


def test_stream_fingerprint_follows_the_content(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = {split: open_split(directory, split).fingerprint for split in ("train", "val")}
    assert before["train"] != before["val"]
    foreign = tmp_path_factory.mktemp("foreign")
    write_shard(foreign / "train.bin", draw_tokens(100))
    first = open_split(foreign, "train").fingerprint
    assert first == open_split(foreign, "train").fingerprint
    write_shard(foreign / "train.bin", draw_tokens(100, seed=9))
    assert first != open_split(foreign, "train").fingerprint


def test_manifest_is_read_as_written(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest.splits["train"] == Counts(5, 100, 400)
    assert manifest.files["val_000003.bin"].tokens == 30
    assert manifest.request == {"source": "x"}
    assert verify_shards(directory) == manifest
    assert read_manifest(directory.parent) is None


def test_manifest_calls_its_sidecars_companions(directory: Path) -> None:
    """Shards that were prepared before stay readable."""
    manifest = read_manifest(directory)
    assert manifest is not None
    sidecar = {"train.documents": Sidecar("train", "documents", 40, "0" * 64)}
    replace(manifest, sidecars=sidecar).write(directory)
    content = json.loads((directory / "manifest.json").read_text())
    assert list(content) == [
        *(
            "tokenizer",
            "fingerprint",
            "vocab_size",
            "dtype",
            "splits",
            "files",
            "companions",
            "request",
            "notes",
            "version",
            "tokenizer_files",
            "sha256",
        )
    ]
    assert content["companions"]["train.documents"]["kind"] == "documents"
    found = read_manifest(directory)
    assert found is not None
    assert found.sidecars == sidecar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(vocab_size="many"), "vocab_size: wanted int, got 'many'"),
        (lambda c: c.update(vocab_size=True), "vocab_size: wanted int, got True"),
        (lambda c: c["splits"]["train"].update(tokens=1.5), "splits: train: tokens: wanted int, got 1.5"),
        (lambda c: c["splits"]["train"].pop("bytes"), "splits: train: missing or unknown field: bytes"),
        (lambda c: c.update(colour="red"), "unknown field: colour"),
        (lambda c: c.update(version=1), "version 1 is unknown; wanted 2"),
        (lambda c: c.update(dtype="int8"), "dtype is 'int8'"),
        (lambda c: c.update(files=[]), "files: wanted"),
    ],
)
def test_read_manifest_with_wrong_field_names_it(
    directory: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit_manifest(directory, change)
    with pytest.raises(UserError, match=message):
        read_manifest(directory)


def test_open_split_with_truncated_manifest_is_an_error(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"version": ')
    with pytest.raises(UserError, match="not JSON"):
        open_split(directory, "train")


def test_open_split_compares_names_and_sizes(directory: Path) -> None:
    write_shard(directory / "train_000009.bin", draw_tokens(5))
    with pytest.raises(UserError, match=r"not listed train_000009\.bin"):
        open_split(directory, "train")
    (directory / "train_000009.bin").unlink()
    write_shard(directory / "train_000001.bin", draw_tokens(6))
    with pytest.raises(UserError, match=r"1,036 bytes, but manifest\.json says 1,038"):
        open_split(directory, "train")
    (directory / "train_000001.bin").unlink()
    with pytest.raises(UserError, match=r"missing train_000001\.bin"):
        open_split(directory, "train")


def test_verify_shards_finds_changed_token_and_large_id(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest is not None
    replace(manifest, vocab_size=100).write(directory)
    with pytest.raises(UserError, match="outside the vocabulary of 100"):
        verify_shards(directory)
    manifest.write(directory)
    tokens = np.array(open_shard(directory / "val_000003.bin"))
    tokens[3] += 1
    write_shard(directory / "val_000003.bin", tokens)
    assert len(open_split(directory, "val")) == 30
    with pytest.raises(UserError, match=r"val_000003\.bin has changed .*: its SHA-256 differs"):
        verify_shards(directory)
