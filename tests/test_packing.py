"""Packing: where rows are taken from, checked against what each rule promises."""

import numpy as np
import pytest

from gptjax.packing import at_documents, best_fit, straight


def documents(rng, number, longest):
    lengths = rng.integers(1, longest + 1, number)
    return np.cumsum(lengths) - lengths, int(lengths.sum())


def pieces(plan, row):
    span = range(plan.first[row], plan.first[row + 1])
    return [(int(plan.starts[i]), int(plan.lengths[i])) for i in span]


@pytest.mark.parametrize(("tokens", "rows"), [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2), (100, 12)])
def test_straight_windows_predict_every_token_once(tokens, rows):
    plan = straight(tokens, 8)
    assert len(plan) == rows
    predicted = [t for row in range(rows) for start, n in pieces(plan, row) for t in range(start + 1, start + n)]
    assert predicted == list(range(1, 8 * rows + 1))
    assert tokens - 1 - len(predicted) < 8 or rows == 0
    assert plan.padding == 0


@pytest.mark.parametrize("longest", [3, 40])
def test_windows_begin_at_the_next_document_that_the_last_did_not_reach(longest):
    starts, tokens = documents(np.random.default_rng(longest), 200, longest)
    plan = at_documents(starts, tokens, 8)
    begins = plan.starts.tolist()
    wanted, reached = [], 0
    for start in starts.tolist():
        if start >= reached and start + 9 <= tokens:
            wanted.append(start)
            reached = start + 8
    assert begins == wanted
    assert set(plan.lengths.tolist()) == {9}


@pytest.mark.parametrize(("number", "longest"), [(0, 1), (1, 1), (1, 100), (300, 5), (300, 12), (300, 60)])
def test_best_fit_keeps_every_document_whole_if_it_fits(number, longest):
    starts, tokens = documents(np.random.default_rng(number + longest), number, longest)
    plan = best_fit(starts, tokens, 8)
    found = sorted(piece for row in range(len(plan)) for piece in pieces(plan, row))
    wanted = []
    for start, end in zip(starts.tolist(), [*starts.tolist(), tokens][1:], strict=True):
        wanted.append((start, min(9, end - start)))
        begin = start + 8
        while begin + 1 < end:  # a rest of one token is the end of the piece before
            wanted.append((begin, min(9, end - begin)))
            begin += 8
    assert found == sorted(wanted)
    for row in range(len(plan)):
        assert 0 < sum(length for _, length in pieces(plan, row)) <= 9


def test_best_fit_is_tight():
    """Against the least number of rows that there could be."""
    starts, tokens = documents(np.random.default_rng(0), 3000, 200)
    plan = best_fit(starts, tokens, 255)
    assert len(plan) <= -(-tokens // 256) * 1.01 + 1
    assert plan.padding == pytest.approx(1 - tokens / (256 * len(plan)))
    assert plan.padding < 0.01


def test_best_fit_takes_the_tightest_row():
    lengths = np.array([6, 5, 4, 3])
    plan = best_fit(np.cumsum(lengths) - lengths, int(lengths.sum()), 8)
    assert [sorted(length for _, length in pieces(plan, row)) for row in range(len(plan))] == [[3, 6], [4, 5]]
