"""Shards and the index of documents, however the tokens come and wherever writing is taken up again."""

import contextlib
import random

import numpy as np
import pytest

from data_pipelines.writing import SplitWriter, Written, is_on_disk, split_writers, write_manifest
from gptjax.data.checksums import verify_shards
from gptjax.data.manifest import Counts, Manifest
from gptjax.data.splits import open_split
from gptjax.tokenization.tokenizer import Bytes

TOKENS = np.random.default_rng(0).integers(0, 500, 1000).astype(np.uint16)
STARTS = np.array([0, 3, 4, 250, 260, 500, 501, 999])
SCORED = (TOKENS % 3 == 0).astype(np.uint8)


def append(writer, begin, end):
    starts = STARTS[np.isin(STARTS, range(begin, end))] - begin
    writer.append(TOKENS[begin:end], starts, scored=SCORED[begin:end], size=2 * len(TOKENS[begin:end]))


def writer_in(directory, after=None):
    return SplitWriter(directory, "train", dtype=np.dtype(np.uint16), shard_tokens=100, after=after)


def manifest_of(writer):
    return Manifest("x", "x", 500, "uint16", {"train": writer.counts}, dict(writer.files), dict(writer.sidecars))


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
        documents = int(np.searchsorted(STARTS, done))
        assert (after.tokens, after.bytes, after.last_start) == (done, 2 * done, STARTS[max(0, documents - 1)])
        assert after.sidecars == ({"documents": documents, "scored": done} if done else after.sidecars)
        assert writer.counts == Counts(documents, done, 2 * done)
        later = rng.randrange(150)
        writer.append(TOKENS[:later], np.array([0]), scored=SCORED[:later], size=9)  # and then it is killed
        writer.__exit__(KeyboardInterrupt, None, None)
    with writer_in(tmp_path, after) as writer:
        pass
    manifest_of(writer).write(tmp_path)
    for path in tmp_path.glob("*.bin"):
        if path.name not in writer.files:
            path.unlink()
    manifest = verify_shards(tmp_path)
    stream = open_split(tmp_path, "train")
    np.testing.assert_array_equal(stream.read(0, len(stream)), TOKENS)
    np.testing.assert_array_equal(stream.document_starts, STARTS)
    np.testing.assert_array_equal(stream.loss_mask, SCORED)
    assert [file.tokens for file in manifest.files_of("train").values()] == [100] * 10


def test_without_documents_and_marks_no_companions(tmp_path):
    with writer_in(tmp_path) as writer:
        writer.append(TOKENS)
    assert writer.sidecars == {}
    assert sorted(writer.files) == [path.name for path in sorted(tmp_path.iterdir())]


def test_what_is_missing_is_noticed(tmp_path):
    with writer_in(tmp_path) as writer:
        append(writer, 0, 250)
        written = writer.written()
    assert is_on_disk(tmp_path, "train", Written(), itemsize=2)
    assert is_on_disk(tmp_path, "train", written, itemsize=2)
    for name in ("train_000000.bin", "train_000002.bin", "train.documents", "train.scored"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1])
        assert not is_on_disk(tmp_path, "train", written, itemsize=2)
        (tmp_path / name).unlink()
        assert not is_on_disk(tmp_path, "train", written, itemsize=2)
        (tmp_path / name).write_bytes(content)


def test_after_an_error_nothing_is_listed(tmp_path):
    with contextlib.suppress(ZeroDivisionError), split_writers(tmp_path, ["train"], Bytes(), shard_tokens=9) as writers:
        append(writers["train"], 0, 5)
        raise ZeroDivisionError
    assert writers["train"].counts.tokens == 5
    assert writers["train"].files == writers["train"].sidecars == {}


def test_a_directory_of_two_splits(tmp_path):
    with split_writers(tmp_path, ("train", "val"), Bytes(), shard_tokens=100) as writers:
        writers["train"].append(np.arange(130, dtype=np.uint8), np.array([0, 7]), size=130)
        writers["val"].append(np.arange(3, dtype=np.uint8), np.array([0]), size=3)
    manifest = write_manifest(tmp_path, writers, Bytes(), {"source": "x"})
    assert verify_shards(tmp_path) == manifest
    assert manifest.splits == {"train": Counts(2, 130, 130), "val": Counts(1, 3, 3)}
    assert (manifest.tokenizer, manifest.dtype, manifest.request) == ("bytes", "uint16", {"source": "x"})
    assert open_split(tmp_path, "val").read(0, 3).tolist() == [0, 1, 2]
