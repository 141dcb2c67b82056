"""Measure what each packing drops or pads, and how long planning takes.

    python benchmarks/packing.py                                  # a million documents of log-normal lengths
    python benchmarks/packing.py --data=data/books                # the training split of prepared shards
    python benchmarks/packing.py --documents=1000 --contexts 64   # in a moment

Drawn lengths resemble those of web pages. Seconds are processor time of planning alone. Results: LAB.md, "Packing", and
RESULTS.md, "Planning of packing".
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gptjax.core.errors import exit_on_user_error
from gptjax.data.packing import pack_best_fit, pack_bos_aligned, pack_bos_best_fit
from gptjax.data.splits import open_split


@dataclass(frozen=True)
class Options:
    """Documents and row lengths."""

    data: Path | None = None
    """Shards with an index of documents. None: lengths are drawn."""
    documents: int = 1_000_000
    """Documents to draw."""
    mean: float = 1000.0
    """Mean tokens of a drawn document."""
    sigma: float = 1.0
    """Standard deviation of the logarithm of its length."""
    contexts: tuple[int, ...] = (1024, 2048)
    """Row lengths (T)."""


def find_documents(options: Options) -> tuple[np.ndarray, int]:
    """(first token of each document, number of tokens)."""
    if options.data is not None:
        stream = open_split(options.data, "train")
        assert stream.document_starts is not None
        return np.asarray(stream.document_starts), len(stream)
    rng, mean_log = np.random.default_rng(0), np.log(options.mean) - options.sigma**2 / 2
    lengths = np.maximum(1, rng.lognormal(mean_log, options.sigma, options.documents)).astype(np.int64)
    return np.cumsum(lengths) - lengths, int(lengths.sum())


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    starts, tokens = find_documents(options)
    lengths = np.diff(starts, append=tokens)
    print(f"{len(lengths):,} documents, {tokens:,} tokens, mean {lengths.mean():.0f}, median {np.median(lengths):.0f}")
    for context_length in options.contexts:
        beyond = np.maximum(0, lengths - context_length).sum() / tokens
        print(f"T = {context_length}: {beyond:.2%} is beyond T in its document")
        for plan in (pack_bos_aligned, pack_best_fit, pack_bos_best_fit):
            start = time.process_time()
            rows = len(plan(starts, tokens, context_length))
            seconds = time.process_time() - start
            dropped = max(0.0, 1 - rows * context_length / tokens)
            padding = max(0.0, 1 - tokens / (rows * context_length))
            print(f"  {plan.__name__:18} {dropped:7.2%} dropped, {padding:6.2%} padding, {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
