"""Sequences by number: every packing against what it promises, token by token."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny import tokenizer, write_shards

from gptjax.core.constants import IGNORE_INDEX
from gptjax.core.errors import UserError
from gptjax.data.packing import Packing
from gptjax.data.sequences import (
    BestFitSequences,
    BosAlignedSequences,
    BosBestFitSequences,
    ConcatSequences,
    Sequences,
    open_sequences,
)
from gptjax.data.splits import open_split
from gptjax.data.token_stream import TokenStream

END = 0
CONTEXT = 8
PACKINGS: tuple[Packing, ...] = ("concat", "bos_aligned", "best_fit", "bos_best_fit")


def make_documents(number: int = 60, longest: int = 20) -> list[np.ndarray]:
    """Documents that begin with the end-of-text id; their other tokens are random, from 1 to 47."""
    rng = np.random.default_rng(0)
    return [np.concatenate([[END], 1 + rng.integers(0, 47, length)]) for length in rng.integers(1, longest, number)]


@pytest.fixture(params=["index of documents", "end of text"])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> TokenStream:
    """60 documents, whose starts are in a file or known by the end-of-text id."""
    documents = make_documents()
    parts = np.split(np.concatenate(documents), [100, 101, 333])
    if request.param == "end of text":
        path = write_shards(tmp_path / "shards", {"train": parts})
    else:
        starts = {("train", "documents"): np.cumsum([0, *map(len, documents[:-1])])}
        path = write_shards(tmp_path / "shards", {"train": parts}, own=tokenizer(), sidecars=starts)
    return open_split(path, "train")


def read_all(stream: TokenStream) -> np.ndarray:
    return stream.read(0, len(stream)).astype(np.int32)


def split_documents(tokens: np.ndarray) -> list[list[int]]:
    """Each document with the end-of-text id that follows it."""
    return [[*document.tolist(), END] for document in np.split(tokens, np.flatnonzero(tokens == END))[1:]]


def list_predictions(rows: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    """For each scored target: the tokens of its piece of a document up to it, and the target."""
    names = ("tokens", "targets", "positions")
    return [
        (*tokens[t - positions[t] : t + 1], targets[t])
        for tokens, targets, positions in zip(*(rows[name].tolist() for name in names), strict=True)
        for t in range(CONTEXT)
        if targets[t] != IGNORE_INDEX
    ]


def test_concat_predicts_every_token_once(stream: TokenStream) -> None:
    sequences, tokens = ConcatSequences(stream, CONTEXT), read_all(stream)
    rows = sequences.read(np.arange(len(sequences)))
    assert rows.keys() == {"tokens", "targets"}
    size = len(sequences) * CONTEXT
    assert rows["tokens"].shape == rows["targets"].shape == (len(sequences), CONTEXT)
    np.testing.assert_array_equal(rows["tokens"].reshape(-1), tokens[:size])
    np.testing.assert_array_equal(rows["targets"].reshape(-1), tokens[1 : 1 + size])
    assert len(tokens) - 1 - size < CONTEXT
    assert sequences.dropped == pytest.approx(1 - size / (len(tokens) - 1))


def test_bos_aligned_rows_begin_with_documents(stream: TokenStream) -> None:
    sequences, tokens = BosAlignedSequences(stream, CONTEXT, end_of_text=END), read_all(stream)
    rows = sequences.read(np.arange(len(sequences)))
    assert (rows["tokens"][:, 0] == END).all()
    wanted, reached = [], 0
    for start in (i for i in range(len(tokens) - CONTEXT) if tokens[i] == END):
        if start >= reached:
            wanted.append(tokens[start : start + CONTEXT + 1])
            reached = start + CONTEXT
    np.testing.assert_array_equal(np.column_stack([rows["tokens"], rows["targets"][:, -1]]), wanted)
    np.testing.assert_array_equal(rows["tokens"][:, 1:], rows["targets"][:, :-1])
    assert sequences.dropped == pytest.approx(1 - rows["tokens"].size / (len(tokens) - 1))


def test_best_fit_predicts_every_token_and_every_end_once(stream: TokenStream) -> None:
    """A token is followed by the next of its document, the last by the end of text."""
    sequences = BestFitSequences(stream, CONTEXT, end_of_text=END)
    rows = sequences.read(np.arange(len(sequences)), with_documents=True)
    wanted = [
        tuple(document[t // CONTEXT * CONTEXT : t + 2])  # what exceeds a row continues in another
        for document in split_documents(read_all(stream))
        for t in range(len(document) - 1)
    ]
    assert sorted(list_predictions(rows)) == sorted(wanted)
    assert sequences.dropped == 0
    assert sequences.padding == pytest.approx(np.mean(rows["segments"] == 0))
    assert sequences.padding < 0.15
    np.testing.assert_array_equal(rows["targets"] != IGNORE_INDEX, rows["segments"] > 0)


def test_bos_best_fit_rows_are_full_and_predict_nothing_twice(stream: TokenStream) -> None:
    sequences = BosBestFitSequences(stream, CONTEXT, end_of_text=END)
    rows = sequences.read(np.arange(len(sequences)), with_documents=True)
    assert (rows["tokens"][:, 0] == END).all()
    assert (rows["segments"] > 0).all()
    assert (rows["targets"] != IGNORE_INDEX).all()
    np.testing.assert_array_equal(rows["positions"] == 0, rows["tokens"] == END)
    documents = split_documents(read_all(stream))
    wanted = Counter(tuple(document[:t]) for document in documents for t in range(2, len(document) + 1))
    predicted = Counter(list_predictions(rows))
    assert predicted <= wanted
    assert wanted.total() == len(stream)
    assert sequences.dropped == pytest.approx((wanted - predicted).total() / len(stream))
    assert 0.2 < sequences.dropped < 0.5
    assert sequences.padding == 0


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_are_read_in_any_order_with_repeats(stream: TokenStream, packing: Packing) -> None:
    sequences = open_sequences(stream, CONTEXT, packing, end_of_text=END)
    whole = sequences.read(np.arange(len(sequences)), with_documents=True)
    numbers = np.random.default_rng(0).integers(0, len(sequences), 2 * len(sequences))
    again = sequences.read(numbers, with_documents=True)
    assert again.keys() == {"tokens", "targets", "segments", "positions"}
    for name, array in again.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, whole[name][numbers])


def find_begins(sequences: Sequences, tokens: np.ndarray) -> list[list[int]]:
    """Where the pieces of each row begin, and where the last one ends."""
    if isinstance(sequences, BestFitSequences):  # the rest of a long document begins in the middle of it
        plan = sequences.plan
        pieces = np.split(plan.lengths, plan.row_offsets[1:-1])
        return [np.cumsum([0, *lengths]).tolist() for lengths in pieces]
    return [[0, *(np.flatnonzero(row[1:] == END) + 1).tolist(), CONTEXT] for row in tokens]


@pytest.mark.parametrize("packing", PACKINGS)
def test_segments_and_positions_match_a_loop(stream: TokenStream, packing: Packing) -> None:
    sequences = open_sequences(stream, CONTEXT, packing, end_of_text=END)
    rows = sequences.read(np.arange(len(sequences)), with_documents=True)
    for row, begins in enumerate(find_begins(sequences, rows["tokens"])):
        wanted = np.zeros((2, CONTEXT), np.int32)
        for number, (begin, end) in enumerate(pairwise(begins), start=1):
            wanted[:, begin:end] = np.full(end - begin, number), np.arange(end - begin)
        np.testing.assert_array_equal([rows["segments"][row], rows["positions"][row]], wanted)


def test_document_without_end_of_text_is_not_predicted_from_another(tmp_path: Path) -> None:
    """Characters have no such id: the first token of a document has nothing to be predicted from."""
    tokens, starts = np.r_[1:4, 11:14, 21:23], {("train", "documents"): np.array([0, 3, 6])}
    path = write_shards(tmp_path / "shards", {"train": [tokens]}, own=tokenizer(), sidecars=starts)
    cases: list[tuple[Packing, int, list[int]]] = [
        ("best_fit", CONTEXT, [2, 3, 12, 13, 22]),
        ("bos_best_fit", 5, [2, 3, 22]),
    ]
    for packing, length, wanted in cases:
        sequences = open_sequences(open_split(path, "train"), length, packing, end_of_text=None)
        targets = sequences.read(np.array([0]))["targets"]
        assert len(sequences) == 1
        assert sorted(targets[targets != IGNORE_INDEX].tolist()) == wanted


@pytest.mark.parametrize("packing", PACKINGS)
def test_loss_mask_is_kept(tmp_path: Path, packing: Packing) -> None:
    documents = make_documents(number=20, longest=8)
    tokens = np.concatenate(documents)
    sidecars = {
        ("train", "documents"): np.cumsum([0, *map(len, documents[:-1])]),
        ("train", "scored"): (tokens % 3 == 1).astype(np.uint8),
    }
    with_mask = write_shards(tmp_path / "masked", {"train": [tokens]}, own=tokenizer(), sidecars=sidecars)
    del sidecars["train", "scored"]
    without = write_shards(tmp_path / "whole", {"train": [tokens]}, own=tokenizer(), sidecars=sidecars)
    masked, whole = (
        open_sequences(open_split(path, "train"), CONTEXT, packing, end_of_text=END) for path in (with_mask, without)
    )
    targets = whole.read(np.arange(len(whole)))["targets"]
    wanted = np.where(targets % 3 == 1, targets, IGNORE_INDEX)
    np.testing.assert_array_equal(masked.read(np.arange(len(masked)))["targets"], wanted)


def test_too_few_tokens_for_a_row_are_an_error(tmp_path: Path) -> None:
    stream = open_split(write_shards(tmp_path / "shards", {"train": [np.arange(1, 46)]}), "train")
    message = r"has 45 tokens, less than one sequence of model\.context_length \+ 1 = 46"
    with pytest.raises(UserError, match=message):
        open_sequences(stream, 45, "concat", end_of_text=None)
    assert len(open_sequences(stream, 44, "concat", end_of_text=None)) == 1
    sidecars = {
        ("train", "documents"): np.array([0, 20]),
        ("train", "scored"): (np.arange(45) % 20 == 19).astype(np.uint8),
    }
    tokens = {"train": [np.arange(45)]}
    chats = open_split(write_shards(tmp_path / "chats", tokens, own=tokenizer(), sidecars=sidecars), "train")
    with pytest.raises(UserError, match=r"nothing is scored in the first 8 tokens of any document\. Use a longer"):
        open_sequences(chats, 8, "best_fit_truncate", end_of_text=None)
    with pytest.raises(UserError, match=r"Use more text or a smaller --model\.context-length\."):
        open_sequences(stream, 46, "bos_best_fit", end_of_text=END)
    assert len(open_sequences(stream, 45, "bos_best_fit", end_of_text=END)) == 1


@pytest.mark.parametrize("packing", PACKINGS[1:])
def test_unknown_documents_are_an_error(tmp_path: Path, packing: Packing) -> None:
    stream = open_split(write_shards(tmp_path / "shards", {"train": [np.arange(1, 46)]}), "train")
    with pytest.raises(UserError, match="unknown where its documents begin"):
        open_sequences(stream, 8, packing, end_of_text=None)
