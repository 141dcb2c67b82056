"""Shards and the index of documents, however the tokens come and wherever writing is taken up again."""

import contextlib
import random

import numpy as np
import pytest

from data_pipelines.writing import SplitWriter, Written, is_on_disk, replaced
from gptjax.manifest import Counts, Manifest
from gptjax.shards import open_split, verify

TOKENS = np.random.default_rng(0).integers(0, 500, 1000).astype(np.uint16)
STARTS = np.array([0, 3, 4, 250, 260, 500, 501, 999])


def append(writer, begin, end):
    writer.append(TOKENS[begin:end], STARTS[np.isin(STARTS, range(begin, end))] - begin)


def writer_in(directory, after=None):
    return SplitWriter(directory, "train", dtype=np.dtype(np.uint16), shard_tokens=100, after=after)


def manifest_of(writer):
    counts = {"train": Counts(writer.documents, writer.tokens, 0)}
    return Manifest("x", "x", 500, "uint16", counts, dict(writer.files), dict(writer.companions))


@pytest.mark.parametrize("seed", range(5))
def test_taken_up_at_any_place(tmp_path, seed):
    """What was appended after `written` was asked is written again, or differently: it does not show."""
    rng, after, done = random.Random(seed), None, 0
    while done < len(TOKENS):
        assert after is None or is_on_disk(tmp_path, "train", after, itemsize=2)
        writer = writer_in(tmp_path, after)
        for _ in range(rng.randrange(1, 4)):
            step = rng.choice([0, 1, 50, 100, 230])
            append(writer, done, done + step)
            done = min(done + step, len(TOKENS))
        after = writer.written()
        assert (after.tokens, after.documents) == (done, int(np.searchsorted(STARTS, done)))
        writer.append(TOKENS[: rng.randrange(150)], np.array([0]))  # and then it is killed
        writer.__exit__(KeyboardInterrupt, None, None)
    with writer_in(tmp_path, after) as writer:
        pass
    manifest_of(writer).write(tmp_path)
    for path in tmp_path.glob("*.bin"):
        if path.name not in writer.files:
            path.unlink()
    manifest = verify(tmp_path)
    stream = open_split(tmp_path, "train")
    np.testing.assert_array_equal(stream.read(0, len(stream)), TOKENS)
    np.testing.assert_array_equal(stream.documents, STARTS)
    assert [file.tokens for file in manifest.files_of("train").values()] == [100] * 10


def test_without_documents_no_index(tmp_path):
    with writer_in(tmp_path) as writer:
        writer.append(TOKENS)
    assert writer.companions == {}
    assert sorted(writer.files) == [path.name for path in sorted(tmp_path.iterdir())]


def test_what_is_missing_is_noticed(tmp_path):
    with writer_in(tmp_path) as writer:
        append(writer, 0, 250)
        written = writer.written()
    assert is_on_disk(tmp_path, "train", Written(), itemsize=2)
    assert is_on_disk(tmp_path, "train", written, itemsize=2)
    for name in ("train_000000.bin", "train_000002.bin", "train.documents"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1])
        assert not is_on_disk(tmp_path, "train", written, itemsize=2)
        (tmp_path / name).unlink()
        assert not is_on_disk(tmp_path, "train", written, itemsize=2)
        (tmp_path / name).write_bytes(content)


def fill_half(out, *, keep):
    with contextlib.suppress(ZeroDivisionError), replaced(out, keep=keep) as directory:
        (directory / "a").write_text("half")
        (directory / "record").write_text("")
        raise ZeroDivisionError


def test_a_directory_appears_when_it_is_whole(tmp_path):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    fill_half(out, keep=None)
    assert not out.exists()
    assert not partial.exists()
    fill_half(out, keep="record")
    with replaced(out, keep="record") as directory:
        assert directory == partial
        assert (directory / "a").read_text() == "half"
    assert (out / "a").read_text() == "half"
    with replaced(out) as directory:
        assert not list(directory.iterdir())
        assert out.exists()
    assert not list(out.iterdir())
