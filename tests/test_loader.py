"""Batches: the same rows for a seed and a step, whatever the devices and processes."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny import tokenizer, write_shards

from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError
from gptjax.data.batch_size import BatchSize
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.data.loader import BatchLoader, iter_validation_batches
from gptjax.data.packing import Packing
from gptjax.data.row_readers import SequenceReader
from gptjax.data.source import DataSource, ReadSpec, RowReader, Rows
from gptjax.data.splits import open_split
from gptjax.sharding.mesh import MeshConfig

CONTEXT = 4
COUNT = 45
"""Eleven sequences of four targets; every token occurs once, so a sequence is known by its tokens."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens 0 to 44 in three files, whose ends lie inside sequences; 23 for validation."""
    parts = np.split(np.arange(COUNT), [7, 30])
    return write_shards(tmp_path_factory.mktemp("data") / "shards", {"train": parts, "val": [np.arange(23)]})


@pytest.fixture(scope="module")
def mixture(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """The eleven sequences, and seven others with tokens from 100 on. Weights change at step 10."""
    other = write_shards(tmp_path_factory.mktemp("data") / "other", {"train": [np.arange(100, 129)]})
    first, second = TokenShards(str(shards)), TokenShards(str(other))
    return Mixture((MixtureComponent(first, 0.5, ((10, 0.25),)), MixtureComponent(second, 0.5, ((10, 0.75),))))


def make_spec(
    *batches: tuple[int, BatchSize], seed: int = 0, vocab_size: int = 200, documents: bool = False
) -> ReadSpec:
    return ReadSpec(CONTEXT, seed, vocab_size, None, documents, batches or ((0, BatchSize(4)),))


def make_loader(
    data: DataSource | Path, *batches: tuple[int, BatchSize], mesh: MeshConfig | None = None, **changes: Any
) -> BatchLoader:
    spec = make_spec(*batches, **changes)
    source = TokenShards(str(data)) if isinstance(data, Path) else data
    return BatchLoader(source.open(spec), spec, mesh=mesh or MeshConfig())


def sequence_numbers(tokens: np.ndarray | jax.Array) -> list[int]:
    """Which sequence each row is, in the order of reading."""
    return (tokens[..., 0] // CONTEXT).reshape(-1).tolist()


def read_numbers(loader: BatchLoader, steps: int) -> list[int]:
    return [number for step in range(steps) for number in sequence_numbers(loader.read(step)["tokens"])]


def test_batches_have_the_following_tokens_as_targets(shards: Path) -> None:
    rows = next(make_loader(shards, (0, BatchSize(4, 2))).iterate_from(0))
    assert rows["tokens"].shape == rows["targets"].shape == (2, 2, CONTEXT)
    assert rows["tokens"].dtype == np.int32
    np.testing.assert_array_equal(rows["targets"], rows["tokens"] + 1)


def test_epochs_read_every_sequence_once_in_different_orders(shards: Path) -> None:
    seen = read_numbers(make_loader(shards), 6)
    first, second = seen[:11], seen[11:22]
    assert sorted(first) == sorted(second) == list(range(11))
    assert len({tuple(first), tuple(second), tuple(range(11))}) == 3


def test_rows_depend_on_seed_and_step_alone(shards: Path) -> None:
    two = (0, BatchSize(4, 2))
    whole = [sequence_numbers(rows["tokens"]) for rows in islice(make_loader(shards, two).iterate_from(0), 8)]
    for step in (0, 3, 7):
        assert sequence_numbers(next(make_loader(shards, two).iterate_from(step))["tokens"]) == whole[step]
        assert sequence_numbers(make_loader(shards, (0, BatchSize(4, 4))).read(step)["tokens"]) == whole[step]
    assert read_numbers(make_loader(shards, seed=1), 1) != whole[0]


PROCESSES = {
    "one": [(0, 1, 2, 3)],
    "two in another order": [(2, 0), (3, 1)],
    "four": [(2,), (0,), (3,), (1,)],
    "four in pairs that share rows": [(0, 1), (1, 0), (2, 3), (2, 3)],
}
Check = Callable[[BatchLoader, Sequence[tuple[int, ...]], int], None]


@pytest.fixture
def check_processes(monkeypatch: pytest.MonkeyPatch) -> Check:
    """Each process reads what lies on its devices, and nothing else. Four devices hold parts of the rows."""
    config = MeshConfig(data=4)
    mesh, spec = config.make_mesh(), config.activation_spec("GBT")
    assert mesh is not None
    assert spec is not None
    sharding = NamedSharding(mesh, spec)

    def check(loader: BatchLoader, processes: Sequence[tuple[int, ...]], step: int) -> None:
        whole = loader.read(step)
        for parts in processes:
            devices = [jax.devices()[part] for part in parts]

            def addressable(self: NamedSharding, shape: tuple[int, ...], devices: list[Any] = devices) -> dict:
                return {device: self.devices_indices_map(shape)[device] for device in devices}

            monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", addressable)
            found = loader.read(step, sharding)
            assert found.keys() == whole.keys()
            for name, rows in whole.items():
                wanted = np.zeros_like(rows).reshape(len(rows), 4, -1, CONTEXT)
                wanted[:, parts] = rows.reshape(wanted.shape)[:, parts]
                np.testing.assert_array_equal(found[name], wanted.reshape(rows.shape))

    return check


@pytest.mark.parametrize("processes", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("grad_accum", [1, 2])
def test_processes_read_the_rows_of_their_devices(
    shards: Path, check_processes: Check, processes: Sequence[tuple[int, ...]], grad_accum: int
) -> None:
    loader = make_loader(shards, (0, BatchSize(8, grad_accum)))
    for step in range(4):
        check_processes(loader, processes, step)


STAGED = ((0, BatchSize(4)), (2, BatchSize(8, 2)), (5, BatchSize(4, 4)), (6, BatchSize(16, 1)))


def test_changing_batch_sizes_read_the_same_sequence_of_rows(shards: Path) -> None:
    loader = make_loader(shards, *STAGED)
    staged = [loader.read(step)["tokens"] for step in range(8)]
    assert [array.shape[:2] for array in staged[1:7]] == [(1, 4), (2, 4), (2, 4), (2, 4), (4, 1), (1, 16)]
    seen = [number for array in staged for number in sequence_numbers(array)]
    assert seen == read_numbers(make_loader(shards), 17)
    assert all(sorted(seen[begin : begin + 11]) == list(range(11)) for begin in range(0, 66, 11))
    assert [loader.epochs(step)["epoch"] for step in (2, 6, 8)] == [8 / 11, 36 / 11, 68 / 11]
    assert [loader.abstract_batch(step)["tokens"].shape[:2] for step in (0, 4, 5)] == [(1, 4), (2, 4), (4, 1)]
    resumed = [np.asarray(rows["tokens"]) for rows in islice(make_loader(shards, *STAGED).iterate_from(4), 4)]
    for array, wanted in zip(resumed, staged[4:], strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_mixture_keeps_its_weights_and_each_component_its_epochs(mixture: Mixture) -> None:
    """Every component reads all its sequences before any comes again, also where its weight changes."""
    loader = make_loader(mixture)
    rows = np.concatenate([loader.read(step)["tokens"].reshape(-1, CONTEXT) for step in range(40)])
    is_other = rows[:, 0] >= 100
    assert [int(is_other[:40].sum()), int(is_other[40:].sum())] == [20, 90]
    for mask, count in ((~is_other, 11), (is_other, 7)):
        firsts = rows[mask, 0]
        for epoch in range(len(firsts) // count):
            assert len(set(firsts[epoch * count : (epoch + 1) * count])) == count
    assert loader.epochs(40) == {"epoch/shards": 50 / 11, "epoch/other": 110 / 7}


@pytest.mark.parametrize("processes", PROCESSES.values(), ids=PROCESSES)
def test_mixture_with_changing_batch_sizes_reads_one_sequence(
    mixture: Mixture, check_processes: Check, processes: Sequence[tuple[int, ...]]
) -> None:
    """Weights change inside of the staged run's rows, at the same row as in the plain one."""
    staged = Mixture(tuple(MixtureComponent(one.data, 0.5, ((5, one.weight_at(10)),)) for one in mixture.components))
    plain = make_loader(
        Mixture(tuple(MixtureComponent(one.data, 0.5, ((8, one.weight_at(10)),)) for one in mixture.components))
    )
    loader = make_loader(staged, (0, BatchSize(4)), (2, BatchSize(8, 2)), (5, BatchSize(16, 1)))
    whole = [loader.read(step)["tokens"].reshape(-1, CONTEXT) for step in range(7)]
    wanted = [plain.read(step)["tokens"].reshape(-1, CONTEXT) for step in range(16)]
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate(wanted))
    for step in range(7):
        check_processes(loader, processes, step)


@dataclass(frozen=True)
class Counting(DataSource):
    """A source of its own: row n holds n, n + 1, …; odd targets are scored."""

    def open(self, spec: ReadSpec) -> RowReader:
        return CountingReader()


class CountingReader(RowReader):
    def read(self, rows: np.ndarray) -> Rows:
        tokens = (rows[:, None] + np.arange(CONTEXT)).astype(np.int32)
        return {"tokens": tokens, "targets": np.where(tokens % 2 == 0, tokens + 1, IGNORE_INDEX)}


def test_source_of_its_own_is_loaded_and_mixed(shards: Path) -> None:
    loader = make_loader(Counting(), STAGED[0], STAGED[1])
    tokens = np.concatenate([loader.read(step)["tokens"].reshape(-1, CONTEXT) for step in range(4)])
    np.testing.assert_array_equal(tokens[:, 0], np.arange(24))
    assert loader.read(3)["targets"].min() == IGNORE_INDEX
    assert (loader.epochs(3), loader.reader.describe(), loader.reader.fingerprint) == ({}, [], None)
    source = Counting()
    assert (source.resolve(), source.load_tokenizer(), source.history_until(3)) == (source, None, "")
    assert isinstance(source, DataSource)
    assert isinstance(loader.reader, RowReader)
    mixed = make_loader(Mixture((MixtureComponent(source), MixtureComponent(TokenShards(str(shards)))))).read(0)
    np.testing.assert_array_equal(mixed["tokens"][0, ::2, 0], [0, 1])


def test_source_with_token_beyond_vocabulary_is_an_error() -> None:
    loader = make_loader(Counting(), vocab_size=10)
    assert loader.read(0)["tokens"].max() == 6
    with pytest.raises(UserError, match=r"token id 1\d in data, step 2, is beyond model.vocab_size 10"):
        loader.read(2)


def test_documents_belong_to_the_rows_they_come_with(tmp_path: Path) -> None:
    starts = {("train", "documents"): np.array([0, 3, 10, 11, 30])}
    path = write_shards(tmp_path / "s", {"train": [np.arange(COUNT)]}, own=tokenizer(), sidecars=starts)
    loader = make_loader(path, (0, BatchSize(4, 2)), documents=True)
    assert isinstance(loader.reader, SequenceReader)
    sequences = loader.reader.sequences
    for step in range(3):
        rows = loader.read(step)
        wanted = sequences.read(rows["tokens"][..., 0].reshape(-1) // CONTEXT, with_documents=True)
        for name in ("segments", "positions"):
            np.testing.assert_array_equal(rows[name].reshape(-1, CONTEXT), wanted[name])
    assert sequences.read(np.arange(len(sequences)), with_documents=True)["segments"].max() > 1
    assert make_loader(path).read(0).keys() == {"tokens", "targets"}


def test_batches_lie_on_the_devices_of_the_mesh(shards: Path) -> None:
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    with mesh.activate():
        loader = make_loader(shards, (0, BatchSize(8, 2)), mesh=mesh)
        rows, abstract = next(loader.iterate_from(0)), loader.abstract_batch()
        assert rows["tokens"].sharding == abstract["tokens"].sharding
        sharding = rows["targets"].sharding
        assert isinstance(sharding, NamedSharding)
        assert sharding.spec == mesh.activation_spec("GBT")
        assert rows["targets"].shape == abstract["targets"].shape
    np.testing.assert_array_equal(np.asarray(rows["tokens"]), loader.read(0)["tokens"])


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_file_cut_while_it_is_read_is_an_error_that_names_it(tmp_path: Path, packing: Packing) -> None:
    """Not SIGBUS, the end of the process without a word."""
    parts = [np.arange(1, 9000), np.arange(9000, 18000)]
    beside = {("train", "documents"): np.arange(0, 17000, 10)}
    path = write_shards(tmp_path / "shards", {"train": parts}, own=tokenizer(), sidecars=beside)
    loader = make_loader(TokenShards(str(path), packing=packing), vocab_size=20_000)
    batches = loader.iterate_from(0)
    next(batches)
    os.truncate(path / "train_000001.bin", 4096)
    with pytest.raises(UserError, match=r"train_000001\.bin: 4,096 bytes, and 19,024 when it was opened: it was cut"):
        list(islice(batches, 99))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("tokens", [None, 1, 8, 21])
def test_validation_scores_each_token_once_in_order(shards: Path, batch_size: int, tokens: int | None) -> None:
    stream = open_split(shards, "val")
    rows = list(iter_validation_batches(stream, CONTEXT, vocab_size=COUNT, batch_size=batch_size, tokens=tokens))
    targets = np.concatenate([batch["targets"].reshape(-1) for batch in rows])
    inputs = np.concatenate([batch["tokens"].reshape(-1) for batch in rows])
    scored = targets != IGNORE_INDEX
    np.testing.assert_array_equal(targets[scored], np.arange(1, (tokens or 22) + 1))
    np.testing.assert_array_equal(inputs[scored], targets[scored] - 1)
    assert {batch["tokens"].shape for batch in rows} == {(1, batch_size, CONTEXT)}
    assert len(rows) == -(-(tokens or 22) // (batch_size * CONTEXT))


def test_validation_ignores_what_the_loss_mask_excludes(tmp_path: Path) -> None:
    mask = {("val", "scored"): (np.arange(23) % 3 == 0).astype(np.uint8)}
    path = write_shards(tmp_path / "s", {"val": [np.arange(23)]}, own=tokenizer(), sidecars=mask)
    rows = list(iter_validation_batches(open_split(path, "val"), CONTEXT, vocab_size=COUNT, batch_size=2))
    targets = np.concatenate([batch["targets"].reshape(-1) for batch in rows])
    np.testing.assert_array_equal(targets[targets != IGNORE_INDEX], np.arange(3, 23, 3))


def test_validation_with_token_beyond_vocabulary_is_an_error(shards: Path) -> None:
    with pytest.raises(UserError, match=r"token id 22 in .*\(val\)"):
        list(iter_validation_batches(open_split(shards, "val"), CONTEXT, vocab_size=22, batch_size=8))


def test_batch_size_that_does_not_divide_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"batch_size 6 .*grad_accum 4"):
        BatchSize(6, 4)
    with pytest.raises(UserError, match=r"grad_accum is 0; it must be at least 1"):
        BatchSize(6, 0)
    with pytest.raises(UserError, match=r"6 sequences per micro-batch do not split over 4 devices \(data × fsdp\)"):
        BatchSize(12, 2).check_devices(MeshConfig(data=2, fsdp=2))
    BatchSize(16, 2).check_devices(MeshConfig(data=2, fsdp=4))
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match=r"uses 4 of the 8 devices of 4 processes.*whose product is 8"):
        BatchSize(16, 2).check_devices(MeshConfig(data=4))
    BatchSize(16, 2).check_devices(MeshConfig(data=2, tensor=4))
