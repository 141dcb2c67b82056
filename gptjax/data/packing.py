"""Packing: which tokens of a stream become a row, computed from where documents begin, before any token is read.

A plan is a few arrays that say for each row where its tokens are. So any row can be read by its number, in any order,
on any process.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

Packing = Literal["concat", "bos_aligned", "best_fit", "bos_best_fit", "best_fit_truncate"]
"""How a stream of documents becomes rows:

- `concat`: consecutive rows that overlap by one token, as GPT-2 was trained. Every token but the first is predicted
  once; fewer than T + 1 at the end are dropped.
- `bos_aligned`: each row begins with a document, the first one that the row before does not reach. What lies between
  the end of a row and the next start is dropped: of documents much shorter than T about half a document per row, of
  longer ones what is beyond T. Of 300 web pages this is 34 % of the tokens at T = 2048. The run prints the share.
- `best_fit`: whole documents, packed by best fit, the longest first (arXiv:2404.10830). Only documents longer than a
  row are cut. Nothing is dropped. The rest of a row is padding, which is not scored: less than one position in a
  hundred if documents are short, more if most are longer than half a row. The run prints the share.
- `bos_best_fit`: full rows that begin with a document, as nanochat's do. The longest document that fits into the rest
  of a row comes next. If none fits, the shortest is cropped, and its rest is dropped. That is mostly what documents
  have beyond T: of 300 web pages 17 % of the tokens at T = 2048. The run prints the share.
- `best_fit_truncate`: as `best_fit`, but of a document longer than a row only the first T tokens are read, and
  documents in which nothing is scored are left out: for conversations, whose rest would be read without what it answers
  to. The run prints how many are cut and left out.
"""

DOCUMENTS_PER_GROUP = 2**16
"""Documents that best fit packs with each other: enough for tight rows, few enough to lie close together on a disk."""

Starts = Int[np.ndarray, " documents"]
Lengths = Int[np.ndarray, " pieces"]


@dataclass(frozen=True)
class PackingPlan:
    """Rows of up to T inputs as pieces of the stream, in the order of the row."""

    starts: Int[np.ndarray, " pieces"]
    """First token of each piece."""
    lengths: Lengths
    """Tokens of each piece, at least 1."""
    ends_document: Bool[np.ndarray, " pieces"]
    """Whether the piece is the last of its document."""
    row_offsets: Int[np.ndarray, " rows_and_one"]
    """Row i has the pieces `row_offsets[i]` up to `row_offsets[i + 1]`."""

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def find_pieces(self, rows: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
        """(which of the n rows, which piece) of every piece in these rows, in order."""
        return expand_ranges(self.row_offsets[rows], self.row_offsets[rows + 1])


def expand_ranges(begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which range, which number) of every number in these ranges, in order."""
    counts = ends - begins
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(counts.sum()) + np.repeat(begins - (np.cumsum(counts) - counts), counts)


def pack_bos_aligned(document_starts: Starts, tokens: int, context_length: int) -> Int[np.ndarray, " rows"]:
    """The first token of each row of T + 1 tokens that begins with a document; starts are ascending."""
    usable = document_starts[document_starts + context_length + 1 <= tokens]
    # For every start, the first start that its row does not reach; then only the chain from the first is walked.
    following = np.searchsorted(usable, usable + context_length).tolist()
    chain, document = [], 0
    while document < len(usable):
        chain.append(document)
        document = following[document]
    return np.asarray(usable[chain], np.int64)


def pack_best_fit(
    document_starts: Starts, tokens: int, context_length: int, *, group_size: int = DOCUMENTS_PER_GROUP
) -> PackingPlan:
    """Whole documents packed tightly into rows of T inputs; starts are ascending.

    A document longer than a row becomes whole rows and a rest, which is packed like a document.
    """
    pieces = _split_documents(np.asarray(document_starts, np.int64), tokens, context_length)
    starts, lengths, ends_document = (array[:, None] for array in pieces)
    return pack_units(starts, lengths, ends_document, context_length=context_length, group_size=group_size)


