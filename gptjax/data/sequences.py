"""Sequences: rows of T tokens and the T that follow them, read by number out of one split.

Any row can be read at any time, many at once, without a loop over tokens. Order, epochs and mixtures are in readers.py.
"""

import functools
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError, count_of
from gptjax.data.file_array import FileArray
from gptjax.data.packing import (
    Packing,
    PackingPlan,
    expand_ranges,
    pack_best_fit,
    pack_bos_aligned,
    pack_bos_best_fit,
    pack_units,
)
from gptjax.data.source import Rows
from gptjax.data.token_stream import TokenStream

Numbers = Int[np.ndarray, " n"]


class Sequences(ABC):
    """Rows of T tokens; `len` is their number."""

    def __init__(self, stream: TokenStream, context_length: int, *, end_of_text: int | None = None) -> None:
        self.stream, self.context_length, self.end_of_text = stream, context_length, end_of_text

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def dropped(self) -> float:
        """Share of the stream's tokens that no row predicts."""

    @property
    def padding(self) -> float:
        """Share of positions that hold no token."""
        return 0.0

    @property
    def notes(self) -> list[str]:
        """What is cut or left out, for the head of a run."""
        return []

    @abstractmethod
    def read(self, rows: Numbers, *, with_documents: bool = False) -> Rows:
        """The rows of these numbers, in this order, with the arrays that `source.RowReader.read` lists."""

    @abstractmethod
    def locate_tokens(self, rows: Numbers) -> Int[np.ndarray, "n T"]:
        """Where the tokens of these rows are in the stream; -1 for padding."""

    @functools.cached_property
    def _document_starts(self) -> Numbers:
        """As the pipeline recorded them, else where the end-of-text id is."""
        check_documents_known(self.stream, self.end_of_text)
        if self.stream.document_starts is not None:
            return self.stream.document_starts
        assert self.end_of_text is not None
        found = self.stream.find_token(self.end_of_text)
        return found if len(found) and found[0] == 0 else np.concatenate([[0], found])


def check_documents_known(stream: TokenStream, end_of_text: int | None) -> None:
    """Raise unless an index or an end-of-text id says where the documents of a stream begin."""
    if stream.document_starts is None and end_of_text is None:
        raise UserError(
            f"{stream.name}: it is unknown where its documents begin: no file says so, and no end-of-text token is "
            "known. Prepare the text again with `python -m data_pipelines.prepare` into another directory, or name the "
            "--data.tokenizer of shards that have such a token."
        )


class _ContiguousSequences(Sequences):
    """Rows that are T + 1 consecutive tokens of the stream."""

    @abstractmethod
    def _find_starts(self, rows: Numbers) -> Numbers: ...

    def read(self, rows: Numbers, *, with_documents: bool = False) -> Rows:
        starts = self._find_starts(rows)
        tokens = self.stream.read_sequences(starts, self.context_length + 1).astype(np.int32)
        targets, mask = tokens[:, 1:], self.stream.loss_mask
        if mask is not None:
            scored = mask[starts[:, None] + np.arange(1, self.context_length + 1)] == 1
            targets = np.where(scored, targets, np.int32(IGNORE_INDEX))
        found = {"tokens": tokens[:, :-1], "targets": targets}
        return found | self.locate_documents(starts) if with_documents else found

    def locate_tokens(self, rows: Numbers) -> Int[np.ndarray, "n T"]:
        return self._find_starts(rows)[:, None] + np.arange(self.context_length)

    def locate_documents(self, starts: Numbers) -> Rows:
        """`segments` and `positions` of rows of T tokens that start at these places of the stream."""
        known, places = self._document_starts, np.arange(self.context_length, dtype=np.int32)
        low, high = np.searchsorted(known, starts, side="right"), np.searchsorted(known, starts + len(places))
        row, document = expand_ranges(low, high)
        begins = np.zeros((len(starts), len(places)), bool)
        begins[:, 0] = True
        begins[row, known[document] - starts[row]] = True
        positions = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
        return {"segments": np.cumsum(begins, axis=1, dtype=np.int32), "positions": positions}

    @property
    def dropped(self) -> float:
        return 1 - len(self) * self.context_length / max(1, len(self.stream) - 1)


