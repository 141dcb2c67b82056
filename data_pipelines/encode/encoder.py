"""Batches of a corpus to tokens on all cores, in the order of the corpus and in bounded memory.

The one idea: whoever encodes a batch also reads it. The process that gathers the results has only to find batches, to
divide documents between the splits, and to write; so it feeds many cores.

Workers are started only when there is enough text to pay for it. At most `BATCHES_A_WORKER` batches a worker are under
way, or about `BYTES_A_WORKER`, and a large document travels in pieces of UTF-8, which becomes a `str` only where it is
encoded: of a source of any size, only the document that is being read and a few batches for each worker must fit into
memory.
"""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from data_pipelines.encode.batching import Batch, Found, Position, until_trouble
from data_pipelines.encode.pieces import Piece, pieces
from data_pipelines.encode.split_rules import Rule
from data_pipelines.encode.worker_pool import WorkerDied, Workers
from data_pipelines.readers.documents import EMPTY, Document, Notes, ReadContext, is_blank, iter_documents
from gptjax.errors import UserError
from gptjax.shards import token_dtype
from gptjax.tokenizer import Tokenizer

BATCHES_A_WORKER = 4
BYTES_A_WORKER = 2**24
"""Of text, for a group of rows of that size may be a batch."""
BYTES_WORTH_A_POOL = 2**22
MOST_TEXT = 2**24
"""Bytes of text that a worker returns at once. Only a block that is larger than it says comes to it."""


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


DOCUMENT = np.dtype([("number", np.int64), ("point", np.float64), ("tokens", np.int64), ("bytes", np.int64)])
"""Of a document: its number among those that were read, where the rule places it, and how much of it is here."""


class Undivided(NamedTuple):
    """The tokens of neighbouring documents, without blank ones, or of a piece of one; `documents` are `DOCUMENT`s.

    `begins` says whether the first begins here; `read` how many are done with it, blank ones included; `rest` whether
    there are more in the batch, which is too large for one result.
    """

    tokens: np.ndarray
    documents: np.ndarray
    begins: bool
    read: int
    rest: bool
    notes: Notes


def encode_all(
    batches: Iterable[Batch], tokenizer: Tokenizer, context: ReadContext, *, processes: int, documents: int = 0
) -> Iterator[Step]:
    """Encode all batches, before which the corpus has so many `documents`, read as `context` says (its notes stay).

    `<|endoftext|>` goes before each document where the tokenizer has it.
    """
    encoder, trouble = Encoder(tokenizer, context), list[UserError]()
    for batch, result in _encoded(until_trouble(batches, trouble), encoder, processes):
        results = _by_split(result, batch.rule, before=documents)
        documents += result.read
        after = None if result.rest else Position(batch.chunks_done, batch.bytes_done, documents)
        yield Step(results, result.notes, after)
    if trouble:
        raise trouble[0]


class Encoder:
    """Reads and encodes batches, in whichever process."""

    def __init__(self, tokenizer: Tokenizer, context: ReadContext) -> None:
        self._tokenizer, self._context, self._most = tokenizer, context.fresh_copy(), MOST_TEXT
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._end_of_text = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], self._dtype)

    def __call__(self, batch: Batch) -> Undivided:
        """The tokens of a batch, from the document on up to which it is done."""
        what, notes = batch.found[0]
        if isinstance(what, Piece):
            begins, tokens = what.begin == 0, self._encode(what)
            parts = [self._end_of_text, tokens] if begins else [tokens]
            row = (0, batch.point, sum(map(len, parts)), len(what.content))
            return Undivided(np.concatenate(parts), np.array([row], DOCUMENT), begins, int(what.ends), False, notes)
        context, number, size, rest = self._context.fresh_copy(), 0, 0, False
        parts, rows = [self._end_of_text[:0]], []
        for document in _documents(batch.found, context):
            if number == batch.skip > 0:
                context.notes.take()  # told with the documents before
            if number >= batch.skip and is_blank(document) and not batch.rule.keeps_blank:
                context.notes[EMPTY] += 1
            elif number >= batch.skip:
                size += len(document)
                if rest := size > self._most and bool(rows):
                    break
                tokens = [self._end_of_text, *map(self._encode, pieces(document, self._tokenizer))]
                rows.append((number - batch.skip, batch.rule.point(document), sum(map(len, tokens)), len(document)))
                parts += tokens
            number += 1
            del document
        documents = np.array(rows, DOCUMENT)
        return Undivided(np.concatenate(parts), documents, True, number - batch.skip, rest, context.notes)

    def _encode(self, piece: Piece) -> np.ndarray:
        return self._tokenizer.encode(str(piece.content, "utf-8")).astype(self._dtype)


