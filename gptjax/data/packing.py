"""Rows out of documents: which tokens of a stream stand side by side, decided as indexes before any token is read.

The one idea: packing is arithmetic on the starts of documents. It yields a few arrays that say for each row from
where its tokens are taken; row i is then as cheap to read as any other, in any order, on any process.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

Packing = Literal["concat", "documents", "best_fit", "bos_best_fit"]
"""How a stream of documents becomes rows:

- `straight`: windows that overlap by one token, as GPT-2 was trained. Every token but the first is predicted once;
  fewer than T + 1 at the end are dropped.
- `documents`: each window begins where a document begins, at the first start that the window before does not reach.
  What lies between the end of a window and the next start is dropped: of documents much shorter than T about half a
  document in each window, of longer ones what is beyond T: of 300 web pages 34 % of the tokens at T = 2048. The
  run prints the share.
- `best_fit`: whole documents, packed by best fit, the longest first (arXiv:2404.10830); only those longer than a row
  are cut. Nothing is dropped; what a row has left over is padding, which is not scored: less than one position in a
  hundred where documents are short, more where most are longer than half a row. The run prints the share.
- `best_fit_cropped`: full rows that begin with a document, as nanochat's do. Into the room that a row has left goes the
  longest document that fits whole; when none does, the shortest is cropped to it, and its rest is dropped. That is
  mostly what documents have beyond T: of 300 web pages 17 % of the tokens at T = 2048. The run prints the share.
"""

DOCUMENTS_PER_GROUP = 2**16
"""Documents that best fit packs with each other: enough for tight rows, few enough to lie near on a disk."""


@dataclass(frozen=True)
class PackingPlan:
    """Rows of up to T inputs as pieces of the stream, in the order of the row."""

    starts: Int[np.ndarray, " pieces"]
    """First token of each piece."""
    lengths: Int[np.ndarray, " pieces"]
    """Tokens of each piece, at least 1."""
    closes: Bool[np.ndarray, " pieces"]
    """Whether the piece is the last of its document."""
    first: Int[np.ndarray, " rows_and_one"]
    """Row i has the pieces `first[i]` up to `first[i + 1]`."""

    def __len__(self) -> int:
        return len(self.first) - 1

    def pieces_of(self, rows: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
        """(which of the n rows, which piece) of every piece in these rows, in order."""
        counts = self.first[rows + 1] - self.first[rows]
        row = np.repeat(np.arange(len(rows)), counts)
        return row, np.arange(counts.sum()) + np.repeat(self.first[rows] - (np.cumsum(counts) - counts), counts)


def pack_bos_aligned(
    documents: Int[np.ndarray, " documents"], tokens: int, context_length: int
) -> Int[np.ndarray, " rows"]:
    """The first token of each window of T + 1 that begins with a document; `documents` are their starts, ascending."""
    usable = documents[documents + context_length + 1 <= tokens]
    # From every start, the first start that its window does not reach; then only the chain from the first is walked.
    following = np.searchsorted(usable, usable + context_length).tolist()
    chain, document = [], 0
    while document < len(usable):
        chain.append(document)
        document = following[document]
    return np.asarray(usable[chain], np.int64)


def pack_best_fit(documents: Int[np.ndarray, " documents"], tokens: int, context_length: int) -> PackingPlan:
    """Whole documents packed tightly into rows of `context` inputs; `documents` are their starts, ascending.

    A document longer than a row becomes whole rows and a rest, which is packed like a document.
    """
    starts, lengths, closes = _cut(np.asarray(documents, np.int64), tokens, context_length)
    order, rows = [], []
    for begin in range(0, len(lengths), DOCUMENTS_PER_GROUP):
        row_of = _packed(lengths[begin : begin + DOCUMENTS_PER_GROUP], capacity=context_length)
        order.append(begin + np.argsort(row_of, kind="stable"))
        rows.append(np.bincount(row_of))
    pieces = np.concatenate(order) if order else np.zeros(0, np.int64)
    counts = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return PackingPlan(starts[pieces], lengths[pieces], closes[pieces], np.concatenate([[0], np.cumsum(counts)]))


def pack_bos_best_fit(documents: Int[np.ndarray, " documents"], tokens: int, context_length: int) -> PackingPlan:
    """Rows of exactly `context` inputs that begin with a document; `documents` are their starts, ascending.

    No document is used twice. Those left at the end of a group that do not fill a row are dropped.
    """
    starts, lengths = _lengths(np.asarray(documents, np.int64), tokens)
    order, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin in range(0, len(lengths), DOCUMENTS_PER_GROUP):
        chosen, counts = _filled(lengths[begin : begin + DOCUMENTS_PER_GROUP], capacity=context_length)
        order.append(begin + chosen)
        rows.append(counts)
    pieces, first = np.concatenate(order), np.concatenate([[0], np.cumsum(np.concatenate(rows))])
    taken, last = lengths[pieces], first[1:] - 1
    taken[last] -= np.diff(np.cumsum(taken)[last], prepend=0) - context_length  # only the last of a row can be too long
    return PackingPlan(starts[pieces], taken, taken == lengths[pieces], first)


def _lengths(documents: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the documents that are not empty."""
    lengths = np.diff(documents, append=tokens)
    return documents[lengths > 0], lengths[lengths > 0]


