"""Shards and their sidecars, however the tokens come and wherever writing continues."""

import contextlib
import random

import numpy as np
import pytest

from data_pipelines.output.shard_writer import SplitWriter, WriteState, are_on_disk, open_split_writers, write_manifest
from data_pipelines.runtime.options import ShardOptions
from gptjax.core.errors import UserError
from gptjax.data.checksums import verify_shards
from gptjax.data.manifest import Counts
from gptjax.data.shards import open_shard
from gptjax.data.splits import open_split
from gptjax.tokenization.tokenizer import Bytes

TOKENS = np.random.default_rng(0).integers(0, 250, 1000).astype(np.uint16)
STARTS = np.array([0, 3, 4, 250, 260, 500, 501, 999])
SCORED = (TOKENS % 3 == 0).astype(np.uint8)


def append(writer, begin, end):
    starts = STARTS[np.isin(STARTS, range(begin, end))] - begin
    writer.append(TOKENS[begin:end], starts, scored=SCORED[begin:end], size=2 * len(TOKENS[begin:end]))


def open_writer(directory, state=None):
    return SplitWriter(directory, "train", dtype=np.dtype(np.uint16), shard_tokens=100, state=state)


@pytest.mark.parametrize("seed", range(5))
def test_split_writer_continues_from_any_state(tmp_path, seed):
    """Tokens that were appended after `sync` are written again, or others: it does not show."""
    rng, state, done = random.Random(seed), WriteState(), 0
    while done < len(TOKENS):
        assert are_on_disk(tmp_path, [state])
        writer = open_writer(tmp_path, state)
        for _ in range(rng.randrange(1, 4)):
            step = rng.choice([0, 1, 50, 100, 230])
            append(writer, done, done + step)
            done = min(done + step, len(TOKENS))
        state = writer.sync()
        documents = int(np.searchsorted(STARTS, done))
        assert writer.counts == Counts(documents, done, 2 * done)
        assert (state.tokens, state.bytes, state.documents) == (done, 2 * done, documents)
        later = rng.randrange(150)
        writer.append(TOKENS[:later], np.array([0]), scored=SCORED[:later], size=9)
        writer.close()  # as after a kill
    writer = open_writer(tmp_path, state)
    writer.finish()
    state_names = writer.sync().sizes
    writer.close()
    for path in tmp_path.glob("*.bin"):
        if path.name not in state_names:
            path.unlink()
    manifest = write_manifest(tmp_path, {"train": writer.counts}, tokenizer=Bytes(), request={})
    assert verify_shards(tmp_path) == manifest
    stream = open_split(tmp_path, "train")
    np.testing.assert_array_equal(stream.read(0, len(stream)), TOKENS)
    np.testing.assert_array_equal(stream.document_starts, STARTS)
    np.testing.assert_array_equal(stream.loss_mask, SCORED)
    assert (stream.document_starts.dtype, stream.loss_mask.dtype) == (np.int64, np.uint8)
    assert [file.tokens for file in manifest.files_of("train").values()] == [100] * 10


def test_write_state_notices_missing_files(tmp_path):
    writer = open_writer(tmp_path)
    append(writer, 0, 250)
    state = writer.sync()
    writer.close()
    for name in ("train_000000.bin", "train_000002.bin", "train.documents", "train.scored"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b"x")
        assert are_on_disk(tmp_path, [state]) == (name != "train_000000.bin"), "all others are cut"
        (tmp_path / name).write_bytes(content[:-1])
        assert not are_on_disk(tmp_path, [state])
        (tmp_path / name).unlink()
        assert not are_on_disk(tmp_path, [state])
        (tmp_path / name).write_bytes(content)
    assert are_on_disk(tmp_path, [state])


def make_options(directory, **options):
    return ShardOptions(source="x", output=directory, shard_tokens=100, **options)


def test_open_split_writers_after_an_error_finishes_nothing(tmp_path):
    opened = open_split_writers(tmp_path, make_options(tmp_path, split="none"), vocab_size=256)
    with contextlib.suppress(ZeroDivisionError), opened as writers:
        append(writers["train"], 0, 5)
        raise ZeroDivisionError
    assert list(writers) == ["train"]
    assert writers["train"].counts.tokens == 5
    with pytest.raises(UserError, match="not a token shard"):
        open_shard(tmp_path / "train_000000.bin")


def test_write_manifest_lists_two_splits(tmp_path):
    with open_split_writers(tmp_path, make_options(tmp_path), vocab_size=256) as writers:
        writers["train"].append(np.arange(130, dtype=np.uint8), np.array([0, 7]), size=130)
        writers["val"].append(np.arange(3, dtype=np.uint8), size=3)
    counts = {name: writer.counts for name, writer in writers.items()}
    manifest = write_manifest(tmp_path, counts, tokenizer=Bytes(), request={"source": "x"}, notes=["one"])
    assert verify_shards(tmp_path) == manifest
    assert manifest.splits == {"train": Counts(2, 130, 130), "val": Counts(0, 3, 3)}
    assert list(manifest.sidecars) == ["train.documents"], "none without documents and marks"
    assert (manifest.tokenizer, manifest.dtype, manifest.request) == ("bytes", "uint16", {"source": "x"})
    assert manifest.notes == ["one"]
    assert open_split(tmp_path, "val").read(0, 3).tolist() == [0, 1, 2]
