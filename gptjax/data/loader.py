"""Tokens from disk to device: the batch is a function of (seed, step), whatever the number of processes.

grain permutes the rows of a split (windows.py) with a seed, anew each epoch, without replacement; a step reads the next
B of them, and B may change at a step. In a mixture every set has its own order, and the turns (mixture.py) say which
set is next. There is no state to save: after a restart, step s reads what step s would have read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from gptjax.core.errors import UserError
from gptjax.data.config import BatchSize, Mixture, TokenShards, count_rows_before, mixture_components, mixture_weights
from gptjax.data.mixture import MixtureSchedule
from gptjax.data.sequences import ConcatSequences, Sequences, open_sequences
from gptjax.data.shards import TokenStream
from gptjax.model.loss import IGNORE_INDEX
from gptjax.sharding.axes import GBT
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer

Batch = dict[str, GBT]
"""`tokens` and `targets` (G, B, T) int32, where G counts accumulation groups; IGNORED is not scored. For document
masks, `segments` (the documents of a row, counted from 1; padding is 0) and `positions` (in the document) as well."""


class BatchLoader:
    """The rows of every step, for this process's devices.

    Rows are numbered through the run: row r of step s is row s·B + r, as long as all steps have B. The turns of the
    mixture say from which set a row comes and how many came from there before, and that set's own permutation says
    which of its windows it is, wherever it is read. Each process reads only the rows that its devices hold, wherever
    they are in the mesh.
    """

    def __init__(
        self,
        windows: Sequence[Sequences],
        batch: BatchSize,
        *,
        later: Sequence[tuple[int, BatchSize]] = (),
        vocab_size: int,
        turns: MixtureSchedule | None = None,
        seed: int,
        mesh: MeshConfig,
        prefetch: int = 2,
        documents: bool = False,
    ) -> None:
        """`later` are (step, batch) pairs, ascending: from that step on this batch.

        `documents` adds to every row which document each token is of, and its place in it: for masks.
        """
        self.sequences, self.mesh, self.prefetch = tuple(windows), mesh, prefetch
        self._changes = [(0, batch), *later]
        self._vocab_size, self._documents = vocab_size, documents
        self._turns = turns or MixtureSchedule([(0, (1.0,))])
        self._orders = [
            grain.MapDataset.range(len(one)).shuffle(seed=(seed + 7919 * i) % 2**32).repeat()
            for i, one in enumerate(self.sequences)
        ]

    def batch(self, step: int) -> BatchSize:
        """The batch that a step reads."""
        return next(batch for begin, batch in reversed(self._changes) if begin <= step)

    def read(self, step: int, sharding: NamedSharding | None = None) -> dict[str, np.ndarray]:
        """`Rows` of a step on the host, (G, B, T): all, or zeros but for those that lie on this process's devices."""
        batch, first = self.batch(step), count_rows_before(step, self._changes)
        shape = (batch.grad_accum, batch.microbatch, self.sequences[0].context_length)
        places = np.arange(batch.size).reshape(shape[:2])[:, _rows_here(shape, sharding)].reshape(-1)
        sets, numbers = self._turns(first + places)
        names = batch_fields(documents=self._documents)
        rows = {name: np.zeros((batch.size, shape[2]), np.int32) for name in names}
        for i in np.unique(sets):
            own, order = sets == i, self._orders[i]
            here, chosen = places[own], np.array([order[int(number)] for number in numbers[own]])
            found = self.sequences[i].read(chosen, documents=self._documents)
            if found.documents is not None:
                rows["segments"][here], rows["positions"][here] = found.documents
            for ids in (found.tokens, found.targets):
                check_token_ids(ids, self._vocab_size, source=self.sequences[i].stream.name)
            rows["tokens"][here] = found.tokens
            rows["targets"][here] = (
                found.targets if found.loss_mask is None else np.where(found.loss_mask, found.targets, IGNORE_INDEX)
            )
        return {name: array.reshape(shape) for name, array in rows.items()}

    def epochs(self, step: int) -> dict[str, float]:
        """How often each set has been seen after so many steps: `epoch`, or `epoch/NAME` for each of several."""
        counts = self._turns.counts(count_rows_before(step, self._changes))
        seen = [int(count) / len(one) for count, one in zip(counts, self.sequences, strict=True)]
        if len(seen) == 1:
            return {"epoch": seen[0]}
        names = [one.stream.paths[0].parent.name for one in self.sequences]
        unique = [name if names.count(name) == 1 else f"{name}.{i}" for i, name in enumerate(names)]
        return {f"epoch/{name}": epoch for name, epoch in zip(unique, seen, strict=True)}

    def describe(self) -> list[str]:
        """A line for each set: where it is, what it holds, and what its packing leaves out."""
        return [
            f"{one.stream.paths[0].parent}: {len(one.stream):,} tokens in {len(one):,} windows"
            + (f", {one.dropped:.2%} of the tokens not used" if one.dropped > 0.001 else "")
            + (f", {one.padding:.2%} padding" if one.padding > 0 else "")
            + ("" if one.stream.has_manifest else "; without a manifest.json nobody can say whether they are as made")
            for one in self.sequences
        ]

    def iterate_from(self, step: int) -> Iterator[Batch]:
        """Batches from this step on, read ahead by a thread."""
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, self.prefetch))
        # An endless source is sliced cheaply, and leaves nothing to replay.
        steps = _Steps(self, batch_sharding(self.mesh))
        for rows in grain.MapDataset.source(steps)[step:].to_iter_dataset(options):
            yield put_on_devices(rows, self.mesh)

    def abstract_batch(self, context_length: int, *, step: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a step's batch, to compile for before one is read."""
        return abstract_batch(self.batch(step), context_length, mesh=self.mesh, documents=self._documents)


@dataclass(frozen=True)
class _Steps:
    """All steps there could be, as grain's random access."""

    batches: BatchLoader
    sharding: NamedSharding | None

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.batches.read(int(index), self.sharding)


def open_loader(
    data: TokenShards | Mixture,
    batch: BatchSize,
    *,
    later: Sequence[tuple[int, BatchSize]] = (),
    context_length: int,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    seed: int,
    mesh: MeshConfig,
    documents: bool = False,
) -> BatchLoader:
    """The batches of a run. `tokenizer` tells where documents end in foreign shards, if something wants to know."""
    parts, end = mixture_components(data), tokenizer.end_of_text if tokenizer else None
    windows = [
        open_sequences(part.data.open_split("train"), context_length, part.data.packing, end_of_text=end)
        for part in parts
    ]
    turns = MixtureSchedule(
        [(count_rows_before(step, [(0, batch), *later]), weights) for step, weights in mixture_weights(data)]
    )
    return BatchLoader(
        windows,
        batch,
        later=later,
        vocab_size=vocab_size,
        turns=turns,
        seed=seed,
        mesh=mesh,
        prefetch=data.prefetch,
        documents=documents,
    )


def batch_fields(*, documents: bool) -> tuple[str, ...]:
    """What a batch holds."""
    return ("tokens", "targets", "segments", "positions") if documents else ("tokens", "targets")


def abstract_batch(
    batch: BatchSize, context_length: int, *, mesh: MeshConfig, documents: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch, whether or not there is data. Call it under `mesh.active()`."""
    shape = (batch.grad_accum, batch.microbatch, context_length)
    rows = jax.ShapeDtypeStruct(shape, jax.numpy.int32, sharding=batch_sharding(mesh))
    return dict.fromkeys(batch_fields(documents=documents), rows)


def batch_sharding(mesh: MeshConfig) -> NamedSharding | None:
    """How `Rows` lie on the devices of all processes; None for one device. Call it under `mesh.active()`."""
    spec = mesh.activation_spec("GBT")
    return None if spec is None else NamedSharding(jax.sharding.get_mesh(), spec)


def _rows_here(shape: tuple[int, ...], sharding: NamedSharding | None) -> np.ndarray:
    """Which of the B rows of a group lie on this process's devices, ascending."""
    rows = np.arange(shape[1])
    if sharding is None:
        return rows
    parts = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([rows[part[1]] for part in parts if part]))


def put_on_devices(rows: Mapping[str, np.ndarray], mesh: MeshConfig) -> Batch:
    """`Rows` on the host to the devices, which take from each process what is theirs. Call it under
    `mesh.active()`."""
    if (sharding := batch_sharding(mesh)) is None:
        return dict(jax.device_put(rows))
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for name, array in rows.items()
    }