def _documents(found: Iterable[Found], context: ReadContext) -> Iterator[Document]:
    """All documents, and in `context` the notes of who found them and who reads them, in the order of the source."""
    for chunk, notes in found:
        assert not isinstance(chunk, Piece)
        context.notes.add(notes)
        yield from iter_documents([chunk], context)


def _by_split(found: Undivided, rule: Rule, *, before: int) -> list[Encoded]:
    """The documents of each split, which has some; `before` is how many the corpus has before these."""
    documents, results = found.documents, []
    of_validation = rule.validation(before + documents["number"], documents["point"])
    for split, mine in (("train", ~of_validation), ("val", of_validation)):
        if mine.any():
            lengths = documents["tokens"]
            tokens = found.tokens if mine.all() else found.tokens[np.repeat(mine, lengths)]
            starts = np.cumsum(lengths[mine]) - lengths[mine]
            size = int(documents["bytes"][mine].sum())
            results.append(Encoded(split, tokens, starts if found.begins else starts[:0], size))
    return results


def _encoded(batches: Iterator[Batch], encoder: Encoder, processes: int) -> Iterator[tuple[Batch, Undivided]]:
    """Every batch with its tokens, in their order; by a pool of processes where there is enough for one."""
    first, size = [], 0
    while processes > 1 and size < BYTES_WORTH_A_POOL and (batch := next(batches, None)) is not None:
        first.append(batch)
        size += batch.size
    if size >= BYTES_WORTH_A_POOL:
        yield from _in_parallel(itertools.chain(first, batches), encoder, processes)
    else:
        for batch in itertools.chain(first, batches):
            yield from _results(batch, encoder(batch), encoder)


def _in_parallel(batches: Iterator[Batch], encoder: Encoder, processes: int) -> Iterator[tuple[Batch, Undivided]]:
    waiting: deque[tuple[Batch, Callable[[], Undivided]]] = deque()
    under_way = 0
    with Workers(encoder, processes) as workers:

        def oldest() -> Iterator[tuple[Batch, Undivided]]:
            nonlocal under_way
            batch, result = waiting.popleft()
            under_way -= batch.size
            return _results(batch, result(), lambda rest: workers.submit(rest)())

        try:
            for batch in batches:
                waiting.append((batch, workers.submit(batch)))
                under_way += batch.size
                del batch
                while len(waiting) >= BATCHES_A_WORKER * processes or under_way >= BYTES_A_WORKER * processes:
                    yield from oldest()
            while waiting:
                yield from oldest()
        except WorkerDied:
            raise UserError(
                f"a worker process died: for want of memory (use fewer than --processes={processes}), or because the "
                'script that prepares has no `if __name__ == "__main__":` around it, and ran again in every worker.'
            ) from None


def _results(
    batch: Batch, result: Undivided, encode: Callable[[Batch], Undivided]
) -> Iterator[tuple[Batch, Undivided]]:
    """A result, and those of the rest of its batch."""
    yield batch, result
    while result.rest:
        batch = batch._replace(skip=batch.skip + result.read)
        result = encode(batch)
        yield batch, result


def refuse_in_worker() -> None:
    """Raise where an unguarded script, imported by a spawned worker, would prepare again and wait for itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            'prepare() is called while a worker imports this script; put it under __name__ == "__main__".'
        )
