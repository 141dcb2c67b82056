"""Rows of T tokens and the T that follow them, by number, out of one split: what a batch is made of.

The one idea: a row is read wherever and whenever it is asked for, many at a time and without a loop over tokens; order,
epochs and shares belong to batches.py.
"""

import functools
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from gptjax.core.errors import UserError
from gptjax.data.packing import Packing, PackingPlan, pack_best_fit, pack_bos_aligned, pack_bos_best_fit
from gptjax.data.shards import TokenStream

Numbers = Int[np.ndarray, " n"]


class RowDocuments(NamedTuple):
    """To which document of its row each of the T inputs belongs, from 1 on, and its place in it; padding is 0."""

    segments: Int[np.ndarray, "n T"]
    positions: Int[np.ndarray, "n T"]


class SequenceBatch(NamedTuple):
    """Rows that were read: inputs, what follows each, which of these predictions count (None: all), and the documents
    if they were asked for."""

    tokens: Int[np.ndarray, "n T"]
    targets: Int[np.ndarray, "n T"]
    loss_mask: Bool[np.ndarray, "n T"] | None
    documents: RowDocuments | None = None


class Sequences(ABC):
    """Rows of T tokens; `len` says how many there are."""

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

    @abstractmethod
    def read(self, rows: Numbers, *, documents: bool = False) -> SequenceBatch:
        """The rows of these numbers, in this order; with `documents`, for masks that keep them apart."""

    @functools.cached_property
    def _begins(self) -> Numbers:
        """Where documents begin: as the pipeline wrote it down, else where the end-of-text id stands."""
        require_document_starts(self.stream, self.end_of_text)
        if self.stream.document_starts is not None:
            return np.asarray(self.stream.document_starts)
        assert self.end_of_text is not None
        found = self.stream.find(self.end_of_text)
        return found if len(found) and found[0] == 0 else np.concatenate([[0], found])


def require_document_starts(stream: TokenStream, end_of_text: int | None) -> None:
    """Raise unless something tells where the documents of a stream begin."""
    if stream.document_starts is None and end_of_text is None:
        raise UserError(
            f"{stream.name}: nobody wrote down where its documents begin, and no end-of-text token tells. Prepare the "
            "text anew with `python -m data_pipelines.prepare` into another directory, or name the --data.tokenizer of "
            "shards that have such a token."
        )