class ConcatSequences(_ContiguousSequences):
    """Row i begins at token i·T: the last token of each is the first of the next."""

    def __len__(self) -> int:
        return max(0, (len(self.stream) - 1) // self.context_length)

    def _find_starts(self, rows: Numbers) -> Numbers:
        return rows * self.context_length


class BosAlignedSequences(_ContiguousSequences):
    """Every row begins with a document."""

    @functools.cached_property
    def _starts(self) -> Numbers:
        return pack_bos_aligned(self._document_starts, len(self.stream), self.context_length)

    def __len__(self) -> int:
        return len(self._starts)

    def _find_starts(self, rows: Numbers) -> Numbers:
        return self._starts[rows]


class _Places(NamedTuple):
    """The pieces of some rows, and all their tokens, in order."""

    piece: Numbers
    """Of each piece, its number in the plan."""
    last: Numbers
    """Of each piece, its last token, counted among all tokens of these rows."""
    source: Numbers
    """Of each token, its place in the stream."""
    place: Numbers
    """Of each token, its place in the rows, counted through them all."""
    position: Numbers
    """Of each token, its place in its piece."""
    segment: Numbers
    """Of each token, the number of its piece in the row, from 1 on."""


class BestFitSequences(Sequences):
    """Whole documents side by side; rows end in padding."""

    @functools.cached_property
    def plan(self) -> PackingPlan:
        return pack_best_fit(self._document_starts, len(self.stream), self.context_length)

    def __len__(self) -> int:
        return len(self.plan)

    def read(self, rows: Numbers, *, with_documents: bool = False) -> Rows:
        """A document is followed by the end-of-text id that begins the next one, or else by nothing that is scored."""
        at = self._locate(rows)
        end = self.end_of_text
        tokens = self.stream.take(at.source).astype(np.int32)
        targets, last = np.append(tokens[1:], tokens[-1:]), at.last
        targets[last] = self._read_next(at.source[last])
        scored = self._is_next_scored(at.source)
        last = last[self.plan.ends_document[at.piece]]
        scored[last] &= end is not None and targets[last] == end
        values = {"tokens": (tokens, end or 0), "targets": (np.where(scored, targets, IGNORE_INDEX), IGNORE_INDEX)}
        if with_documents:
            values |= {"segments": (at.segment, 0), "positions": (at.position, 0)}
        values |= self._read_more(at.source, scored)
        return {name: self._place(array, at.place, len(rows), padding) for name, (array, padding) in values.items()}

    def locate_tokens(self, rows: Numbers) -> Int[np.ndarray, "n T"]:
        at = self._locate(rows)
        filled = np.full(len(rows) * self.context_length, -1)
        filled[at.place] = at.source
        return filled.reshape(len(rows), self.context_length)

    def _read_more(self, source: Numbers, scored: Bool[np.ndarray, " n"]) -> dict[str, tuple[np.ndarray, int]]:
        """Further arrays of the tokens at these places of the stream, and what fills their padding."""
        return {}

    def _locate(self, rows: Numbers) -> "_Places":
        """Where the tokens of these rows are in the stream and in the rows."""
        row, piece = self.plan.find_pieces(rows)
        lengths = self.plan.lengths[piece]
        ends, first_of_row = np.cumsum(lengths), np.searchsorted(row, np.arange(len(rows)))
        begins = ends - lengths  # of each piece, among all tokens of these rows
        token = np.arange(int(lengths.sum()))
        position = token - np.repeat(begins, lengths)
        return _Places(
            piece=piece,
            last=ends - 1,
            source=position + np.repeat(self.plan.starts[piece], lengths),
            place=token + np.repeat(row * self.context_length - begins[first_of_row][row], lengths),
            position=position,
            segment=np.repeat(np.arange(len(piece)) - first_of_row[row] + 1, lengths),
        )

    def _place(self, values: np.ndarray, at: np.ndarray, rows: int, padding: int) -> np.ndarray:
        """Rows with these values at these places, and padding elsewhere; int32, or float32 if the values are."""
        filled = np.full(rows * self.context_length, padding, np.float32 if values.dtype == np.float32 else np.int32)
        filled[at] = values
        return filled.reshape(rows, self.context_length)

    def _read_next(self, positions: Numbers) -> np.ndarray:
        """The token after each of these positions; the end-of-text id after the last of the stream."""
        last = len(self.stream) - 1
        return np.where(positions < last, self.stream.take(np.minimum(positions + 1, last)), self.end_of_text or 0)

    def _is_next_scored(self, positions: Numbers) -> Bool[np.ndarray, " n"]:
        """Whether the loss mask scores the token after each of these positions; it does if there is no mask."""
        mask, last = self.stream.loss_mask, len(self.stream) - 1
        if mask is None:
            return np.ones(len(positions), bool)
        return (positions < last) & (mask[np.minimum(positions + 1, last)] == 1)

    @property
    def dropped(self) -> float:
        return 1 - int(self.plan.lengths.sum()) / max(1, len(self.stream))

    @property
    def padding(self) -> float:
        positions = len(self) * self.context_length
        return 1 - int(self.plan.lengths.sum()) / positions if positions else 0.0


class BosBestFitSequences(BestFitSequences):
    """Full rows that begin with a document; the last of a row may be cropped."""

    @functools.cached_property
    def plan(self) -> PackingPlan:
        return pack_bos_best_fit(self._document_starts, len(self.stream), self.context_length)


class TruncatedSequences(BestFitSequences):
    """Documents side by side, each cut to the length of a row. Those in which nothing is scored are left out."""

    @functools.cached_property
    def plan(self) -> PackingPlan:
        starts = self._document_starts.astype(np.int64)
        lengths = np.minimum(np.diff(starts, append=len(self.stream)), self.context_length)
        kept = count_scored(self.stream.loss_mask, starts + 1, starts + lengths) > 0
        pieces = starts[kept][:, None], lengths[kept][:, None]
        return pack_units(*pieces, np.ones_like(pieces[0], bool), context_length=self.context_length)

    @property
    def notes(self) -> list[str]:
        lengths = np.diff(self._document_starts, append=len(self.stream))
        cut, left_out = int((lengths > self.context_length).sum()), len(lengths) - len(self.plan.starts)
        why = f"nothing in their first {self.context_length} tokens is scored"
        return describe_cuts("documents", len(lengths), cut=cut, left_out=left_out, limit=self.context_length, why=why)


def count_scored(mask: np.ndarray | FileArray | None, begins: Numbers, ends: Numbers) -> Numbers:
    """The scored tokens of each range of a stream; without a mask all tokens are scored."""
    if mask is None:
        return np.maximum(ends - begins, 0)
    before = np.concatenate([[0], np.cumsum(np.asarray(mask) == 1, dtype=np.int64)])
    return before[np.maximum(ends, begins)] - before[begins]


def describe_cuts(what: str, total: int, *, cut: int, left_out: int, limit: int, why: str) -> list[str]:
    """Lines that say how many documents are cut or left out, and why; none if all are read whole."""
    found = ((cut, f"are longer than {limit} tokens and cut"), (left_out, f"are left out: {why}"))
    return [f"{count:,} of {total:,} {what} {fate}" for count, fate in found if count]


def open_sequences(stream: TokenStream, context_length: int, packing: Packing, *, end_of_text: int | None) -> Sequences:
    """The rows of a split; raises `UserError` if there are none."""
    kinds = {
        "concat": ConcatSequences,
        "bos_aligned": BosAlignedSequences,
        "best_fit": BestFitSequences,
        "bos_best_fit": BosBestFitSequences,
        "best_fit_truncate": TruncatedSequences,
    }
    sequences = kinds[packing](stream, context_length, end_of_text=end_of_text)
    if len(sequences) == 0 and packing == "best_fit_truncate" and stream.loss_mask is not None:
        raise UserError(
            f"{stream.name}: nothing is scored in the first {context_length:,} tokens of any document. Use a longer "
            "--model.context-length."
        )
    if len(sequences) == 0:
        raise UserError(
            f"{stream.name} has {count_of(len(stream), 'tokens')}, less than one sequence of model.context_length + 1 "
            f"= {context_length + 1}. Use more text or a smaller --model.context-length."
        )
    return sequences
