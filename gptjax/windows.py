"""Rows of T tokens and the T that follow them, by number, out of one split: what a batch is made of.

The one idea: a row is read wherever and whenever it is asked for, many at a time and without a loop over tokens; order,
epochs and shares belong to batches.py.
"""

import functools
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from gptjax.errors import UserError
from gptjax.packing import Packing, Plan, at_documents, best_fit
from gptjax.shards import TokenStream

Numbers = Int[np.ndarray, " n"]


class Cut(NamedTuple):
    """Rows that were read: inputs, what follows each, and which of these predictions count (None: all)."""

    tokens: Int[np.ndarray, "n T"]
    targets: Int[np.ndarray, "n T"]
    scored: Bool[np.ndarray, "n T"] | None


class Documents(NamedTuple):
    """To which document of its row each of the T inputs belongs, from 1 on, and its place in it; padding is 0."""

    segments: Int[np.ndarray, "n T"]
    positions: Int[np.ndarray, "n T"]


class Windows(ABC):
    """Rows of T tokens; `len` says how many there are."""

    def __init__(self, stream: TokenStream, context: int, *, end_of_text: int | None = None) -> None:
        self.stream, self.context, self.end_of_text = stream, context, end_of_text

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
    def read(self, rows: Numbers) -> Cut:
        """The rows of these numbers, in this order."""

    @abstractmethod
    def documents(self, rows: Numbers) -> Documents:
        """Where documents begin and end in these rows: for masks that keep them apart."""

    @functools.cached_property
    def _begins(self) -> Numbers:
        """Where documents begin: as the pipeline wrote it down, else where the end-of-text id stands."""
        if self.stream.documents is not None:
            return np.asarray(self.stream.documents)
        if self.end_of_text is None:
            raise UserError(
                f"{self.stream.name}: nobody wrote down where its documents begin, and no end-of-text token tells. "
                "Prepare the text with `python -m data_pipelines.prepare`, or name the --data.tokenizer."
            )
        found = self.stream.find(self.end_of_text)
        return found if len(found) and found[0] == 0 else np.concatenate([[0], found])


class _Contiguous(Windows):
    """Rows that are T + 1 tokens of the stream as they stand."""

    @abstractmethod
    def _starts(self, rows: Numbers) -> Numbers: ...

    def read(self, rows: Numbers) -> Cut:
        starts = self._starts(rows)
        tokens = self.stream.windows(starts, self.context + 1).astype(np.int32)
        marks = self.stream.scored
        scored = None if marks is None else marks[starts[:, None] + np.arange(1, self.context + 1)] == 1
        return Cut(tokens[:, :-1], tokens[:, 1:], scored)

    def documents(self, rows: Numbers) -> Documents:
        starts, begins = self._starts(rows), self._begins
        low, high = np.searchsorted(begins, starts, side="right"), np.searchsorted(begins, starts + self.context)
        inside = high - low
        row = np.repeat(np.arange(len(rows)), inside)
        which = np.arange(inside.sum()) + np.repeat(low - (np.cumsum(inside) - inside), inside)
        first = np.zeros((len(rows), self.context), np.int32)
        first[:, 0] = 1
        first[row, begins[which] - starts[row]] = 1
        places = np.arange(self.context, dtype=np.int32)
        begin_of = np.maximum.accumulate(np.where(first == 1, places, 0), axis=1)
        return Documents(np.cumsum(first, axis=1, dtype=np.int32), places - begin_of)

    @property
    def dropped(self) -> float:
        return 1 - len(self) * self.context / max(1, len(self.stream) - 1)


class Straight(_Contiguous):
    """Row i begins at token i·T: the last token of each is the first of the next."""

    def __len__(self) -> int:
        return max(0, (len(self.stream) - 1) // self.context)

    def _starts(self, rows: Numbers) -> Numbers:
        return rows * self.context


class AtDocuments(_Contiguous):
    """Every row begins with a document."""

    @functools.cached_property
    def _chosen(self) -> Numbers:
        return at_documents(self._begins, len(self.stream), self.context)

    def __len__(self) -> int:
        return len(self._chosen)

    def _starts(self, rows: Numbers) -> Numbers:
        return self._chosen[rows]


class BestFit(Windows):
    """Whole documents side by side; rows end in padding."""

    @functools.cached_property
    def _plan(self) -> Plan:
        return best_fit(self._begins, len(self.stream), self.context)

    def __len__(self) -> int:
        return len(self._plan)

    def read(self, rows: Numbers) -> Cut:
        """What follows a document is the end-of-text id that the next one begins with, or else nothing that counts."""
        at, source, _, closing = self._laid_out(rows)
        shape, end, last = (len(rows), self.context), self.end_of_text, len(self.stream) - 1
        tokens, targets = np.full(shape, end or 0, np.int32), np.full(shape, end or 0, np.int32)
        scored = np.zeros(shape, bool)
        tokens[at] = self.stream.take(source)
        following = np.where(source < last, self.stream.take(np.minimum(source + 1, last)), end or 0)
        targets[at] = following
        counts = ~closing if end is None else ~closing | (following == end)
        if (marks := self.stream.scored) is not None:
            counts &= (source < last) & (marks[np.minimum(source + 1, last)] == 1)
        scored[at] = counts
        return Cut(tokens, targets, scored)

    def documents(self, rows: Numbers) -> Documents:
        at, source, begins, _ = self._laid_out(rows)
        segments, positions = (np.zeros((len(rows), self.context), np.int32) for _ in range(2))
        number = np.cumsum(begins)  # over all rows
        segments[at] = number - number[np.searchsorted(at[0], np.arange(len(rows)))][at[0]] + 1
        positions[at] = np.arange(len(source)) - np.flatnonzero(begins)[number - 1]
        return Documents(segments, positions)

    def _laid_out(self, rows: Numbers) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """For every input of these rows: (its row, its place), where it is in the stream, whether a piece begins with
        it, and whether a document ends with it."""
        row_of_piece, piece = self._plan.pieces_of(rows)
        lengths = self._plan.lengths[piece]
        ends = np.cumsum(lengths)
        token = np.arange(int(ends[-1]) if len(ends) else 0)
        row = np.repeat(row_of_piece, lengths)
        source = token + np.repeat(self._plan.starts[piece] - (ends - lengths), lengths)
        begins, closing = np.zeros(len(token), bool), np.zeros(len(token), bool)
        begins[ends - lengths] = True
        closing[ends - 1] = self._plan.closes[piece]
        filled = np.bincount(row, minlength=len(rows))
        return (row, token - (np.cumsum(filled) - filled)[row]), source, begins, closing

    @property
    def dropped(self) -> float:
        return 0.0

    @property
    def padding(self) -> float:
        room = len(self) * self.context
        return 1 - int(self._plan.lengths.sum()) / room if room else 0.0


def open_windows(stream: TokenStream, context: int, packing: Packing, *, end_of_text: int | None) -> Windows:
    """The rows of a split, packed as asked; a UserError if there is not one."""
    kinds = {"straight": Straight, "documents": AtDocuments, "best_fit": BestFit}
    windows = kinds[packing](stream, context, end_of_text=end_of_text)
    if len(windows) == 0:
        raise UserError(
            f"{stream.name} has {len(stream)} tokens, less than one window of model.context + 1 = {context + 1}. "
            "Use more text or a smaller --model.context."
        )
    return windows
