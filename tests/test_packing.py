"""Packing: where rows are taken from, checked against what each rule promises."""

import numpy as np
import pytest

from gptjax.packing import at_documents, best_fit


def documents(rng, number, longest):
    lengths = rng.integers(1, longest + 1, number)
    return np.cumsum(lengths) - lengths, int(lengths.sum())


def pieces(plan, row):
    span = range(plan.first[row], plan.first[row + 1])
    return [(int(plan.starts[i]), int(plan.lengths[i])) for i in span]


@pytest.mark.parametrize("longest", [3, 40])
def test_windows_begin_at_the_next_document_that_the_last_did_not_reach(longest):
    starts, tokens = documents(np.random.default_rng(longest), 200, longest)
    begins = at_documents(starts, tokens, 8).tolist()
    wanted, reached = [], 0
    for start in starts.tolist():
        if start >= reached and start + 9 <= tokens:
            wanted.append(start)
            reached = start + 8
    assert begins == wanted


@pytest.mark.parametrize(("number", "longest"), [(0, 1), (1, 1), (1, 100), (300, 5), (300, 12), (300, 60)])
def test_best_fit_keeps_every_document_whole_if_it_fits(number, longest):
    starts, tokens = documents(np.random.default_rng(number + longest), number, longest)
    plan = best_fit(starts, tokens, 8)
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
    plan = best_fit(starts, tokens, 256)
    assert len(plan) <= -(-tokens // 256) * 1.01 + 1


def test_best_fit_takes_the_tightest_row():
    lengths = np.array([6, 5, 4, 3])
    plan = best_fit(np.cumsum(lengths) - lengths, int(lengths.sum()), 9)
    assert [sorted(length for _, length in pieces(plan, row)) for row in range(len(plan))] == [[3, 6], [4, 5]]
