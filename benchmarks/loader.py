"""Measure tokens per second of the loader, for each packing.

    python benchmarks/loader.py
    python benchmarks/loader.py --tokens=50_000 --context-length=64 --batch-size=8 --steps=5      # in seconds

Random tokens in documents of 20 to 2,000 tokens (log-uniform) are written as shards into a temporary directory. Batches
are read as in training: shuffled, by grain's prefetching thread, onto the device. As a baseline, numpy reads as many
sequences at random places of the same memory map. Results: RESULTS.md, "Loader".
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import tyro

from gptjax.core.errors import exit_on_user_error
from gptjax.core.files import file_sha256
from gptjax.data.batch_size import BatchSize
from gptjax.data.config import TokenShards
from gptjax.data.loader import BatchLoader
from gptjax.data.manifest import Counts, Manifest, ShardFile, Sidecar
from gptjax.data.packing import Packing
from gptjax.data.row_readers import SequenceReader
from gptjax.data.shards import write_shard
from gptjax.data.source import ReadSpec
from gptjax.data.splits import open_split
from gptjax.sharding.mesh import MeshConfig

END_OF_TEXT, VOCAB_SIZE = 50256, 50257


@dataclass(frozen=True)
class Options:
    """The data and the batches."""

    tokens: int = 20_000_000
    """Tokens in the data set."""
    context_length: int = 1024
    batch_size: int = 32
    steps: int = 300
    """Batches to read and time."""

    @property
    def tokens_read(self) -> int:
        """Tokens of all timed batches."""
        return self.steps * self.batch_size * self.context_length


def write_random_shards(directory: Path, tokens: int) -> None:
    """Write random documents as one shard with an index and a manifest."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, END_OF_TEXT, tokens).astype(np.uint16)
    lengths = np.exp(rng.uniform(np.log(20), np.log(2000), tokens // 200)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    starts = starts[starts < tokens]
    ids[starts] = END_OF_TEXT
    shard, index = directory / "train_000000.bin", directory / "train.documents"
    write_shard(shard, ids)
    starts.astype("<i8").tofile(index)
    Manifest(
        tokenizer="random",
        fingerprint="none",
        vocab_size=VOCAB_SIZE,
        dtype="uint16",
        splits={"train": Counts(documents=len(starts), tokens=tokens, bytes=tokens)},
        files={shard.name: ShardFile("train", tokens, shard.stat().st_size, file_sha256(shard))},
        sidecars={index.name: Sidecar("train", "documents", index.stat().st_size, file_sha256(index))},
    ).write(directory)


def measure_packing(options: Options, directory: Path, *, packing: Packing, with_documents: bool) -> str:
    """Read batches as training does. Returns a line of the table."""
    spec = ReadSpec(
        context_length=options.context_length,
        seed=0,
        vocab_size=VOCAB_SIZE,
        end_of_text=END_OF_TEXT,
        with_documents=with_documents,
        batch_schedule=((0, BatchSize(options.batch_size)),),
    )
    start = time.perf_counter()
    reader = TokenShards(str(directory), packing=packing).open(spec)
    opened = time.perf_counter() - start
    assert isinstance(reader, SequenceReader)
    batches = BatchLoader(reader, spec, mesh=MeshConfig()).iterate_from(0)
    next(batches)
    start = time.perf_counter()
    for _ in range(options.steps):
        next(batches)
    rate = options.tokens_read / (time.perf_counter() - start) / 1e6
    dropped, padding = reader.sequences.dropped, reader.sequences.padding
    used = f"{dropped:.2%} dropped, {padding:.2%} padding, opened in {opened:.2f} s"
    return f"{packing + (' with documents' if with_documents else ''):27} {rate:7.1f} M tokens/s   {used}"


def measure_numpy(options: Options, directory: Path) -> str:
    """Stack sequences of a memory map at random places, the least that any loader does. Returns a line of the table."""
    stream, rng = open_split(directory, "train"), np.random.default_rng(0)
    last = len(stream) - options.context_length - 1
    start = time.perf_counter()
    for _ in range(options.steps):
        stream.read_sequences(rng.integers(0, last, options.batch_size), options.context_length + 1)
    return f"{'numpy alone':27} {options.tokens_read / (time.perf_counter() - start) / 1e6:7.1f} M tokens/s"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        write_random_shards(Path(scratch), options.tokens)
        print(measure_numpy(options, Path(scratch)), flush=True)
        for packing in get_args(Packing):
            for with_documents in (False, True):
                print(
                    measure_packing(options, Path(scratch), packing=packing, with_documents=with_documents), flush=True
                )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
