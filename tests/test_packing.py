"""Packing: where rows are taken from, checked against what each rule promises."""

import numpy as np
import pytest

from gptjax import packing
from gptjax.data.packing import pack_best_fit, pack_bos_aligned, pack_bos_best_fit


def documents(rng, number, longest):
    lengths = rng.integers(1, longest + 1, number)
    return np.cumsum(lengths) - lengths, int(lengths.sum())


def pieces(plan, row):
    span = range(plan.first[row], plan.first[row + 1])
    return [(int(plan.starts[i]), int(plan.lengths[i])) for i in span]


@pytest.mark.parametrize("longest", [3, 40])
def test_windows_begin_at_the_next_document_that_the_last_did_not_reach(longest):
    starts, tokens = documents(np.random.default_rng(longest), 200, longest)
    begins = pack_bos_aligned(starts, tokens, 8).tolist()
    wanted, reached = [], 0
    for start in starts.tolist():
        if start >= reached and start + 9 <= tokens:
            wanted.append(start)
            reached = start + 8
    assert begins == wanted


@pytest.mark.parametrize(("number", "longest"), [(0, 1), (1, 1), (1, 100), (300, 5), (300, 12), (300, 60)])
def test_best_fit_keeps_every_document_whole_if_it_fits(number, longest):
    starts, tokens = documents(np.random.default_rng(number + longest), number, longest)
    plan = pack_best_fit(starts, tokens, 8)
    found = sorted(piece for row in range(len(plan)) for piece in pieces(plan, row))
    wanted = []
    for start, end in zip(starts.tolist(), [*starts.tolist(), tokens][1:], strict=True):
        wanted += [(begin, min(8, end - begin)) for begin in range(start, end, 8)]
    assert found == sorted(wanted)
    for row in range(len(plan)):
        assert 0 < sum(length for _, length in pieces(plan, row)) <= 8


def test_best_fit_is_tight():
    """Against the least number of rows that there could be."""
    starts, tokens = documents(np.random.default_rng(0), 3000, 200)
    plan = pack_best_fit(starts, tokens, 256)
    assert len(plan) <= -(-tokens // 256) * 1.01 + 1


def test_best_fit_takes_the_tightest_row():
    lengths = np.array([6, 5, 4, 3])
    plan = pack_best_fit(np.cumsum(lengths) - lengths, int(lengths.sum()), 9)
    assert [sorted(length for _, length in pieces(plan, row)) for row in range(len(plan))] == [[3, 6], [4, 5]]


def filled_one_by_one(starts, tokens, context_length):
    """(start, length) of each piece, row by row: all documents at hand are looked at for every single choice."""
    left = dict(zip(starts.tolist(), np.diff(starts, append=tokens).tolist(), strict=True))
    rows, row, room = [], [], context_length
    while left:
        fitting = [start for start in left if left[start] <= room]
        start = max(fitting, key=left.__getitem__) if fitting else min(left, key=left.__getitem__)
        row.append((start, min(left.pop(start), room)))
        room -= row[-1][1]
        if room == 0:
            rows.append(row)
            row, room = [], context_length
    return rows


@pytest.mark.parametrize(
    ("number", "longest"), [(0, 1), (1, 7), (1, 8), (1, 100), (300, 1), (300, 5), (300, 12), (300, 60)]
)
def test_cropped_rows_are_those_of_a_search_through_all_documents(number, longest):
    starts, tokens = documents(np.random.default_rng(number + longest), number, longest)
    plan = pack_bos_best_fit(starts, tokens, 8)
    assert [pieces(plan, row) for row in range(len(plan))] == filled_one_by_one(starts, tokens, 8)
    assert (np.add.reduceat(plan.lengths, plan.first[:-1]) == 8).all()
    assert len(set(plan.starts.tolist())) == len(plan.starts)
    length_of = dict(zip(starts.tolist(), np.diff(starts, append=tokens).tolist(), strict=True))
    np.testing.assert_array_equal(plan.closes, plan.lengths == [length_of[start] for start in plan.starts.tolist()])


def test_groups_are_cropped_each_by_itself(monkeypatch):
    """What is left of a group that fills no row is dropped; an empty document is none."""
    monkeypatch.setattr(packing, "GROUP", 50)
    starts, tokens = documents(np.random.default_rng(0), 120, 12)
    plan = pack_bos_best_fit(np.sort(np.append(starts, starts[60])), tokens, 8)
    wanted = []
    for begin in range(0, 120, 50):
        wanted += filled_one_by_one(starts[begin : begin + 50], int([*starts, tokens][min(begin + 50, 120)]), 8)
    assert [pieces(plan, row) for row in range(len(plan))] == wanted


def test_the_shortest_is_cropped_and_the_longest_come_last():
    """12 and 20 are longer than a row; 3 is the shortest when 2 are left of the first row."""
    lengths = np.array([20, 7, 4, 12, 3])
    plan = pack_bos_best_fit(np.cumsum(lengths) - lengths, int(lengths.sum()), 9)
    assert [[length for _, length in pieces(plan, row)] for row in range(len(plan))] == [[7, 2], [4, 5], [9]]
    assert plan.closes.tolist() == [True, False, True, False, False]


def test_hardly_more_is_dropped_than_what_is_beyond_a_row():
    starts, tokens = documents(np.random.default_rng(0), 3000, 400)
    plan = pack_bos_best_fit(starts, tokens, 256)
    most = np.minimum(np.diff(starts, append=tokens), 256).sum()
    assert len(plan) * 256 >= 0.99 * most
