"""Documents to tokens on all cores, in the order of the documents and in bounded memory.

Workers are spawned, never forked (a fork of a process that has started JAX or threads may hang), and only when there is
enough text to pay for their start. At most `BATCHES_A_WORKER` batches a worker are under way, and a large document
travels in pieces of UTF-8, which becomes a `str` only where it is encoded: of a source of any size, only the document
that is being read must fit into memory.
"""

import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from data_pipelines.interrupts import deaf_to_ctrl_c
from data_pipelines.pieces import START, Parts, Piece, Position, pieces
from gptjax.errors import UserError
from gptjax.shards import token_dtype
from gptjax.tokenizer import Tokenizer

BATCH_BYTES = 2**20
BATCHES_A_WORKER = 4
BATCHES_WORTH_A_POOL = 4


class Encoded(NamedTuple):
    """The tokens of consecutive text of one split; which of them begin documents; and its bytes of UTF-8."""

    split: str
    tokens: np.ndarray
    starts: np.ndarray
    bytes: int


class Step(NamedTuple):
    """What came next, at most one result for each split, and the place in the source up to which that goes."""

    results: list[Encoded]
    after: Position


def encode_all(parts: Parts, tokenizer: Tokenizer, *, processes: int, start: Position = START) -> Iterator[Step]:
    """Encode every document from `start` on; `<|endoftext|>` goes before each where the tokenizer has it."""
    batches = _batches(pieces(parts, tokenizer, start=start))
    first = list(itertools.islice(batches, BATCHES_WORTH_A_POOL)) if processes > 1 else []
    if len(first) < BATCHES_WORTH_A_POOL:
        for batch in itertools.chain(first, batches):
            yield Step(encode_batch(batch, tokenizer), batch[-1].after)
    else:
        yield from _in_parallel(itertools.chain(first, batches), tokenizer, processes)


def encode_batch(batch: list[Piece], tokenizer: Tokenizer) -> list[Encoded]:
    """Encode a few pieces in this process; one result for each split among them."""
    return [
        _encode([piece for piece in batch if piece.split == split], tokenizer)
        for split in sorted({piece.split for piece in batch})
    ]


def _encode(batch: list[Piece], tokenizer: Tokenizer) -> Encoded:
    dtype = token_dtype(tokenizer.vocab_size)
    before = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype)
    parts, starts, length = [], [], 0
    for piece in batch:
        tokens = tokenizer.encode(str(piece.content, "utf-8")).astype(dtype)
        if piece.begins:
            starts.append(length)
            parts.append(before)
        parts.append(tokens)
        length += len(tokens) + len(before) * piece.begins
    size = sum(len(piece.content) for piece in batch)
    return Encoded(batch[0].split, np.concatenate(parts), np.array(starts, np.int64), size)


def _batches(some: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in some:
        batch.append(piece)
        size += len(piece.content)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_parallel(batches: Iterator[list[Piece]], tokenizer: Tokenizer, processes: int) -> Iterator[Step]:
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=spawn, initializer=_start_worker, initargs=(tokenizer,))
    waiting: deque[tuple[Future[list[Encoded]], Position]] = deque()
    try:
        for batch in batches:
            with deaf_to_ctrl_c():
                waiting.append((pool.submit(_encode_in_worker, batch), batch[-1].after))
            del batch
            if len(waiting) >= BATCHES_A_WORKER * processes:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    except BrokenProcessPool:
        raise UserError(
            f"a worker process died: for want of memory (use fewer than --processes={processes}), or because the "
            'script that prepares has no `if __name__ == "__main__":` around it, and ran again in every worker.'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: "Future[list[Encoded]]", after: Position) -> Step:
    return Step(future.result(), after)


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
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A worker holds both ends of its queue, so it would wait for ever for a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(batch: list[Piece]) -> list[Encoded]:
    return encode_batch(batch, _worker_tokenizer)
