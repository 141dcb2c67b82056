"""Mixture schedule: the weight of every component, at every row, in any order of asking."""

import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.data.mixture import PATTERN_LENGTH, MixtureSchedule


def test_weights_are_met_at_every_row() -> None:
    weights = [0.7, 0.2, 0.1]
    components, numbers = MixtureSchedule([(0, weights)]).locate(np.arange(3 * PATTERN_LENGTH))
    for n in (1, 2, 5, 10, 100, PATTERN_LENGTH, 3 * PATTERN_LENGTH):
        counts = np.bincount(components[:n], minlength=3)
        assert np.all(np.abs(counts - n * np.array(weights)) <= 1.5)
    for k in range(3):
        np.testing.assert_array_equal(numbers[components == k], np.arange(np.sum(components == k)))


def test_one_component_has_every_row() -> None:
    components, numbers = MixtureSchedule([(0, [3.0])]).locate(np.arange(10_000))
    assert not components.any()
    np.testing.assert_array_equal(numbers, np.arange(10_000))


def test_changing_weights_continue_the_counts() -> None:
    schedule = MixtureSchedule([(0, [1.0, 0.0, 1.0]), (5000, [0.0, 1.0, 1.0]), (5003, [1.0, 1.0, 0.0])])
    rows = np.arange(9000)
    components, numbers = schedule.locate(rows)
    assert set(components[:5000]) == {0, 2}
    assert set(components[5000:5003]) == {1, 2}
    assert set(components[5003:]) == {0, 1}
    for k in range(3):
        np.testing.assert_array_equal(numbers[components == k], np.arange(np.sum(components == k)))
    for n in (0, 1, 4999, 5000, 5001, 5003, 8999):
        np.testing.assert_array_equal(schedule.count_rows(n), np.bincount(components[:n], minlength=3))
    shuffled = np.random.default_rng(0).permutation(rows)
    again = schedule.locate(shuffled)
    np.testing.assert_array_equal(again[0], components[shuffled])
    np.testing.assert_array_equal(again[1], numbers[shuffled])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.0, 0.0], "must not be negative"),
        ([-1.0, 2.0], "must not be negative"),
        ([float("nan"), 1.0], "must not be negative"),
        ([1.0, 1e-5], "1e-05 is less than a row in 4096"),
    ],
)
def test_impossible_weights_are_an_error(weights: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MixtureSchedule([(0, weights)])
