"""Batches from disk to devices: a function of (seed, step), whatever the number of processes.

Rows are numbered through the run: a step reads the rows after those of all steps before it, unless it passes some over
(`row_offsets`). Each process reads only the
rows of its own devices. There is no state to save: after a restart, a step reads what it would have read.
"""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from gptjax.core.constants import IGNORE_INDEX
from gptjax.data.batch_size import BatchSize
from gptjax.data.row_readers import check_token_ids
from gptjax.data.sequences import ConcatSequences
from gptjax.data.source import ReadSpec, RowReader
from gptjax.data.token_stream import TokenStream
from gptjax.sharding.axes import GBT
from gptjax.sharding.mesh import MeshConfig

Batch = dict[str, GBT]
"""`tokens` and `targets` (G, B, T) int32, where G counts micro-batches; a target of IGNORE_INDEX is not scored. With
documents also `segments` and `positions`, with a reference `reference`, see `source.RowReader.read`."""
HostBatch = dict[str, np.ndarray]
"""The same on the host."""


class BatchLoader:
    """The batches of a run, for this process's devices."""

    def __init__(self, reader: RowReader, spec: ReadSpec, *, mesh: MeshConfig) -> None:
        self.reader, self.spec, self.mesh = reader, spec, mesh

    def batch(self, step: int) -> BatchSize:
        """The batch size of a step."""
        return next(batch for begin, batch in reversed(self.spec.batch_schedule) if begin <= step)

    def read(self, step: int, sharding: NamedSharding | None = None) -> HostBatch:
        """The batch of a step. With a sharding, rows that are not on this process's devices are zeros."""
        batch, length = self.batch(step), self.spec.context_length
        shape = (batch.grad_accum, batch.microbatch, length)
        places = np.arange(batch.size).reshape(shape[:2])[:, _find_local_rows(shape, sharding)].reshape(-1)
        found = self.reader.read(self.spec.first_row(step) + places)
        source = f"{self.reader.name}, step {step},"
        check_token_ids(found["tokens"], self.spec.vocab_size, source=source)
        check_token_ids(found["targets"][found["targets"] != IGNORE_INDEX], self.spec.vocab_size, source=source)
        rows = {name: np.zeros((batch.size, length), dtype) for name, dtype in batch_fields(self.spec).items()}
        for name, array in rows.items():
            array[places] = found[name]
        return {name: array.reshape(shape) for name, array in rows.items()}

    def iterate_from(self, step: int) -> Iterator[Batch]:
        """Batches from this step on, read ahead by a thread. Use it under `mesh.activate()`."""
        import grain  # slow to import

        sharding = batch_sharding(self.mesh)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, self.reader.prefetch))
        # A range without end is sliced in no time, so a resumed run replays nothing.
        steps = grain.MapDataset.range(2**40)[step:].map(lambda step: self.read(int(step), sharding))
        for rows in steps.to_iter_dataset(options):
            yield put_on_devices(rows, self.mesh)

    def epochs(self, step: int) -> dict[str, float]:
        """Passes over the data after so many steps, by metric name."""
        return self.reader.epochs(self.spec.first_row(step))

    def abstract_batch(self, step: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a step's batch. Call it under `mesh.activate()`."""
        return abstract_batch(self.batch(step), self.spec, mesh=self.mesh)


def batch_fields(spec: ReadSpec) -> dict[str, np.dtype]:
    """The names and types of a batch's arrays."""
    names: tuple[str, ...] = ("tokens", "targets", "segments", "positions")
    names = names if spec.with_documents else names[:2]
    fields: dict[str, np.dtype] = dict.fromkeys(names, np.dtype(np.int32))
    return fields if spec.reference is None else fields | {"reference": np.dtype(np.float32)}


def abstract_batch(batch: BatchSize, spec: ReadSpec, *, mesh: MeshConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch, to compile without data. Call it under `mesh.activate()`."""
    shape = (batch.grad_accum, batch.microbatch, spec.context_length)
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in batch_fields(spec).items()}


def batch_sharding(mesh: MeshConfig) -> NamedSharding | None:
    """How a batch lies on the devices of all processes; None for one device. Call it under `mesh.activate()`."""
    spec = mesh.activation_spec("GBT")
    return None if spec is None else NamedSharding(jax.sharding.get_mesh(), spec)


def _find_local_rows(shape: tuple[int, ...], sharding: NamedSharding | None) -> np.ndarray:
    """Which of the B rows of a micro-batch are on this process's devices, ascending."""
    rows = np.arange(shape[1])
    if sharding is None:
        return rows
    parts = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([rows[part[1]] for part in parts if part]))


def put_on_devices(batch: Mapping[str, np.ndarray], mesh: MeshConfig) -> Batch:
    """Copy a batch to the devices, from each process what belongs to its own. Call it under `mesh.activate()`."""
    if (sharding := batch_sharding(mesh)) is None:
        return dict(jax.device_put(batch))
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for name, array in batch.items()
    }


def iter_validation_batches(
    stream: TokenStream,
    context_length: int,
    *,
    vocab_size: int,
    batch_size: int,
    tokens: int | None = None,
    documents: ConcatSequences | None = None,
) -> Iterator[HostBatch]:
    """All of a split (or its first `tokens` predictions), once, in order, in rows that do not overlap.

    Yields batches (1, batch_size, T) on the host; targets that the loss mask excludes are ignored. The last batch is
    filled up with ignored targets, so the sum over all batches does not depend on `batch_size`. `documents`, the
    stream's `ConcatSequences`, adds `segments` and `positions`.
    """
    mask = stream.loss_mask
    predicted = min(len(stream) - 1, tokens or len(stream))
    per_batch = batch_size * context_length
    for start in range(0, predicted, per_batch):
        count = min(per_batch, predicted - start)
        span = stream.read(start, count + 1).astype(np.int32)
        check_token_ids(span, vocab_size, source=stream.name)
        inputs = np.zeros(per_batch, np.int32)
        targets = np.full(per_batch, IGNORE_INDEX, np.int32)
        inputs[:count], targets[:count] = span[:-1], span[1:]
        if mask is not None:
            targets[:count][mask[start + 1 : start + 1 + count] == 0] = IGNORE_INDEX
        rows = {"tokens": inputs, "targets": targets}
        if documents is not None:
            rows |= documents.locate_documents(start + context_length * np.arange(batch_size))
        yield {name: array.reshape(1, batch_size, context_length) for name, array in rows.items()}
