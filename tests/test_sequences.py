"""Rows by number: every packing against what it promises, token by token."""

from collections import Counter

import numpy as np
import pytest
from tiny import tokenizer, write_shards

from gptjax.core.errors import UserError
from gptjax.data.sequences import (
    BestFitSequences,
    BosAlignedSequences,
    BosBestFitSequences,
    ConcatSequences,
    open_sequences,
)
from gptjax.data.splits import open_split

END = 0
CONTEXT = 8


def texts(seed=0, number=60, longest=20):
    """Documents that begin with the end-of-text id; all their other tokens are theirs alone, and below 48."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, number)
    return [np.concatenate([[END], 1 + rng.integers(0, 47, length)]) for length in lengths]


@pytest.fixture(params=["written down", "found by end of text"])
def stream(request, tmp_path):
    documents = texts()
    tokens = np.concatenate(documents)
    starts = np.cumsum([0, *map(len, documents[:-1])])
    parts = np.split(tokens, [100, 101, 333])
    if request.param == "written down":
        beside = {("train", "documents"): starts}
        path = write_shards(tmp_path / "shards", {"train": parts}, own=tokenizer(), sidecars=beside)
    else:
        path = write_shards(tmp_path / "shards", {"train": parts})
    return open_split(path, "train")


def all_tokens(stream):
    return stream.read(0, len(stream)).astype(np.int32)


def documents_of(tokens):
    starts = np.flatnonzero(tokens == END)
    return [tokens[a:b] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def test_straight_rows_predict_every_token_once(stream):
    windows = ConcatSequences(stream, CONTEXT)
    tokens = all_tokens(stream)
    rows, targets, scored, _ = windows.read(np.arange(len(windows)))
    assert scored is None
    assert rows.shape == targets.shape == (len(windows), CONTEXT)
    np.testing.assert_array_equal(rows.reshape(-1), tokens[: rows.size])
    np.testing.assert_array_equal(targets.reshape(-1), tokens[1 : 1 + rows.size])
    assert len(tokens) - 1 - rows.size < CONTEXT
    assert windows.dropped == pytest.approx(1 - rows.size / (len(tokens) - 1))
    np.testing.assert_array_equal(windows.read(np.array([7, 0, 7])).tokens, rows[[7, 0, 7]])


def test_rows_at_documents_begin_with_one_and_the_share_that_is_dropped_is_told(stream):
    windows = BosAlignedSequences(stream, CONTEXT, end_of_text=END)
    rows, targets, scored, _ = windows.read(np.arange(len(windows)))
    assert scored is None
    assert (rows[:, 0] == END).all()
    np.testing.assert_array_equal(rows[:, 1:], targets[:, :-1])
    tokens = all_tokens(stream)
    starts = [i for i in range(len(tokens) - CONTEXT) if tokens[i] == END]
    wanted, reached = [], 0
    for start in starts:
        if start >= reached:
            wanted.append(tokens[start : start + CONTEXT + 1])
            reached = start + CONTEXT
    np.testing.assert_array_equal(np.column_stack([rows, targets[:, -1]]), wanted)
    assert windows.dropped == pytest.approx(1 - rows.size / (len(tokens) - 1))


def test_best_fit_predicts_every_token_and_every_end_once_and_nothing_else(stream):
    """What follows a token is what follows it in its document, and the end of text after the last."""
    windows = BestFitSequences(stream, CONTEXT, end_of_text=END)
    numbers = np.arange(len(windows))
    rows, targets, scored, (segments, positions) = windows.read(numbers, documents=True)
    predicted = [
        (*row[t - position[t] : t + 1], target[t])
        for row, target, mask, position in zip(rows.tolist(), targets.tolist(), scored, positions, strict=True)
        for t in np.flatnonzero(mask)
    ]
    wanted = []
    for document in documents_of(all_tokens(stream)):
        whole = [*document.tolist(), END]
        for t in range(len(document)):
            wanted.append(tuple(whole[t // CONTEXT * CONTEXT : t + 2]))  # what is beyond a row goes on in another
    assert sorted(predicted) == sorted(wanted)
    assert windows.dropped == 0
    assert windows.padding == pytest.approx(np.mean(segments == 0))
    assert windows.padding < 0.15
    np.testing.assert_array_equal(scored, segments > 0)


def test_cropped_rows_are_full_begin_with_a_document_and_predict_nothing_twice(stream):
    """What follows the last token of a row is what the stream holds; the share that nothing predicts is counted."""
    windows = BosBestFitSequences(stream, CONTEXT, end_of_text=END)
    rows, targets, scored, (segments, positions) = windows.read(np.arange(len(windows)), documents=True)
    assert (rows[:, 0] == END).all()
    assert (segments > 0).all()
    assert scored.all()
    np.testing.assert_array_equal(positions == 0, rows == END)
    predicted = Counter(
        (*row[t - position[t] : t + 1], target[t])
        for row, target, position in zip(rows.tolist(), targets.tolist(), positions, strict=True)
        for t in range(CONTEXT)
    )
    whole = [[*document.tolist(), END] for document in documents_of(all_tokens(stream))]
    wanted = Counter(tuple(document[:t]) for document in whole for t in range(2, len(document) + 1))
    assert predicted <= wanted
    dropped = (wanted - predicted).total()
    assert wanted.total() == len(stream)
    assert windows.dropped == pytest.approx(dropped / len(stream))
    assert 0.2 < windows.dropped < 0.5
    assert windows.padding == 0
    again = BosBestFitSequences(stream, CONTEXT, end_of_text=END).read(np.array([5, 0, 5]))
    np.testing.assert_array_equal(again.tokens, rows[[5, 0, 5]])


@pytest.mark.parametrize("kind", [ConcatSequences, BosAlignedSequences, BestFitSequences, BosBestFitSequences])
def test_segments_and_positions_are_those_of_a_loop(stream, kind):
    windows = kind(stream, CONTEXT, end_of_text=END)
    numbers = np.random.default_rng(0).permutation(len(windows))
    rows, _, _, (segments, positions) = windows.read(numbers, documents=True)
    assert windows.read(numbers).documents is None
    begins = (rows == END).tolist()
    filled = [CONTEXT] * len(rows)
    if kind is BestFitSequences:  # the rest of a long document begins in the middle of it
        for i, row in enumerate(numbers):
            lengths = windows._plan.lengths[windows._plan.first[row] : windows._plan.first[row + 1]]
            begins[i] = [t in np.cumsum([0, *lengths]) for t in range(CONTEXT)]
            filled[i] = int(lengths.sum())
    for row, size, segment, position in zip(begins, filled, segments, positions, strict=True):
        number, begin = 0, 0
        for t in range(CONTEXT):
            if t >= size:
                assert (segment[t], position[t]) == (0, 0)
                continue
            if t == 0 or row[t]:
                number, begin = number + 1, t
            assert (segment[t], position[t]) == (number, t - begin)


def test_without_an_end_of_text_no_document_is_predicted_from_another(tmp_path):
    """Characters have no such token: the first of each document has nothing to be predicted from."""
    documents = [np.arange(1, 4), np.arange(11, 14), np.arange(21, 23)]
    starts = {("train", "documents"): np.array([0, 3, 6])}
    path = write_shards(tmp_path / "shards", {"train": [np.concatenate(documents)]}, own=tokenizer(), sidecars=starts)
    windows = open_sequences(open_split(path, "train"), CONTEXT, "best_fit", end_of_text=None)
    _, targets, scored, _ = windows.read(np.array([0]))
    assert len(windows) == 1
    assert sorted(targets[scored].tolist()) == [2, 3, 12, 13, 22]
    windows = open_sequences(open_split(path, "train"), 5, "bos_best_fit", end_of_text=None)
    rows, targets, scored, _ = windows.read(np.array([0]))
    assert len(windows) == 1
    assert (rows.tolist(), targets[scored].tolist()) == ([[1, 2, 3, 21, 22]], [2, 3, 22])


@pytest.mark.parametrize("packing", ["concat", "documents", "best_fit", "bos_best_fit"])
def test_marks_of_what_is_scored_are_kept(tmp_path, packing):
    documents = texts(number=20, longest=8)
    tokens = np.concatenate(documents)
    marks = (tokens % 3 == 1).astype(np.uint8)
    starts = np.cumsum([0, *map(len, documents[:-1])])
    beside = {("train", "documents"): starts, ("train", "scored"): marks}
    path = write_shards(tmp_path / "shards", {"train": [tokens]}, own=tokenizer(), sidecars=beside)
    windows = open_sequences(open_split(path, "train"), CONTEXT, packing, end_of_text=END)
    _, targets, scored, documents = windows.read(np.arange(len(windows)), documents=True)
    wanted = targets % 3 == 1
    if packing == "best_fit":
        wanted &= documents.segments > 0
    np.testing.assert_array_equal(scored, wanted)


def test_what_cannot_be_packed(tmp_path):
    path = write_shards(tmp_path / "shards", {"train": [np.arange(1, 46)]})
    stream = open_split(path, "train")
    with pytest.raises(UserError, match=r"has 45 tokens, less than one window of model\.context \+ 1 = 46"):
        open_sequences(stream, 45, "concat", end_of_text=None)
    assert len(open_sequences(stream, 44, "concat", end_of_text=None)) == 1
    with pytest.raises(UserError, match=r"less than one window of .* Use more text or a smaller --model\.context"):
        open_sequences(stream, 46, "bos_best_fit", end_of_text=END)
    assert len(open_sequences(stream, 45, "bos_best_fit", end_of_text=END)) == 1
    for packing in ("best_fit", "bos_best_fit"):
        with pytest.raises(UserError, match="nobody wrote down where its documents begin"):
            open_sequences(stream, 8, packing, end_of_text=None)