class _Contiguous(Sequences):
    """Rows that are T + 1 tokens of the stream as they stand."""

    @abstractmethod
    def _starts(self, rows: Numbers) -> Numbers: ...

    def read(self, rows: Numbers, *, documents: bool = False) -> SequenceBatch:
        starts = self._starts(rows)
        tokens = self.stream.read_sequences(starts, self.context_length + 1).astype(np.int32)
        marks = self.stream.loss_mask
        scored = None if marks is None else marks[starts[:, None] + np.arange(1, self.context_length + 1)] == 1
        return SequenceBatch(tokens[:, :-1], tokens[:, 1:], scored, self.documents_at(starts) if documents else None)

    def documents_at(self, starts: Numbers) -> RowDocuments:
        """Where documents begin and end in rows of T tokens that start at these places of the stream."""
        begins = self._begins
        low, high = np.searchsorted(begins, starts, side="right"), np.searchsorted(begins, starts + self.context_length)
        inside = high - low
        row = np.repeat(np.arange(len(starts)), inside)
        which = np.arange(inside.sum()) + np.repeat(low - (np.cumsum(inside) - inside), inside)
        # Pieces of documents, counted over all these rows: one begins with each row, others inside.
        rows = np.arange(len(starts)) * self.context_length
        begin = np.sort(np.concatenate([rows, rows[row] + begins[which] - starts[row]]))
        lengths = np.diff(begin, append=len(starts) * self.context_length)
        first = np.searchsorted(begin, begin // self.context_length * self.context_length)
        segments = np.repeat((np.arange(len(begin)) - first + 1).astype(np.int32), lengths)
        positions = np.arange(len(segments), dtype=np.int32) - np.repeat(begin.astype(np.int32), lengths)
        shape = (len(starts), self.context_length)
        return RowDocuments(segments.reshape(shape), positions.reshape(shape))

    @property
    def dropped(self) -> float:
        return 1 - len(self) * self.context_length / max(1, len(self.stream) - 1)


class ConcatSequences(_Contiguous):
    """Row i begins at token i·T: the last token of each is the first of the next."""

    def __len__(self) -> int:
        return max(0, (len(self.stream) - 1) // self.context_length)

    def _starts(self, rows: Numbers) -> Numbers:
        return rows * self.context_length


class BosAlignedSequences(_Contiguous):
    """Every row begins with a document."""

    @functools.cached_property
    def _chosen(self) -> Numbers:
        return pack_bos_aligned(self._begins, len(self.stream), self.context_length)

    def __len__(self) -> int:
        return len(self._chosen)

    def _starts(self, rows: Numbers) -> Numbers:
        return self._chosen[rows]


class BestFitSequences(Sequences):
    """Whole documents side by side; rows end in padding."""

    @functools.cached_property
    def _plan(self) -> PackingPlan:
        return pack_best_fit(self._begins, len(self.stream), self.context_length)

    def __len__(self) -> int:
        return len(self._plan)

    def read(self, rows: Numbers, *, documents: bool = False) -> SequenceBatch:
        """What follows a document is the end-of-text id that the next one begins with, or else nothing that counts."""
        plan, end = self._plan, self.end_of_text
        row, piece = plan.pieces_of(rows)
        lengths, n = plan.lengths[piece], len(rows)
        first, ends = np.searchsorted(row, np.arange(n)), np.cumsum(lengths)
        begins = ends - lengths  # of each piece, among all tokens of these rows
        token = np.arange(int(lengths.sum()))
        place = token - np.repeat(begins, lengths)
        source = place + np.repeat(plan.starts[piece], lengths)
        at = token + np.repeat(row * self.context_length - begins[first][row], lengths)

        ids = self.stream.take(source)
        following = np.append(ids[1:], ids[-1:])
        closing = ends - 1
        following[closing] = self._behind(source[closing])
        counts = self._scored_behind(source)
        closing = closing[plan.closes[piece]]
        counts[closing] &= end is not None and following[closing] == end

        def spread(values: np.ndarray, dtype: type, *, padding: int = 0) -> np.ndarray:
            filled = np.full(n * self.context_length, padding, dtype)
            filled[at] = values
            return filled.reshape(n, self.context_length)

        number = np.repeat(np.arange(len(piece)) - first[row] + 1, lengths) if documents else None
        return SequenceBatch(
            spread(ids, np.int32, padding=end or 0),
            spread(following, np.int32, padding=end or 0),
            spread(counts, np.bool_),
            None if number is None else RowDocuments(spread(number, np.int32), spread(place, np.int32)),
        )

    def _behind(self, positions: Numbers) -> np.ndarray:
        """The token after each of these positions; the end-of-text id after the last of the stream."""
        last = len(self.stream) - 1
        return np.where(positions < last, self.stream.take(np.minimum(positions + 1, last)), self.end_of_text or 0)

    def _scored_behind(self, positions: Numbers) -> Bool[np.ndarray, " n"]:
        """Whether the token after each of these positions is marked as scored; all are where there are no marks."""
        marks, last = self.stream.loss_mask, len(self.stream) - 1
        if marks is None:
            return np.ones(len(positions), bool)
        return (positions < last) & (marks[np.minimum(positions + 1, last)] == 1)

    @property
    def dropped(self) -> float:
        return 1 - int(self._plan.lengths.sum()) / max(1, len(self.stream))

    @property
    def padding(self) -> float:
        room = len(self) * self.context_length
        return 1 - int(self._plan.lengths.sum()) / room if room else 0.0


class BosBestFitSequences(BestFitSequences):
    """Full rows that begin with a document; the last of a row may be cropped."""

    @functools.cached_property
    def _plan(self) -> PackingPlan:
        return pack_bos_best_fit(self._begins, len(self.stream), self.context_length)


def open_sequences(stream: TokenStream, context_length: int, packing: Packing, *, end_of_text: int | None) -> Sequences:
    """The rows of a split, packed as asked; a UserError if there is not one."""
    kinds = {
        "concat": ConcatSequences,
        "documents": BosAlignedSequences,
        "best_fit": BestFitSequences,
        "bos_best_fit": BosBestFitSequences,
    }
    windows = kinds[packing](stream, context_length, end_of_text=end_of_text)
    if len(windows) == 0:
        raise UserError(
            f"{stream.name} has {len(stream)} tokens, less than one window of model.context_length + 1 = {context_length + 1}. "
            "Use more text or a smaller --model.context-length-length."
        )
    return windows
