"""Several data sets with given weights: which of them each row of a run comes from, computed for any row at once.

A pattern of `PATTERN_LENGTH` slots holds each component as often as its weight says, spread evenly, and is repeated. So
the number of earlier rows of a component is a division and a table look-up, and nothing is replayed. Weights may change
at any row: the next pattern continues the counts of the one before.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from gptjax.core.errors import UserError

PATTERN_LENGTH = 4096
"""Slots of a pattern: a weight is met to within 1 in 4096."""

Weights = Sequence[float]


class MixtureSchedule:
    """Maps a row of the run to (component, number of earlier rows of that component)."""

    def __init__(self, changes: Sequence[tuple[int, Weights]]) -> None:
        """`changes` are (row, weights of all components from that row on), ascending, the first for row 0.

        Raises `UserError` for negative weights, and if all are zero.
        """
        self._begins = np.array([row for row, _ in changes])
        self._patterns = [_make_pattern(weights) for _, weights in changes]
        self._counts_before = [np.zeros(len(changes[0][1]), np.int64)]
        for j, begin in enumerate(self._begins[1:]):
            self._counts_before.append(self._count(j, int(begin - self._begins[j])))

    def locate(self, rows: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """The component of each row, and the row's number within that component."""
        components, numbers = np.empty_like(rows), np.empty_like(rows)
        period = np.searchsorted(self._begins, rows, side="right") - 1
        for j in np.unique(period):
            here = np.flatnonzero(period == j)
            slots, before = self._patterns[j]
            rounds, slot = np.divmod(rows[here] - self._begins[j], PATTERN_LENGTH)
            own = components[here] = slots[slot]
            numbers[here] = self._counts_before[j][own] + rounds * before[-1, own] + before[slot, own]
        return components, numbers

    def count_rows(self, rows: int) -> Int[np.ndarray, " components"]:
        """Rows of each component among the first `rows`."""
        j = int(np.searchsorted(self._begins, rows, side="right")) - 1
        return self._count(j, rows - int(self._begins[j]))

    def _count(self, j: int, rows: int) -> Int[np.ndarray, " components"]:
        _, before = self._patterns[j]
        rounds, slot = divmod(rows, PATTERN_LENGTH)
        return self._counts_before[j] + rounds * before[-1] + before[slot]


def _make_pattern(weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """The component of each slot, and the slots of each component before slot 0, 1, …, PATTERN_LENGTH."""
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise UserError(f"weights are {list(weights)}; they must not be negative, and at least one must be positive.")
    shares = shares / shares.sum()
    slots = np.empty(PATTERN_LENGTH, np.int64)
    before = np.zeros((PATTERN_LENGTH + 1, len(shares)), np.int64)
    for slot in range(PATTERN_LENGTH):
        # The component furthest behind its share is next; one without weight never is.
        behind = np.where(shares > 0, shares * (slot + 1) - before[slot], -np.inf)
        slots[slot] = np.argmax(behind)
        before[slot + 1] = before[slot]
        before[slot + 1, slots[slot]] += 1
    if rare := [weight for weight, count in zip(weights, before[-1], strict=True) if weight > 0 and not count]:
        raise UserError(
            f"weights are {list(weights)}: {rare[0]} is less than a row in {PATTERN_LENGTH}. Make it larger, or 0."
        )
    return slots, before
