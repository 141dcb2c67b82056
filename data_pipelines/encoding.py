"""Documents to tokens on all cores, in the order of the documents and in bounded memory.

Workers are spawned, never forked (a fork of a process that has started JAX or threads may hang), and only when there is
enough text to pay for their start. At most four batches a worker are under way, so a source of any size fits; only a
single document must fit into memory several times.
"""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from gptjax.errors import UserError
from gptjax.shards import token_dtype
from gptjax.tokenizer import Tokenizer

BATCH_CHARACTERS = 2**20
BATCHES_WORTH_A_POOL = 4

Parts = Iterable[tuple[str, str]]
"""(split, text) of one document after another."""


class Encoded(NamedTuple):
    """The tokens of some consecutive documents of one split, and how much text they stand for."""

    split: str
    tokens: np.ndarray
    documents: int
    bytes: int


def encode_all(parts: Parts, tokenizer: Tokenizer, *, processes: int) -> Iterator[Encoded]:
    """Encode every document; `<|endoftext|>` goes before each where the tokenizer has it."""
    batches = _batches(parts)
    first = list(itertools.islice(batches, BATCHES_WORTH_A_POOL)) if processes > 1 else []
    if len(first) < BATCHES_WORTH_A_POOL:
        for batch in itertools.chain(first, batches):
            yield from encode_batch(batch, tokenizer)
    else:
        yield from _in_parallel(itertools.chain(first, batches), tokenizer, processes)


def encode_batch(batch: list[tuple[str, str]], tokenizer: Tokenizer) -> list[Encoded]:
    """Encode a few documents in this process; one result for each split among them."""
    before = [] if tokenizer.end_of_text is None else [np.array([tokenizer.end_of_text], np.int32)]
    results = []
    for split in sorted({split for split, _ in batch}):
        texts = [text for name, text in batch if name == split]
        pieces = [piece for text in texts for piece in (*before, tokenizer.encode(text))]
        tokens = np.concatenate(pieces).astype(token_dtype(tokenizer.vocab_size))
        results.append(Encoded(split, tokens, len(texts), sum(len(text.encode()) for text in texts)))
    return results


def _batches(parts: Parts) -> Iterator[list[tuple[str, str]]]:
    batch, size = [], 0
    for split, text in parts:
        batch.append((split, text))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_parallel(batches: Iterator[list[tuple[str, str]]], tokenizer: Tokenizer, processes: int) -> Iterator[Encoded]:
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=spawn, initializer=_start_worker, initargs=(tokenizer,))
    waiting: deque[Future[list[Encoded]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_encode_in_worker, batch))
            if len(waiting) >= 4 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"a worker process died: for want of memory (use fewer than --processes={processes}), or because the "
            'script that prepares has no `if __name__ == "__main__":` around it, and ran again in every worker.'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def refuse_in_worker() -> None:
    """Raise where an unguarded script, imported by a spawned worker, would prepare again and wait for itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            'prepare() is called while a worker imports this script; put it under __name__ == "__main__".'
        )


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _encode_in_worker(batch: list[tuple[str, str]]) -> list[Encoded]:
    return encode_batch(batch, _worker_tokenizer)
