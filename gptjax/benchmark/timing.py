"""Paired times: contestants run short rounds in turn, so that what disturbs the machine disturbs all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Contestant(Protocol):
    """Anything that does the same work again and again."""

    @property
    def name(self) -> str: ...

    def run(self, count: int) -> float:
        """Do the work `count` times and wait for it. Returns seconds."""
        ...


@dataclass(frozen=True)
class Spread:
    """A measured quantity: its median over rounds, the quartiles, and the number of rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, median, high = (float(value) for value in np.percentile(np.asarray(values, float), [25, 50, 75]))
        return cls(median, low, high, len(values))


@dataclass(frozen=True)
class FunctionContestant:
    """A function as a contestant. It waits for its own result."""

    name: str
    function: Callable[[], object]

    def run(self, count: int) -> float:
        began_at = time.perf_counter()
        for _ in range(count):
            self.function()
        return time.perf_counter() - began_at


def choose_count(contestant: Contestant, seconds: float) -> int:
    """How often the contestant works in about so many seconds, at least once."""
    return max(1, round(seconds / max(contestant.run(1), 1e-9)))


def run_in_turn(contestants: Sequence[Contestant], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds that each contestant takes to do its work once, for each round, by name.

    In each round every contestant works for about `seconds`, one after the other. All must have warmed up.
    """
    counts = [choose_count(contestant, seconds) for contestant in contestants]
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant, count in zip(contestants, counts, strict=True):
            times[contestant.name].append(contestant.run(count) / count)
    return times


def compare_rounds(times: Mapping[str, Sequence[float]], name: str, *, to: str, work: float = 1.0) -> Spread:
    """Speed of one contestant over that of another, round by round; above 1 the first is faster.

    Args:
        work: work of the first over work of the second, each time that they do it once.
    """
    return Spread.of([work * theirs / ours for ours, theirs in zip(times[name], times[to], strict=True)])
