"""Turns: the share of every set, at every row, whatever was asked before."""

import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.data.mixture import PATTERN_LENGTH, MixtureSchedule


def test_shares_are_met_all_along():
    weights = [0.7, 0.2, 0.1]
    sets, numbers = MixtureSchedule([(0, weights)])(np.arange(3 * PATTERN_LENGTH))
    for n in (1, 2, 5, 10, 100, PATTERN_LENGTH, 3 * PATTERN_LENGTH):
        counts = np.bincount(sets[:n], minlength=3)
        assert np.all(np.abs(counts - n * np.array(weights)) <= 1.5)
    for k in range(3):
        np.testing.assert_array_equal(numbers[sets == k], np.arange(np.sum(sets == k)))


def test_one_set_has_every_turn():
    sets, numbers = MixtureSchedule([(0, [3.0])])(np.arange(10_000))
    assert not sets.any()
    np.testing.assert_array_equal(numbers, np.arange(10_000))


def test_weights_change_at_a_row_and_counting_goes_on():
    turns = MixtureSchedule([(0, [1.0, 0.0, 1.0]), (5000, [0.0, 1.0, 1.0]), (5003, [1.0, 1.0, 0.0])])
    rows = np.arange(9000)
    sets, numbers = turns(rows)
    assert set(sets[:5000]) == {0, 2}
    assert set(sets[5000:5003]) == {1, 2}
    assert set(sets[5003:]) == {0, 1}
    for k in range(3):
        np.testing.assert_array_equal(numbers[sets == k], np.arange(np.sum(sets == k)))
    for n in (0, 1, 4999, 5000, 5001, 5003, 8999):
        np.testing.assert_array_equal(turns.counts(n), np.bincount(sets[:n], minlength=3))
    shuffled = np.random.default_rng(0).permutation(rows)
    again = turns(shuffled)
    np.testing.assert_array_equal(again[0], sets[shuffled])
    np.testing.assert_array_equal(again[1], numbers[shuffled])


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]])
def test_weights_must_make_sense(weights):
    with pytest.raises(UserError, match="must not be negative"):
        MixtureSchedule([(0, weights)])
