"""Several data sets in given shares: which of them each row of a run comes from, for any row at once.

The one idea: a pattern of `SLOTS` turns holds every set as often as its weight says, spread evenly, and is repeated.
How many rows of a set came before row n is then a division and a look into a table, so nothing has to be replayed, and
weights may change at any row: the next pattern goes on counting where the last one was.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from gptjax.core.errors import UserError

SLOTS = 4096
"""Turns in a pattern: a weight is met to within a part in 4096."""

Weights = Sequence[float]


class MixtureSchedule:
    """Row n → (set, how many rows of that set came before)."""

    def __init__(self, changes: Sequence[tuple[int, Weights]]) -> None:
        """`changes` are (row, weights of all sets from that row on), ascending, the first for row 0.

        Raises a UserError unless weights are not negative and some are positive.
        """
        self._begins = np.array([row for row, _ in changes])
        self._patterns = [_pattern(weights) for _, weights in changes]
        self._bases = [np.zeros(len(changes[0][1]), np.int64)]
        for j, begin in enumerate(self._begins[1:]):
            self._bases.append(self._before(j, int(begin - self._begins[j])))

    def __call__(self, rows: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """The set of each row, and the row's number within that set."""
        sets, numbers = np.empty_like(rows), np.empty_like(rows)
        stretch = np.searchsorted(self._begins, rows, side="right") - 1
        for j in np.unique(stretch):
            here = np.flatnonzero(stretch == j)
            turns, before = self._patterns[j]
            rounds, slots = np.divmod(rows[here] - self._begins[j], SLOTS)
            sets[here] = turns[slots]
            numbers[here] = (self._bases[j] + rounds[:, None] * before[-1] + before[slots])[
                np.arange(len(here)), sets[here]
            ]
        return sets, numbers

    def counts(self, rows: int) -> Int[np.ndarray, " sets"]:
        """Rows of each set among the first `rows`."""
        j = int(np.searchsorted(self._begins, rows, side="right")) - 1
        return self._before(j, rows - int(self._begins[j]))

    def _before(self, j: int, rows: int) -> Int[np.ndarray, " sets"]:
        _, before = self._patterns[j]
        rounds, slot = divmod(rows, SLOTS)
        return self._bases[j] + rounds * before[-1] + before[slot]


def _pattern(weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """The set of each slot, and how often each set had its turn before slot 0, 1, …, SLOTS."""
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise UserError(f"weights are {list(weights)}; they must not be negative, and at least one must be positive.")
    shares = shares / shares.sum()
    turns, before = np.empty(SLOTS, np.int64), np.zeros((SLOTS + 1, len(shares)), np.int64)
    for slot in range(SLOTS):
        # Whoever is furthest behind its share is next; a set without weight never is.
        behind = np.where(shares > 0, shares * (slot + 1) - before[slot], -np.inf)
        turns[slot] = np.argmax(behind)
        before[slot + 1] = before[slot]
        before[slot + 1, turns[slot]] += 1
    if rare := [weight for weight, turns_of in zip(weights, before[-1], strict=True) if weight > 0 and not turns_of]:
        raise UserError(f"weights are {list(weights)}: {rare[0]} is less than a row in {SLOTS}. Make it larger, or 0.")
    return turns, before
