"""Tokens per second of the loader, by packing: `python benchmarks/loader.py [--tokens=20_000_000]`.

Random tokens in documents of 20 to 2,000 (log-uniform) are written as shards into a temporary directory. Batches of 32
sequences of 1,024 are read as training reads them: shuffled, through grain's prefetching thread, up to the device. For
comparison, in the same process: numpy gathers as many sequences and does nothing else.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import tyro

from gptjax.core.files import file_sha256
from gptjax.data.batch_size import BatchSize
from gptjax.data.config import TokenShards
from gptjax.data.loader import BatchLoader
from gptjax.data.manifest import Counts, Manifest, ShardFile, Sidecar
from gptjax.data.packing import Packing
from gptjax.data.shards import write_shard
from gptjax.data.source import ReadSpec
from gptjax.data.splits import open_split
from gptjax.sharding.mesh import MeshConfig

END, VOCABULARY = 50256, 50257


@dataclass(frozen=True)
class Request:
    """What to measure."""

    tokens: int = 20_000_000
    """Tokens in the data set."""
    context_length: int = 1024
    batch_size: int = 32
    steps: int = 300
    """Batches that are read and timed."""


def write_shards(directory: Path, tokens: int) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, END, tokens).astype(np.uint16)
    lengths = np.exp(rng.uniform(np.log(20), np.log(2000), tokens // 200)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    starts = starts[starts < tokens]
    ids[starts] = END
    write_shard(directory / "train_000000.bin", ids)
    starts.astype("<i8").tofile(directory / "train.documents")
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    hashes = {path.name: file_sha256(path) for path in directory.iterdir()}
    shard, beside = "train_000000.bin", "train.documents"
    Manifest(
        "random",
        "none",
        VOCABULARY,
        "uint16",
        {"train": Counts(len(starts), tokens, tokens)},
        {shard: ShardFile("train", tokens, sizes[shard], hashes[shard])},
        {beside: Sidecar("train", "documents", sizes[beside], hashes[beside])},
    ).write(directory)


def measure(request: Request, directory: Path, packing: Packing, *, with_documents: bool) -> str:
    spec = ReadSpec(
        request.context_length, 0, VOCABULARY, END, with_documents, batch_schedule=((0, BatchSize(request.batch_size)),)
    )
    start = time.perf_counter()
    reader = TokenShards(str(directory), packing=packing).open(spec)
    opened = time.perf_counter() - start
    rows = BatchLoader(reader, spec, mesh=MeshConfig()).iterate_from(0)
    next(rows)
    start = time.perf_counter()
    for _ in range(request.steps):
        next(rows)
    seconds = time.perf_counter() - start
    rate = request.steps * request.batch_size * request.context_length / seconds / 1e6
    sequences = reader.sequences
    used = f"{sequences.dropped:.2%} dropped, {sequences.padding:.2%} padding, opened in {opened:.2f} s"
    return f"{packing + (' and documents' if with_documents else ''):26} {rate:7.1f} M tokens/s   {used}"


def measure_numpy(request: Request, directory: Path) -> str:
    """Sequences of a memory map at random starts, stacked: the least that any loader does."""
    stream, rng = open_split(directory, "train"), np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(request.steps):
        stream.read_sequences(
            rng.integers(0, len(stream) - request.context_length - 1, request.batch_size), request.context_length + 1
        )
    rate = request.steps * request.batch_size * request.context_length / (time.perf_counter() - start) / 1e6
    return f"{'numpy alone':26} {rate:7.1f} M tokens/s"


def main(request: Request) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_shards(Path(scratch), request.tokens)
        print(measure_numpy(request, Path(scratch)), flush=True)
        for packing in get_args(Packing):
            for with_documents in (False, True):
                print(measure(request, Path(scratch), packing, with_documents=with_documents), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Request))