def _cut(documents: np.ndarray, tokens: int, context_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts and lengths of all documents, those longer than a row in pieces, and which pieces are the last."""
    documents, lengths = _lengths(documents, tokens)
    pieces = -(-lengths // context_length)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(documents, pieces) + number * context_length
    left = np.repeat(documents + lengths, pieces) - starts
    return starts, np.minimum(context_length, left), left <= context_length


def _packed(lengths: np.ndarray, *, capacity: int) -> np.ndarray:
    """The row of each piece: best fit, longest first.

    The rows with exactly r tokens of room are kept in a list for each r, and bit r of `open_rooms` says whether
    there is any; the tightest that fits is then the lowest bit from the length on.
    """
    row_of = np.empty(len(lengths), np.int64)
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_rooms, rows = 0, 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[room].pop()
            if not rows_with[room]:
                open_rooms ^= 1 << room
        else:
            room, row, rows = capacity, rows, rows + 1
        row_of[piece] = row
        if left := room - length:
            rows_with[left].append(row)
            open_rooms |= 1 << left
    return row_of


def _filled(lengths: np.ndarray, *, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents of full rows, row after row, and how many each row has; the last of a row may be too long for it.

    The documents of each length wait in a list, the first of them at its end; all that are longer than a row wait in
    one, the shortest at its end. Bit `capacity + 1 - length` of `waiting` says whether there is any: the longest that
    fits is then the lowest bit from `capacity + 1 - room` on, and the shortest of all is the highest bit.
    """
    documents_of: list[list[int]] = [[] for _ in range(capacity + 2)]
    order = np.argsort(lengths, kind="stable")[::-1]
    for document, length in zip(order.tolist(), np.minimum(lengths[order], capacity + 1).tolist(), strict=True):
        documents_of[length].append(document)
    waiting = sum(1 << (capacity + 1 - length) for length, found in enumerate(documents_of) if found)
    chosen: list[int] = []
    ends, room = [0], capacity
    while waiting:
        fitting = waiting >> (capacity + 1 - room)
        length = room + 1 - (fitting & -fitting).bit_length() if fitting else capacity + 2 - waiting.bit_length()
        chosen.append(documents_of[length].pop())
        if not documents_of[length]:
            waiting ^= 1 << (capacity + 1 - length)
        if length < room:
            room -= length
        else:
            room = capacity
            ends.append(len(chosen))
    return np.array(chosen[: ends[-1]], np.int64), np.diff(ends)
