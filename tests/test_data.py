from itertools import islice

import jax
import numpy as np
import pytest
from tiny import tokenizer, write_shards

from gptjax.data import Batch, Batches, TokenShards, Windows, validation_rows
from gptjax.errors import UserError
from gptjax.layout import Layout
from gptjax.loss import IGNORED
from gptjax.shards import open_split

CONTEXT = 4
COUNT = 45
"""Eleven windows of four targets; no target twice, so that a window can be told by its tokens."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Tokens 0 to 44 in three files, whose borders lie inside windows; 23 for validation."""
    parts = np.split(np.arange(COUNT), [7, 30])
    return write_shards(tmp_path_factory.mktemp("data") / "shards", {"train": parts, "val": [np.arange(23)]})


@pytest.fixture(scope="module")
def windows(shards):
    return Windows(open_split(shards, "train"), CONTEXT, vocab_size=COUNT)


def batches(windows, sequences=4, accumulate=1, **changes):
    options = {"seed": 0, "layout": Layout()} | changes
    return Batches(windows, Batch(sequences, accumulate), **options)


def firsts(array):
    """Which window each row is, in the order of reading."""
    return (array[..., 0] // CONTEXT).reshape(-1).tolist()


def test_windows_overlap_by_one_and_cross_the_borders_of_files(windows):
    assert len(windows) == 11
    for i in range(11):
        np.testing.assert_array_equal(windows[i], np.arange(CONTEXT * i, CONTEXT * i + CONTEXT + 1))


def test_targets_are_the_tokens_that_follow(windows):
    rows = next(batches(windows, accumulate=2).starting_at(0))
    assert rows["tokens"].shape == rows["targets"].shape == (2, 2, CONTEXT)
    assert rows["tokens"].dtype == np.int32
    np.testing.assert_array_equal(rows["targets"], rows["tokens"] + 1)


def test_an_epoch_reads_every_window_once_in_an_order_of_its_own(windows):
    reader = batches(windows)
    seen = [window for step in range(6) for window in firsts(reader.local(step))]
    first, second = seen[:11], seen[11:22]
    assert sorted(first) == sorted(second) == list(range(11))
    assert len({tuple(first), tuple(second), tuple(range(11))}) == 3


def test_seed_and_step_alone_decide_the_rows(windows):
    straight = [firsts(rows["tokens"]) for rows in islice(batches(windows, accumulate=2).starting_at(0), 8)]
    for step in (0, 3, 7):
        again = next(batches(windows, accumulate=2, prefetch=1).starting_at(step))
        assert firsts(again["tokens"]) == straight[step]
        assert firsts(batches(windows, accumulate=4).local(step)) == straight[step]
    assert firsts(batches(windows, seed=1).local(0)) != straight[0]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_share_the_rows_of_a_step(windows, monkeypatch, processes, accumulate):
    """Side by side, what they read is what one process reads."""
    wanted = [batches(windows, 8, accumulate).local(step) for step in range(4)]
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        reader = batches(windows, 8, accumulate)
        shares.append([reader.local(step) for step in range(4)])
    for step, whole in enumerate(wanted):
        np.testing.assert_array_equal(np.concatenate([share[step] for share in shares], axis=1), whole)


def test_rows_lie_on_the_devices_of_the_layout(windows):
    layout = Layout(data=2, fsdp=2, tensor=2)
    with layout.active():
        reader = batches(windows, 8, 2, layout=layout)
        rows, stand_ins = next(reader.starting_at(0)), reader.abstract(CONTEXT)
        assert rows["tokens"].sharding == stand_ins["tokens"].sharding
        assert rows["targets"].sharding.spec == layout.acts("GBT")
        assert rows["targets"].shape == stand_ins["targets"].shape
    np.testing.assert_array_equal(np.asarray(rows["tokens"]), reader.local(0)[..., :-1])


@pytest.mark.parametrize("sequences", [1, 2, 3, 16])
@pytest.mark.parametrize("tokens", [None, 1, 8, 21])
def test_validation_scores_each_token_once_in_order(shards, sequences, tokens):
    stream = open_split(shards, "val")
    rows = list(validation_rows(stream, CONTEXT, vocab_size=COUNT, sequences=sequences, tokens=tokens))
    targets = np.concatenate([batch["targets"].reshape(-1) for batch in rows])
    inputs = np.concatenate([batch["tokens"].reshape(-1) for batch in rows])
    scored = targets != IGNORED
    np.testing.assert_array_equal(targets[scored], np.arange(1, (tokens or 22) + 1))
    np.testing.assert_array_equal(inputs[scored], targets[scored] - 1)
    assert {batch["tokens"].shape for batch in rows} == {(1, sequences, CONTEXT)}
    assert len(rows) == -(-(tokens or 22) // (sequences * CONTEXT))


def test_a_token_beyond_the_vocabulary_is_an_error_that_names_it(shards):
    with pytest.raises(UserError, match=r"token id 12 in .*\(train\) is beyond model.vocab_size 10.*tokenizer"):
        Windows(open_split(shards, "train"), CONTEXT, vocab_size=10)[2]
    with pytest.raises(UserError, match=r"token id 22 in .*\(val\)"):
        list(validation_rows(open_split(shards, "val"), CONTEXT, vocab_size=22, sequences=8))


def test_data_shorter_than_a_window_is_an_error(shards):
    with pytest.raises(UserError, match=r"has 45 tokens, less than one window of model\.context \+ 1 = 46"):
        Windows(open_split(shards, "train"), COUNT, vocab_size=COUNT)
    assert len(Windows(open_split(shards, "train"), COUNT - 1, vocab_size=COUNT)) == 1


def test_batches_that_do_not_divide_say_what_would(windows, monkeypatch):
    with pytest.raises(UserError, match=r"batch\.sequences 6 .*batch\.accumulate 4"):
        Batch(6, 4)
    with pytest.raises(UserError, match=r"6 sequences a group do not split over 4 devices \(data × fsdp\)"):
        Batch(12, 2).check_devices(Layout(data=2, fsdp=2))
    Batch(16, 2).check_devices(Layout(data=2, fsdp=4))
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="6 sequences a group do not split over 4 processes"):
        batches(windows, 6)


def test_shards_say_what_they_are(shards, tmp_path):
    with pytest.raises(UserError, match=r"--data\.path=DIR"):
        TokenShards().split("train")
    foreign = TokenShards(path=str(shards))
    assert (len(foreign.split("train")), len(foreign.split("val")), foreign.manifest()) == (COUNT, 23, None)
    own = write_shards(tmp_path / "own", {"train": [np.arange(9)], "val": [np.arange(3)]}, own=tokenizer())
    manifest = TokenShards(path=str(own)).manifest()
    assert manifest is not None
    assert manifest.fingerprint == tokenizer().fingerprint
    np.arange(100, dtype="<u2").tofile(tmp_path / "train.bin")
    assert TokenShards(path=str(tmp_path), format="raw-uint16").split("train").read(98, 2).tolist() == [98, 99]
