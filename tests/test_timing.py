from dataclasses import dataclass, field

import pytest

from gptjax.benchmark.timing import Spread, compare_rounds, run_in_turn


@dataclass
class Recorded:
    """A contestant that takes a second for each turn, and writes down when it ran."""

    name: str
    order: list[str] = field(default_factory=list)

    def run(self, count: int) -> float:
        self.order.append(f"{self.name}{count}")
        return float(count)


def test_run_in_turn_alternates_rounds() -> None:
    order: list[str] = []
    times = run_in_turn([Recorded("a", order), Recorded("b", order)], rounds=2, seconds=3.0)
    assert order == ["a1", "b1", "a3", "b3", "a3", "b3"]
    assert times == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_compare_rounds_pairs_times_and_scales_by_work() -> None:
    spread = compare_rounds({"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0]}, "a", to="b", work=3.0)
    assert spread == Spread(6.0, 6.0, 6.0, rounds=3)


def test_spread_has_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0, rounds=5)
    assert Spread.of([7.0]).low == pytest.approx(7.0)
