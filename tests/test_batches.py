from itertools import islice

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny import tokenizer, write_shards

from gptjax.core.errors import UserError
from gptjax.data.config import BatchSize
from gptjax.data.loader import BatchLoader, validation_rows
from gptjax.data.mixture import MixtureSchedule
from gptjax.data.sequences import ConcatSequences, SequenceBatch
from gptjax.data.shards import open_split
from gptjax.model.loss import IGNORE_INDEX
from gptjax.sharding.mesh import MeshConfig

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
    return ConcatSequences(open_split(shards, "train"), CONTEXT)


def batches(windows, batch_size=4, grad_accum=1, **changes):
    options = {"seed": 0, "mesh": MeshConfig(), "vocab_size": COUNT} | changes
    return BatchLoader([windows], BatchSize(sequences, accumulate), **options)


def firsts(array):
    """Which window each row is, in the order of reading."""
    return (array[..., 0] // CONTEXT).reshape(-1).tolist()


def test_targets_are_the_tokens_that_follow(windows):
    rows = next(batches(windows, grad_accum=2).iterate_from(0))
    assert rows["tokens"].shape == rows["targets"].shape == (2, 2, CONTEXT)
    assert rows["tokens"].dtype == np.int32
    np.testing.assert_array_equal(rows["targets"], rows["tokens"] + 1)


def test_an_epoch_reads_every_window_once_in_an_order_of_its_own(windows):
    reader = batches(windows)
    seen = [window for step in range(6) for window in firsts(reader.read(step)["tokens"])]
    first, second = seen[:11], seen[11:22]
    assert sorted(first) == sorted(second) == list(range(11))
    assert len({tuple(first), tuple(second), tuple(range(11))}) == 3


def test_seed_and_step_alone_decide_the_rows(windows):
    straight = [firsts(rows["tokens"]) for rows in islice(batches(windows, grad_accum=2).iterate_from(0), 8)]
    for step in (0, 3, 7):
        again = next(batches(windows, grad_accum=2, prefetch=1).iterate_from(step))
        assert firsts(again["tokens"]) == straight[step]
        assert firsts(batches(windows, grad_accum=4).read(step)["tokens"]) == straight[step]
    assert firsts(batches(windows, seed=1).read(0)["tokens"]) != straight[0]


PROCESSES = {
    "one": [(0, 1, 2, 3)],
    "two": [(0, 1), (2, 3)],
    "two, in another order": [(2, 0), (3, 1)],
    "four": [(2,), (0,), (3,), (1,)],
    "four, in pairs that share rows": [(0, 1), (1, 0), (2, 3), (2, 3)],
}


@pytest.fixture
def check_shares(monkeypatch):
    """Each process reads what lies on its devices, and nothing else; they hold parts of the rows, of four."""
    mesh = MeshConfig(data=4)
    sharding = NamedSharding(mesh.mesh(), mesh.activation_spec("GBT"))

    def check(reader, processes, step, whole):
        for parts in processes:
            monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", part_of_all(parts))
            found = reader.read(step, sharding)
            assert found.keys() == whole.keys()
            for name, rows in whole.items():
                wanted = np.zeros_like(rows).reshape(len(rows), 4, -1, CONTEXT)
                wanted[:, parts] = rows.reshape(wanted.shape)[:, parts]
                np.testing.assert_array_equal(found[name], wanted.reshape(rows.shape))

    return check


def part_of_all(parts):
    def addressable_devices_indices_map(self, shape):
        every = self.devices_indices_map(shape)
        return {device: every[device] for device in (jax.devices()[part] for part in parts)}

    return addressable_devices_indices_map


@pytest.mark.parametrize("processes", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("grad_accum", [1, 2])
def test_processes_share_the_rows_of_a_step(windows, check_shares, processes, accumulate):
    reader = batches(windows, 8, accumulate)
    for step in range(4):
        check_shares(reader, processes, step, reader.read(step))


MIXED = {"turns": MixtureSchedule([(0, (0.5, 0.5)), (10 * 4, (0.25, 0.75))])}


STAGED = {"later": [(2, BatchSize(8, 2)), (5, BatchSize(4, 4)), (6, BatchSize(16, 1))]}
SEQUENCES = [4, 4, 8, 8, 8, 4, 16, 16]


def read_all(reader, steps):
    """Windows by step, whatever the shapes."""
    return [reader.read(step)["tokens"] for step in range(steps)]


def test_batches_of_several_sizes_read_the_same_sequence_as_any_other(windows):
    """Whatever the sizes, the run's rows are one sequence: each window once in every epoch."""
    staged = read_all(batches(windows, **STAGED), 8)
    assert [array.shape[:2] for array in staged[1:7]] == [(1, 4), (2, 4), (2, 4), (2, 4), (4, 1), (1, 16)]
    assert [array.shape[0] * array.shape[1] for array in staged] == SEQUENCES
    seen = [window for array in staged for window in firsts(array)]
    assert seen == [window for array in read_all(batches(windows), 17) for window in firsts(array)]
    assert all(sorted(seen[epoch * 11 : epoch * 11 + 11]) == list(range(11)) for epoch in range(6))
    reader = batches(windows, **STAGED)
    assert [reader.epochs(step)["epoch"] for step in (2, 6, 8)] == [8 / 11, 36 / 11, 68 / 11]
    assert [reader.abstract(CONTEXT, step=step)["tokens"].shape[:2] for step in (0, 4, 5)] == [(1, 4), (2, 4), (4, 1)]
    resumed = [np.asarray(rows["tokens"]) for rows in islice(batches(windows, **STAGED).iterate_from(4), 4)]
    for array, wanted in zip(resumed, staged[4:], strict=True):
        np.testing.assert_array_equal(array, wanted)


@pytest.fixture(scope="module")
def both(shards, tmp_path_factory):
    """The eleven windows, and seven others with tokens from 100 on."""
    other = write_shards(tmp_path_factory.mktemp("data") / "other", {"train": [np.arange(100, 129)]})
    return [ConcatSequences(open_split(path, "train"), CONTEXT) for path in (shards, other)]


def mixed(both, batch_size=4, grad_accum=1, **changes):
    return BatchLoader(
        both,
        BatchSize(sequences, accumulate),
        **({"seed": 0, "mesh": MeshConfig(), "vocab_size": 200} | MIXED | changes),
    )


def test_a_mixture_keeps_its_shares_and_each_set_its_epochs(both):
    """Every set goes through all its windows before any comes again, also where its share has changed meanwhile."""
    reader = mixed(both)
    rows = np.concatenate([reader.read(step)["tokens"].reshape(-1, CONTEXT) for step in range(40)])
    of_other = rows[:, 0] >= 100
    assert [int(of_other[:40].sum()), int(of_other[40:].sum())] == [20, 90]
    for mask, count in ((~of_other, 11), (of_other, 7)):
        firsts = rows[mask, 0]
        for epoch in range(len(firsts) // count):
            assert len(set(firsts[epoch * count : (epoch + 1) * count])) == count
    epochs = reader.epochs(40)
    assert epochs == {"epoch/shards": 50 / 11, "epoch/other": 110 / 7}
    assert batches(both[0]).epochs(11) == {"epoch": 4.0}


@pytest.mark.parametrize("processes", PROCESSES.values(), ids=PROCESSES)
def test_a_mixture_of_several_batch_sizes_is_one_sequence_on_any_number_of_processes(both, check_shares, processes):
    """Shares change at row 40, which is inside of a step."""
    one_size = [mixed(both).read(step)["tokens"].reshape(-1, CONTEXT) for step in range(16)]
    reader = mixed(both, weight_schedule=[(2, BatchSize(8, 2)), (5, BatchSize(16, 1))])
    whole = [reader.read(step) for step in range(7)]
    together = [rows["tokens"].reshape(-1, CONTEXT) for rows in whole]
    np.testing.assert_array_equal(np.concatenate(together), np.concatenate(one_size))
    for step, rows in enumerate(whole):
        check_shares(reader, processes, step, rows)


def test_shards_that_nothing_can_be_compared_with_are_said_to_be(shards, tmp_path):
    own = write_shards(tmp_path / "own", {"train": [np.arange(40)]}, own=tokenizer())
    said = [batches(ConcatSequences(open_split(path, "train"), CONTEXT)).describe() for path in (own, shards)]
    assert ["without a manifest.json" in line for (line,) in said] == [False, True]


def test_what_is_not_scored_is_ignored(shards):
    class OddTargets(ConcatSequences):
        def read(self, rows, *, documents=False):
            tokens, targets, *_ = super().read(rows)
            return SequenceBatch(tokens, targets, targets % 2 == 1)

    rows = batches(OddTargets(open_split(shards, "train"), CONTEXT)).read(0)
    followers = rows["tokens"] + 1
    np.testing.assert_array_equal(rows["targets"], np.where(followers % 2 == 1, followers, IGNORE_INDEX))


def test_documents_come_with_the_rows_that_they_are_of(tmp_path):
    starts = {("train", "documents"): np.array([0, 3, 10, 11, 30])}
    path = write_shards(tmp_path / "s", {"train": [np.arange(COUNT)]}, own=tokenizer(), sidecars=starts)
    windows = ConcatSequences(open_split(path, "train"), CONTEXT)
    reader = batches(windows, 4, 2, documents=True)
    for step in range(3):
        rows = reader.read(step)
        wanted = windows.read(rows["tokens"][..., 0].reshape(-1) // CONTEXT, documents=True).documents
        for name in ("segments", "positions"):
            np.testing.assert_array_equal(rows[name].reshape(-1, CONTEXT), getattr(wanted, name))
    assert windows.read(np.arange(len(windows)), documents=True).documents.segments.max() > 1
    assert batches(windows).read(0).keys() == {"tokens", "targets"}


def test_rows_lie_on_the_devices_of_the_layout(windows):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    with mesh.activate():
        reader = batches(windows, 8, 2, mesh=mesh)
        rows, stand_ins = next(reader.iterate_from(0)), reader.abstract(CONTEXT)
        assert rows["tokens"].sharding == stand_ins["tokens"].sharding
        assert rows["targets"].sharding.spec == mesh.activation_spec("GBT")
        assert rows["targets"].shape == stand_ins["targets"].shape
    np.testing.assert_array_equal(np.asarray(rows["tokens"]), reader.read(0)["tokens"])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("tokens", [None, 1, 8, 21])
def test_validation_scores_each_token_once_in_order(shards, sequences, tokens):
    stream = open_split(shards, "val")
    rows = list(validation_rows(stream, CONTEXT, vocab_size=COUNT, batch_size=sequences, tokens=tokens))
    targets = np.concatenate([batch["targets"].reshape(-1) for batch in rows])
    inputs = np.concatenate([batch["tokens"].reshape(-1) for batch in rows])
    scored = targets != IGNORE_INDEX
    np.testing.assert_array_equal(targets[scored], np.arange(1, (tokens or 22) + 1))
    np.testing.assert_array_equal(inputs[scored], targets[scored] - 1)
    assert {batch["tokens"].shape for batch in rows} == {(1, sequences, CONTEXT)}
    assert len(rows) == -(-(tokens or 22) // (sequences * CONTEXT))


def test_validation_leaves_out_what_is_not_scored(tmp_path):
    marks = (np.arange(23) % 3 == 0).astype(np.uint8)
    beside = {("val", "scored"): marks}
    path = write_shards(tmp_path / "s", {"val": [np.arange(23)]}, own=tokenizer(), sidecars=beside)
    rows = list(validation_rows(open_split(path, "val"), CONTEXT, vocab_size=COUNT, batch_size=2))
    targets = np.concatenate([batch["targets"].reshape(-1) for batch in rows])
    np.testing.assert_array_equal(targets[targets != IGNORE_INDEX], np.arange(3, 23, 3))


def test_a_token_beyond_the_vocabulary_is_an_error_that_names_it(shards):
    with pytest.raises(UserError, match=r"token id \d+ in .*\(train\) is beyond model.vocab_size 10.*tokenizer"):
        batches(ConcatSequences(open_split(shards, "train"), CONTEXT), 11, vocab_size=10).read(0)
    with pytest.raises(UserError, match=r"token id 22 in .*\(val\)"):
        list(validation_rows(open_split(shards, "val"), CONTEXT, vocab_size=22, batch_size=8))


def test_batches_that_do_not_divide_say_what_would(monkeypatch):
    with pytest.raises(UserError, match=r"batch\.sequences 6 .*batch\.accumulate 4"):
        BatchSize(6, 4)
    with pytest.raises(UserError, match=r"6 sequences a group do not split over 4 devices \(data × fsdp\)"):
        BatchSize(12, 2).check_devices(MeshConfig(data=2, fsdp=2))
    BatchSize(16, 2).check_devices(MeshConfig(data=2, fsdp=4))
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match=r"uses 4 of the 8 devices of 4 processes.*whose product is 8"):
        BatchSize(16, 2).check_devices(MeshConfig(data=4))
    BatchSize(16, 2).check_devices(MeshConfig(data=2, tensor=4))
