"""How many tokens a second the loader gives, by packing: `python benchmarks/loader.py [--tokens=20_000_000]`.

Random tokens in documents of 20 to 2,000 (log-uniform), written as shards into a temporary directory; batches of 32
rows of 1,024, read as training reads them: shuffled, through grain's prefetching thread, up to the device. Beside
them, in the same process, what numpy takes to gather the same number of windows and do nothing else.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gptjax.core.files import file_sha256
from gptjax.data.batch_size import BatchSize
from gptjax.data.loader import BatchLoader
from gptjax.data.manifest import Counts, Manifest, ShardFile, Sidecar
from gptjax.data.packing import Packing
from gptjax.data.sequences import open_sequences
from gptjax.data.shards import write_shard
from gptjax.data.splits import open_split
from gptjax.sharding.mesh import MeshConfig

END, VOCABULARY = 50256, 50257


@dataclass(frozen=True)
class Request:
    """What to measure."""

    tokens: int = 20_000_000
    """Tokens in the data set."""
    context_length: int = 1024
    sequences: int = 32
    steps: int = 300
    """Batches that are read and timed."""


def write(directory: Path, tokens: int) -> None:
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


def measure(request: Request, directory: Path, packing: Packing, *, masks: bool) -> str:
    start = time.perf_counter()
    windows = open_sequences(open_split(directory, "train"), request.context_length, packing, end_of_text=END)
    planned = time.perf_counter() - start
    own = {"vocab_size": VOCABULARY, "seed": 0, "mesh": MeshConfig(), "documents": masks}
    batches = BatchLoader([windows], BatchSize(request.sequences), **own)
    rows = batches.iterate_from(0)
    next(rows)
    start = time.perf_counter()
    for _ in range(request.steps):
        next(rows)
    seconds = time.perf_counter() - start
    rate = request.steps * request.sequences * request.context_length / seconds / 1e6
    used = f"{windows.dropped:.2%} dropped, {windows.padding:.2%} padding, planned in {planned:.2f} s"
    return f"{packing + (' and masks' if masks else ''):26} {rate:7.1f} M tokens/s   {used}"


def bare(request: Request, directory: Path) -> str:
    """Windows of a memory map at random starts, stacked: the least that any loader does."""
    stream, rng = open_split(directory, "train"), np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(request.steps):
        stream.read_sequences(
            rng.integers(0, len(stream) - request.context_length - 1, request.sequences), request.context_length + 1
        )
    rate = request.steps * request.sequences * request.context_length / (time.perf_counter() - start) / 1e6
    return f"{'numpy alone':26} {rate:7.1f} M tokens/s"


def main(request: Request) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), request.tokens)
        print(bare(request, Path(scratch)), flush=True)
        for packing in ("concat", "documents", "best_fit", "bos_best_fit"):
            for masks in (False, True):
                print(measure(request, Path(scratch), packing, masks=masks), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Request))
