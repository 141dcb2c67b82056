"""Tokens from disk to device: the batch is a function of (seed, step), whatever the number of processes.

A split is one long stream of tokens, cut into windows of T + 1 that overlap by one, so that every token but the first
is predicted exactly once. grain permutes the windows with a seed, anew each epoch, without replacement; a step reads
the next B of them. There is no reader state to save: after a restart, step s reads what step s would have read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from gptjax.errors import UserError
from gptjax.layout import Layout
from gptjax.loss import IGNORED
from gptjax.manifest import Manifest, read_manifest
from gptjax.shapes import GBT
from gptjax.shards import TokenStream, open_split
from gptjax.tokenizer import Tokenizer, load_tokenizer

Rows = dict[str, GBT]
"""`tokens` (G, B, T) int32 and `targets` (G, B, T) int32, where G counts accumulation groups; IGNORED is not scored."""


@dataclass(frozen=True)
class Batch:
    """How many windows one optimizer step sees."""

    sequences: int = 8
    """Windows per optimizer step, over all devices and accumulation groups."""
    accumulate: int = 1
    """Groups into which they are divided: gradients of one group at a time are in memory."""

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.accumulate < 1 or self.sequences % self.accumulate:
            raise UserError(
                f"batch.sequences {self.sequences} does not divide into batch.accumulate {self.accumulate} equal "
                "groups. Use a multiple of it."
            )

    def check_devices(self, layout: Layout) -> None:
        """Raise unless each group divides over the devices that share its rows."""
        if layout.batch_devices % jax.process_count():
            raise UserError(
                f"layout: rows are divided over {layout.batch_devices} devices (data × fsdp), which do not split over "
                f"{jax.process_count()} processes. Make layout.tensor no larger than one process's devices."
            )
        group = self.sequences // self.accumulate
        if group % layout.batch_devices:
            raise UserError(
                f"batch: {group} sequences a group do not split over {layout.batch_devices} devices (data × fsdp). "
                f"Use a multiple of {layout.batch_devices} × batch.accumulate, or another --layout."
            )


@dataclass(frozen=True)
class TokenShards:
    """A directory of token shards, as `data_pipelines.prepare` writes it and as FineWeb's are published."""

    path: str | None = None
    """Directory with `*train*.bin` and `*val*.bin`."""
    format: Literal["shards", "raw-uint16"] = "shards"
    """`shards`: 1,024-byte header (llm.c, modded-nanogpt); `raw-uint16`: nanoGPT's headerless files."""
    tokenizer: str | None = None
    """For shards without a tokenizer.json beside them: `gpt2`, `gpt2:DIR`, `bytes` or a tokenizer.json elsewhere."""
    prefetch: int = 2
    """Batches read ahead by a thread."""

    def resolve(self) -> "TokenShards":
        """The shards themselves; a data set that must be prepared first overrides this."""
        if self.path is None:
            raise UserError("data.path is not given. Point it at a directory of shards: --data.path=DIR.")
        return self

    def split(self, name: Literal["train", "val"]) -> TokenStream:
        return open_split(self._directory, name, format=self.format)

    def manifest(self) -> Manifest | None:
        """What `prepare` wrote beside the shards; None for foreign ones."""
        return read_manifest(self._directory)

    def vocabulary(self) -> Tokenizer | None:
        """The tokenizer that made the shards; None for foreign ones of which nobody said."""
        beside = Path(self._directory) / "tokenizer.json"
        manifest = self.manifest()
        if manifest is None and not beside.is_file():
            return None if self.tokenizer is None else load_tokenizer(self.tokenizer)
        tokenizer = load_tokenizer(beside)
        if manifest is not None and tokenizer.fingerprint != manifest.fingerprint:
            raise UserError(
                f"{beside} is not the tokenizer that made the shards (fingerprint {tokenizer.fingerprint[:12]}, "
                f"manifest.json says {manifest.fingerprint[:12]}). Prepare them again."
            )
        if self.tokenizer is not None and load_tokenizer(self.tokenizer).fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"data.tokenizer is {self.tokenizer!r}, but the shards were made with {tokenizer.name} ({beside}). "
                "Leave it out, or give other shards."
            )
        return tokenizer

    @property
    def _directory(self) -> str:
        path = self.resolve().path
        assert path is not None
        return path