def pack_units(
    starts: Int[np.ndarray, "units k"],
    lengths: Int[np.ndarray, "units k"],
    ends_document: Bool[np.ndarray, "units k"],
    *,
    context_length: int,
    group_size: int = DOCUMENTS_PER_GROUP,
) -> PackingPlan:
    """Units of k pieces, at most T tokens together, packed by best fit. The pieces of a unit stay side by side."""
    totals, k = lengths.sum(axis=1), starts.shape[1]
    order, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin in range(0, len(totals), group_size):
        row_of = _assign_rows(totals[begin : begin + group_size], capacity=context_length)
        order.append(begin + np.argsort(row_of, kind="stable"))
        counts.append(k * np.bincount(row_of))
    units, row_offsets = np.concatenate(order), np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return PackingPlan(
        starts[units].reshape(-1), lengths[units].reshape(-1), ends_document[units].reshape(-1), row_offsets
    )


def pack_bos_best_fit(
    document_starts: Starts, tokens: int, context_length: int, *, group_size: int = DOCUMENTS_PER_GROUP
) -> PackingPlan:
    """Rows of exactly T inputs that begin with a document; starts are ascending.

    No document is used twice. Documents left at the end of a group that do not fill a row are dropped.
    """
    starts, lengths = _drop_empty(np.asarray(document_starts, np.int64), tokens)
    order, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin in range(0, len(lengths), group_size):
        chosen, per_row = _fill_rows(lengths[begin : begin + group_size], capacity=context_length)
        order.append(begin + chosen)
        counts.append(per_row)
    pieces, row_offsets = np.concatenate(order), np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    cropped, last = lengths[pieces], row_offsets[1:] - 1
    # Only the last document of a row can be too long for it.
    cropped[last] -= np.diff(np.cumsum(cropped)[last], prepend=0) - context_length
    return PackingPlan(starts[pieces], cropped, cropped == lengths[pieces], row_offsets)


def _drop_empty(starts: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the documents that are not empty."""
    lengths = np.diff(starts, append=tokens)
    return starts[lengths > 0], lengths[lengths > 0]


def _split_documents(starts: np.ndarray, tokens: int, context_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts and lengths of pieces no longer than a row, and which pieces are the last of their document."""
    starts, lengths = _drop_empty(starts, tokens)
    pieces = -(-lengths // context_length)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begins = np.repeat(starts, pieces) + number * context_length
    left = np.repeat(starts + lengths, pieces) - begins
    return begins, np.minimum(context_length, left), left <= context_length


def _assign_rows(lengths: np.ndarray, *, capacity: int) -> np.ndarray:
    """The row of each piece: best fit, longest first.

    `rows_with[n]` lists the rows with exactly n free positions, and bit n of `free` says whether there is any. The
    tightest row that fits is then the lowest bit from the length on.
    """
    row_of = np.empty(len(lengths), np.int64)
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    free, rows = 0, 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        fitting = free >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[space].pop()
            if not rows_with[space]:
                free ^= 1 << space
        else:
            space, row, rows = capacity, rows, rows + 1
        row_of[piece] = row
        if left := space - length:
            rows_with[left].append(row)
            free |= 1 << left
    return row_of


def _fill_rows(lengths: np.ndarray, *, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents of full rows, row after row, and how many each row has; a row's last one may be too long for it.

    `documents_of[n]` lists the unused documents of length n, the first of them at the end of the list. All documents
    longer than a row share one list, the shortest at its end. Bit `capacity + 1 - n` of `unused` says whether list n
    has any. The longest document that fits is then the lowest bit from `capacity + 1 - space` on, and the shortest of
    all is the highest bit.
    """
    documents_of: list[list[int]] = [[] for _ in range(capacity + 2)]
    order = np.argsort(lengths, kind="stable")[::-1]
    for document, length in zip(order.tolist(), np.minimum(lengths[order], capacity + 1).tolist(), strict=True):
        documents_of[length].append(document)
    unused = sum(1 << (capacity + 1 - length) for length, found in enumerate(documents_of) if found)
    chosen: list[int] = []
    ends, space = [0], capacity
    while unused:
        fitting = unused >> (capacity + 1 - space)
        length = space + 1 - (fitting & -fitting).bit_length() if fitting else capacity + 2 - unused.bit_length()
        chosen.append(documents_of[length].pop())
        if not documents_of[length]:
            unused ^= 1 << (capacity + 1 - length)
        if length < space:
            space -= length
        else:
            space = capacity
            ends.append(len(chosen))
    return np.array(chosen[: ends[-1]], np.int64), np.diff(ends)
