"""What each packing drops or pads, and how long planning takes: `python benchmarks/packing.py [--data=DIR]`.

For a million documents of log-normal lengths, like those of web pages, or for the training split of prepared shards.
Seconds are processor time of planning alone.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gptjax.data.packing import pack_best_fit, pack_bos_aligned, pack_bos_best_fit
from gptjax.data.splits import open_split


@dataclass(frozen=True)
class Request:
    """What to measure."""

    data: Path | None = None
    """Shards with an index of documents; without, lengths are drawn."""
    documents: int = 1_000_000
    mean: float = 1000.0
    """Tokens of a document that is drawn."""
    sigma: float = 1.0
    """Standard deviation of the logarithm of its length."""
    contexts: tuple[int, ...] = (1024, 2048)


def find_documents(request: Request) -> tuple[np.ndarray, int]:
    """Where documents begin, and how many tokens there are."""
    if request.data is not None:
        stream = open_split(request.data, "train")
        assert stream.document_starts is not None
        return np.asarray(stream.document_starts), len(stream)
    rng, middle = np.random.default_rng(0), np.log(request.mean) - request.sigma**2 / 2
    lengths = np.maximum(1, rng.lognormal(middle, request.sigma, request.documents)).astype(np.int64)
    return np.cumsum(lengths) - lengths, int(lengths.sum())


def main(request: Request) -> None:
    starts, tokens = find_documents(request)
    lengths = np.diff(starts, append=tokens)
    print(f"{len(lengths):,} documents, {tokens:,} tokens, mean {lengths.mean():.0f}, median {np.median(lengths):.0f}")
    for context_length in request.contexts:
        beyond = np.maximum(0, lengths - context_length).sum() / tokens
        print(f"T = {context_length}: {beyond:.2%} is beyond T in its document")
        for plan in (pack_bos_aligned, pack_best_fit, pack_bos_best_fit):
            start = time.process_time()
            rows = len(plan(starts, tokens, context_length))
            seconds = time.process_time() - start
            dropped = max(0.0, 1 - rows * context_length / tokens)
            padding = max(0.0, 1 - tokens / (rows * context_length))
            print(f"  {plan.__name__:16} {dropped:7.2%} dropped, {padding:6.2%} padding, {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Request))
