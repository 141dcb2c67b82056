"""Batches of a corpus to tokens, on all cores and in the order of the corpus.

The process that encodes a batch also reads its blocks. The process that gathers the results only finds batches,
decides splits and writes, so it can feed many cores.
"""

import itertools
import multiprocessing
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np

from data_pipelines.encode.batching import DEFAULT_LIMITS, Batch, Limits, defer_error
from data_pipelines.encode.pieces import Piece
from data_pipelines.encode.split_rules import Rule
from data_pipelines.encode.worker_pool import WorkerDied, map_in_processes
from data_pipelines.readers.documents import EMPTY, Notes, ReadContext, is_blank, iter_documents
from gptjax.core.errors import UserError
from gptjax.data.shards import token_dtype
from gptjax.tokenization.tokenizer import Tokenizer

PART = np.dtype([("number", "i8"), ("point", "f8"), ("tokens", "i8"), ("bytes", "i8"), ("begins", "?")])
"""A document or a piece: its number among the documents of the batch, its point, its size, and whether it begins."""


class EncodedBatch(NamedTuple):
    """The tokens of a batch, with `<|endoftext|>` before each document if the tokenizer has it.

    `parts` are its documents and pieces, of dtype `PART`, without blank ones. `documents` is how many documents end in
    the batch, blank ones included. `rule` and `end` are as in `Batch`.
    """

    rule: Rule
    end: int
    tokens: np.ndarray
    parts: np.ndarray
    documents: int
    notes: Notes

    def iter_splits(self, before: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
        """Yield (split, its tokens, starts of documents among them, bytes of text) for each split with text.

        `before` is the number of documents of the corpus before the batch.
        """
        is_validation = self.rule.is_validation(before + self.parts["number"], self.parts["point"])
        for split, mask in (("train", ~is_validation), ("val", is_validation)):
            if mask.any():
                parts = self.parts[mask]
                tokens = self.tokens if mask.all() else self.tokens[np.repeat(mask, self.parts["tokens"])]
                starts = np.cumsum(parts["tokens"]) - parts["tokens"]
                yield split, tokens, starts[parts["begins"]], int(parts["bytes"].sum())


class Encoder:
    """Reads and encodes a batch, in any process."""

    def __init__(self, tokenizer: Tokenizer, context: ReadContext) -> None:
        self._tokenizer, self._context = tokenizer, context.fresh_copy()
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._end_of_text = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], self._dtype)

    def __call__(self, batch: Batch) -> EncodedBatch:
        context, number = self._context.fresh_copy(), 0
        tokens, parts = [self._end_of_text[:0]], []
        for piece in _iter_documents(batch, context):
            if piece.begins and piece.ends and is_blank(piece.content):
                context.notes[EMPTY] += 1
            else:
                ids = self._tokenizer.encode(str(piece.content, "utf-8")).astype(self._dtype)
                new = [self._end_of_text, ids] if piece.begins else [ids]
                tokens += new
                parts.append((number, piece.point, sum(map(len, new)), len(piece.content), piece.begins))
            number += piece.ends
        return EncodedBatch(batch.rule, batch.end, np.concatenate(tokens), np.array(parts, PART), number, context.notes)


def _iter_documents(batch: Batch, context: ReadContext) -> Iterator[Piece]:
    """Yield every document as one piece, and pieces as they are; notes of finding and reading come in corpus order."""
    for unit in batch.units:
        context.notes.add(unit.notes)
        if isinstance(unit.content, Piece):
            yield unit.content
        else:
            for document in iter_documents([unit.content], context):
                yield Piece(document, begins=True, ends=True, point=batch.rule.point(document))


def encode_batches(
    batches: Iterator[Batch],
    context: ReadContext,
    *,
    tokenizer: Tokenizer,
    processes: int,
    limits: Limits = DEFAULT_LIMITS,
) -> Generator[EncodedBatch, None, None]:
    """Encode all batches in order, in this process where there is little text; `context` keeps its own notes.

    Raises the first `UserError` in corpus order, whichever process meets it.
    """
    encoder, errors = Encoder(tokenizer, context), list[UserError]()
    batches = defer_error(batches, errors)
    first, size = list[Batch](), 0
    while processes > 1 and (size < limits.pool_bytes or len(first) < processes):
        if (batch := next(batches, None)) is None:
            break
        first.append(batch)
        size += batch.size
    if size < limits.pool_bytes:
        yield from map(encoder, itertools.chain(first, batches))
    else:
        try:
            workers = min(processes, len(first))
            yield from map_in_processes(encoder, itertools.chain(first, batches), processes=workers)
        except WorkerDied:
            raise UserError(
                f"a worker process died: for want of memory (use fewer than --processes={processes}), or because the "
                'script that prepares has no `if __name__ == "__main__":` around it, and ran again in every worker.'
            ) from None
    if errors:
        raise errors[0]


def refuse_in_worker() -> None:
    """Raise where a script without a guard, imported by a spawned worker, would prepare again and wait for itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            'prepare() is called while a worker imports this script; put it under __name__ == "__main__".'
        )
