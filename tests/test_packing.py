"""Packing: the rows of each rule against a plain search, or against what the rule promises."""

from itertools import pairwise

import numpy as np
import pytest

from gptjax.data.packing import PackingPlan, pack_best_fit, pack_bos_aligned, pack_bos_best_fit

Document = tuple[int, int]
"""(start, length)"""


def draw_documents(seed: int, number: int, longest: int) -> tuple[np.ndarray, int]:
    """Starts of documents of random lengths, and the tokens in all."""
    return place_documents(np.random.default_rng(seed).integers(1, longest + 1, number))


def place_documents(lengths: np.ndarray | list[int]) -> tuple[np.ndarray, int]:
    lengths = np.asarray(lengths)
    return np.cumsum(lengths) - lengths, int(lengths.sum())


def list_rows(plan: PackingPlan) -> list[list[Document]]:
    """(start, length) of the pieces of each row."""
    pieces = list(zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True))
    return [pieces[begin:end] for begin, end in pairwise(plan.row_offsets)]


@pytest.mark.parametrize("longest", [3, 40])
def test_bos_aligned_rows_begin_at_the_next_unread_document(longest: int) -> None:
    starts, tokens = draw_documents(longest, 200, longest)
    wanted, reached = [], 0
    for start in starts.tolist():
        if start >= reached and start + 9 <= tokens:
            wanted.append(start)
            reached = start + 8
    assert pack_bos_aligned(starts, tokens, 8).tolist() == wanted


def test_bos_aligned_keeps_a_last_document_that_just_fits() -> None:
    """A row of 8 inputs and the target of the last: 9 tokens."""
    assert pack_bos_aligned(*place_documents([8, 9]), 8).tolist() == [0, 8]
    assert pack_bos_aligned(*place_documents([8, 8]), 8).tolist() == [0]


@pytest.mark.parametrize(("number", "longest"), [(0, 1), (1, 1), (1, 100), (300, 5), (300, 12), (300, 60)])
def test_best_fit_keeps_documents_whole_if_they_fit(number: int, longest: int) -> None:
    starts, tokens = draw_documents(number + longest, number, longest)
    plan = pack_best_fit(starts, tokens, 8)
    wanted, last = [], set()
    for start, end in zip(starts.tolist(), [*starts.tolist(), tokens][1:], strict=True):
        wanted += [(begin, min(8, end - begin)) for begin in range(start, end, 8)]
        last.add(wanted[-1])
    rows = list_rows(plan)
    assert sorted(piece for row in rows for piece in row) == sorted(wanted)
    assert all(0 < sum(length for _, length in row) <= 8 for row in rows)
    assert plan.ends_document.tolist() == [piece in last for row in rows for piece in row]


def test_best_fit_piece_that_just_fills_a_row_ends_its_document() -> None:
    """8 and 16 are multiples of a row: the last piece of each fills its row and is the end all the same."""
    plan = pack_best_fit(*place_documents([8, 16, 9]), 8)
    ends = dict(zip(plan.starts.tolist(), plan.ends_document.tolist(), strict=True))
    assert ends == {0: True, 8: False, 16: True, 24: False, 32: True}


def test_best_fit_needs_hardly_more_rows_than_any_packing() -> None:
    starts, tokens = draw_documents(0, 3000, 200)
    assert len(pack_best_fit(starts, tokens, 256)) <= -(-tokens // 256) * 1.01 + 1


def test_best_fit_takes_the_tightest_row() -> None:
    rows = list_rows(pack_best_fit(*place_documents([6, 5, 4, 3]), 9))
    assert [sorted(length for _, length in row) for row in rows] == [[3, 6], [4, 5]]


def fill_one_by_one(starts: np.ndarray, tokens: int, context_length: int) -> list[list[Document]]:
    """The rows of `bos_best_fit`, where every choice looks at all documents that are left."""
    left = dict(zip(starts.tolist(), np.diff(starts, append=tokens).tolist(), strict=True))
    rows, row, space = [], [], context_length
    while left:
        fitting = [start for start in left if left[start] <= space]
        start = max(fitting, key=left.__getitem__) if fitting else min(left, key=left.__getitem__)
        row.append((start, min(left.pop(start), space)))
        space -= row[-1][1]
        if space == 0:
            rows.append(row)
            row, space = [], context_length
    return rows


@pytest.mark.parametrize(
    ("number", "longest"), [(0, 1), (1, 7), (1, 8), (1, 100), (300, 1), (300, 5), (300, 12), (300, 60)]
)
def test_bos_best_fit_rows_are_those_of_a_full_search(number: int, longest: int) -> None:
    starts, tokens = draw_documents(number + longest, number, longest)
    plan = pack_bos_best_fit(starts, tokens, 8)
    assert list_rows(plan) == fill_one_by_one(starts, tokens, 8)
    assert (np.add.reduceat(plan.lengths, plan.row_offsets[:-1]) == 8).all()
    assert len(set(plan.starts.tolist())) == len(plan.starts)
    length_of = dict(zip(starts.tolist(), np.diff(starts, append=tokens).tolist(), strict=True))
    whole = plan.lengths == [length_of[start] for start in plan.starts.tolist()]
    np.testing.assert_array_equal(plan.ends_document, whole)


def test_bos_best_fit_packs_each_group_by_itself() -> None:
    """What is left of a group and fills no row is dropped; an empty document is none."""
    starts, tokens = draw_documents(0, 120, 12)
    plan = pack_bos_best_fit(np.sort(np.append(starts, starts[60])), tokens, 8, group_size=50)
    wanted = []
    for begin in range(0, 120, 50):
        wanted += fill_one_by_one(starts[begin : begin + 50], int([*starts, tokens][min(begin + 50, 120)]), 8)
    assert list_rows(plan) == wanted


def test_best_fit_packs_each_group_by_itself() -> None:
    starts, tokens = place_documents([5, 5, 3, 3])
    plans = [pack_best_fit(starts, tokens, 8, group_size=size) for size in (4, 2)]
    assert [len(plan) for plan in plans] == [2, 3]
    assert [sorted(plan.starts.tolist()) for plan in plans] == [starts.tolist()] * 2


def test_bos_best_fit_crops_the_shortest_and_takes_long_documents_last() -> None:
    """12 and 20 are longer than a row; 3 is the shortest when 2 positions are left of the first row."""
    plan = pack_bos_best_fit(*place_documents([20, 7, 4, 12, 3]), 9)
    assert [[length for _, length in row] for row in list_rows(plan)] == [[7, 2], [4, 5], [9]]
    assert plan.ends_document.tolist() == [True, False, True, False, False]


def test_bos_best_fit_drops_hardly_more_than_what_exceeds_a_row() -> None:
    starts, tokens = draw_documents(0, 3000, 400)
    most = np.minimum(np.diff(starts, append=tokens), 256).sum()
    assert len(pack_bos_best_fit(starts, tokens, 256)) * 256 >= 0.99 * most