def validation_rows(
    stream: TokenStream,
    context_length: int,
    *,
    vocab_size: int,
    batch_size: int,
    tokens: int | None = None,
    documents: ConcatSequences | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """All of a split (or its first `tokens` predictions), once, in order, in windows that do not overlap.

    Yields `Rows` (1, batch_size, T) on the host; what the stream marks as not scored is ignored. The last window and
    batch are filled up with ignored targets, so the sum over all batches does not depend on `batch_size`. `documents`,
    the stream's straight windows, says where documents are, for masks.
    """
    marks = stream.loss_mask
    predicted = min(len(stream) - 1, tokens or len(stream))
    per_batch = batch_size * context_length
    for start in range(0, predicted, per_batch):
        count = min(per_batch, predicted - start)
        span = stream.read(start, count + 1).astype(np.int32)
        check_token_ids(span, vocab_size, source=stream.name)
        inputs = np.zeros(per_batch, np.int32)
        targets = np.full(per_batch, IGNORE_INDEX, np.int32)
        inputs[:count], targets[:count] = span[:-1], span[1:]
        if marks is not None:
            targets[:count][marks[start + 1 : start + 1 + count] == 0] = IGNORE_INDEX
        rows = {"tokens": inputs, "targets": targets}
        if documents is not None:
            rows |= documents.documents_at(start + context_length * np.arange(batch_size))._asdict()
        yield {name: array.reshape(1, batch_size, context_length) for name, array in rows.items()}


def check_token_ids(tokens: np.ndarray, vocab_size: int, *, source: str) -> None:
    """On a device an id beyond the table would quietly read a wrong row; here it is an error."""
    if tokens.size and (largest := int(tokens.max())) >= vocab_size:
        raise UserError(
            f"token id {largest} in {source} is beyond model.vocab_size {vocab_size}. "
            "The shards were made with another tokenizer: prepare them again, or set --model.vocab-size."
        )