class Windows:
    """Random access to windows of T + 1 tokens: `windows[i]` starts at token i·T; a rest at the end is not read."""

    def __init__(self, stream: TokenStream, context: int, *, vocab_size: int) -> None:
        self.stream, self.context, self.vocab_size = stream, context, vocab_size
        if len(self) == 0:
            raise UserError(
                f"{stream.name} has {len(stream)} tokens, less than one window of model.context + 1 = {context + 1}. "
                "Use more text or a smaller --model.context."
            )

    def __len__(self) -> int:
        return max(0, (len(self.stream) - 1) // self.context)

    def __getitem__(self, index: int) -> np.ndarray:
        window = self.stream.read(int(index) * self.context, self.context + 1).astype(np.int32)
        check_vocabulary(window, self.vocab_size, source=self.stream.name)
        return window


def check_vocabulary(tokens: np.ndarray, vocab_size: int, *, source: str) -> None:
    """On a device an id beyond the table would quietly read a wrong row; here it is an error."""
    if tokens.size and (largest := int(tokens.max())) >= vocab_size:
        raise UserError(
            f"token id {largest} in {source} is beyond model.vocab_size {vocab_size}. "
            "The shards were made with another tokenizer: prepare them again, or set --model.vocab-size."
        )


class Batches:
    """The rows of every step, for this process's devices.

    Row r of step s is element s·B + r of the permuted stream, wherever it is read; each process reads only the rows
    that its devices hold.
    """

    def __init__(self, windows: Windows, batch: Batch, *, seed: int, layout: Layout, prefetch: int = 2) -> None:
        self.windows, self.batch, self.layout, self.prefetch = windows, batch, layout, prefetch
        processes = jax.process_count()
        self._group = batch.sequences // batch.accumulate
        if self._group % processes:
            raise UserError(
                f"batch: {self._group} sequences a group do not split over {processes} processes. "
                f"Use a multiple of {processes} × batch.accumulate."
            )
        # One element per group and process: a step's groups follow each other, each cut into the processes' shares.
        endless = grain.MapDataset.source(windows).shuffle(seed=seed).repeat()
        # An endless stream has no remainder; to keep one, grain would round its length up beyond any index.
        shares = endless.batch(self._group // processes, drop_remainder=True)
        self._shares = shares[jax.process_index() :: processes]

    def local(self, step: int) -> np.ndarray:
        """This process's windows of a step: (G, B / processes, T + 1) int32."""
        groups = self.batch.accumulate
        return np.stack([np.asarray(self._shares[step * groups + group]) for group in range(groups)])

    def starting_at(self, step: int) -> Iterator[Rows]:
        """Batches from this step on, read ahead by a thread."""
        groups = self.batch.accumulate
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, self.prefetch * groups))
        # Slicing an endless dataset is cheap, and leaves nothing to replay.
        shares = iter(self._shares[step * groups :].to_iter_dataset(options))
        while True:
            yield self._to_devices(np.stack([next(shares) for _ in range(groups)]))

    def abstract(self, context: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a batch, to compile for before one is read."""
        shape = (self.batch.accumulate, self._group, context)
        spec = self.layout.acts("GBT")
        sharding = None if spec is None else NamedSharding(jax.sharding.get_mesh(), spec)
        rows = jax.ShapeDtypeStruct(shape, jax.numpy.int32, sharding=sharding)
        return {"tokens": rows, "targets": rows}

    def _to_devices(self, windows: np.ndarray) -> Rows:
        rows = {"tokens": windows[..., :-1], "targets": windows[..., 1:]}
        return {name: put(array, self.layout) for name, array in rows.items()}


def put(array: np.ndarray, layout: Layout) -> jax.Array:
    """(G, b, T) of this process → (G, B, T) over the devices of all."""
    mesh = jax.sharding.get_mesh() if layout.sharded else None
    if mesh is None:
        return jax.device_put(array)
    spec = layout.acts("GBT")
    assert spec is not None
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), array)


def validation_rows(
    stream: TokenStream, context: int, *, vocab_size: int, sequences: int, tokens: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """All of a split (or its first `tokens` predictions), once, in order, in windows that do not overlap.

    Yields `tokens` and `targets` (1, sequences, T) int32. The last window and batch are filled up with ignored targets,
    so the sum over all batches does not depend on `sequences`.
    """
    scored = min(len(stream) - 1, tokens or len(stream))
    per_batch = sequences * context
    for start in range(0, scored, per_batch):
        count = min(per_batch, scored - start)
        span = stream.read(start, count + 1).astype(np.int32)
        check_vocabulary(span, vocab_size, source=stream.name)
        inputs = np.zeros(per_batch, np.int32)
        targets = np.full(per_batch, IGNORED, np.int32)
        inputs[:count], targets[:count] = span[:-1], span[1:]
        shape = (1, sequences, context)
        yield {"tokens": inputs.reshape(shape), "targets": targets.reshape(shape)}
