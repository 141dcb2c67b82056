"""Batches of a corpus to tokens on all cores, in the order of the corpus and in bounded memory.

The one idea: whoever encodes a batch also reads it. The process that gathers the results has only to find batches, to
divide documents between the splits, and to write; so it feeds many cores.

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

from data_pipelines.batching import Batch, Position, batches
from data_pipelines.interrupts import deaf_to_ctrl_c
from data_pipelines.pieces import Piece, pieces
from data_pipelines.readers.documents import Notes, Reading, documents_of, is_blank
from data_pipelines.splits import SKIPPED, Rule
from gptjax.errors import UserError
from gptjax.shards import token_dtype
from gptjax.tokenizer import Tokenizer

BATCHES_A_WORKER = 4
BYTES_WORTH_A_POOL = 2**22
MOST_BYTES = 2**25
"""Text of one batch, which is all in memory with its tokens. Only what a block says wrongly of its size comes to it."""


class Encoded(NamedTuple):
    """The tokens of consecutive text of one split; which of them begin documents; and its bytes of UTF-8."""

    split: str
    tokens: np.ndarray
    starts: np.ndarray
    bytes: int


class Step(NamedTuple):
    """What came next: at most one result for each split; what was noted with it; and the position up to which that
    goes, or None where nobody could go on from it."""

    results: list[Encoded]
    notes: Notes
    after: Position | None


class Tokens(NamedTuple):
    """Neighbouring documents, without blank ones, or a piece of one; `documents` are of the type `DOCUMENT`.

    `begins` says whether the first begins here, `read` how many are done with it, blank ones included.
    """

    tokens: np.ndarray
    documents: np.ndarray
    begins: bool
    read: int
    notes: Notes


DOCUMENT = np.dtype([("number", np.int64), ("share", np.float64), ("tokens", np.int64), ("bytes", np.int64)])
"""Of a document: its number among those that were read, what the rule found in it, and how much of it is here."""


def encode_all(
    some: Iterable[Batch], tokenizer: Tokenizer, reading: Reading, *, processes: int, documents: int = 0
) -> Iterator[Step]:
    """Encode all batches, before which the corpus has so many `documents`, read as `reading` says (its notes stay).

    `<|endoftext|>` goes before each document where the tokenizer has it.
    """
    encoder, trouble = Encoder(tokenizer, reading), list[UserError]()
    for batch, found in _found(_up_to(some, trouble), encoder, processes):
        position, notes = Position(batch.chunks_done, batch.bytes_done), Notes()
        notes.add(batch.notes)
        for tokens in encoder.in_parts(batch) if found is None else [found]:
            results = _divided(tokens, batch.rule, before=documents)
            documents += tokens.read
            notes.add(tokens.notes)
            yield Step(results, notes, None if found is None else position._replace(documents=documents))
            notes = Notes()
        if found is None:
            yield Step([], notes, position._replace(documents=documents))
    if trouble:
        raise trouble[0]


def _up_to(some: Iterable[Batch], trouble: list[UserError]) -> Iterator[Batch]:
    """The batches before the first trouble in finding one: those that are under way may be in an earlier one."""
    try:
        yield from some
    except UserError as error:
        trouble.append(error)


class Encoder:
    """Reads and encodes batches, in whichever process."""

    def __init__(self, tokenizer: Tokenizer, reading: Reading) -> None:
        self._tokenizer, self._reading, self._most = tokenizer, reading.again(), MOST_BYTES
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._before = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], self._dtype)

    def __call__(self, batch: Batch) -> Tokens | None:
        """The tokens of a batch; None where it is so much text that it should be encoded `in_parts`."""
        if isinstance(piece := batch.content, Piece):
            begins, tokens = piece.begin == 0, self._encode(piece)
            parts = [self._before, tokens] if begins else [tokens]
            row = (0, batch.share, sum(map(len, parts)), len(piece.content))
            return Tokens(np.concatenate(parts), np.array([row], DOCUMENT), begins, int(piece.ends), Notes())
        reading, size, number = self._reading.again(), 0, 0
        parts, rows = [self._before[:0]], []
        for document in documents_of(batch.content, reading):
            if is_blank(document):
                reading.notes[SKIPPED] += 1
            else:
                size += len(document)
                if size > self._most:
                    return None
                tokens = [self._before, *map(self._encode, pieces(document, self._tokenizer))]
                rows.append((number, batch.rule.share(document), sum(map(len, tokens)), len(document)))
                parts += tokens
            number += 1
            del document
        return Tokens(np.concatenate(parts), np.array(rows, DOCUMENT), True, number, reading.notes)

    def in_parts(self, batch: Batch) -> Iterator[Tokens]:
        """The tokens of the same documents, a batch of text at a time."""
        assert not isinstance(batch.content, Piece)
        reading = self._reading.again()
        parts = ((batch.rule, document) for document in documents_of(batch.content, reading))
        for one in batches(parts, self._tokenizer, reading):
            tokens = self(one)
            assert tokens is not None
            one.notes.add(tokens.notes)
            yield tokens._replace(notes=one.notes)

    def _encode(self, piece: Piece) -> np.ndarray:
        return self._tokenizer.encode(str(piece.content, "utf-8")).astype(self._dtype)


def _divided(found: Tokens, rule: Rule, *, before: int) -> list[Encoded]:
    """The documents of each split, which has some; `before` is how many the corpus has before these."""
    documents, results = found.documents, []
    of_validation = rule.validation(before + documents["number"], documents["share"])
    for split, mine in (("train", ~of_validation), ("val", of_validation)):
        if mine.any():
            lengths = documents["tokens"]
            tokens = found.tokens if mine.all() else found.tokens[np.repeat(mine, lengths)]
            starts = np.cumsum(lengths[mine]) - lengths[mine]
            size = int(documents["bytes"][mine].sum())
            results.append(Encoded(split, tokens, starts if found.begins else starts[:0], size))
    return results


def _found(some: Iterator[Batch], encoder: Encoder, processes: int) -> Iterator[tuple[Batch, Tokens | None]]:
    """Every batch with its tokens, in their order; by a pool of processes where there is enough for one."""
    first, size = [], 0
    while processes > 1 and size < BYTES_WORTH_A_POOL and (batch := next(some, None)) is not None:
        first.append(batch)
        size += batch.size
    if size >= BYTES_WORTH_A_POOL:
        yield from _in_parallel(itertools.chain(first, some), encoder, processes)
    else:
        for batch in itertools.chain(first, some):
            yield batch, encoder(batch)


def _in_parallel(some: Iterator[Batch], encoder: Encoder, processes: int) -> Iterator[tuple[Batch, Tokens | None]]:
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=spawn, initializer=_start_worker, initargs=(encoder,))
    waiting: deque[tuple[Batch, Future[Tokens | None]]] = deque()
    try:
        for batch in some:
            with deaf_to_ctrl_c():
                waiting.append((batch, pool.submit(_encode_in_worker, batch)))
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


def _result(batch: Batch, future: "Future[Tokens | None]") -> tuple[Batch, Tokens | None]:
    return batch, future.result()


def refuse_in_worker() -> None:
    """Raise where an unguarded script, imported by a spawned worker, would prepare again and wait for itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            'prepare() is called while a worker imports this script; put it under __name__ == "__main__".'
        )


_worker_encoder: Encoder


def _start_worker(encoder: Encoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A worker holds both ends of its queue, so it would wait for ever for a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(batch: Batch) -> Tokens | None:
    return _worker_encoder(batch)
