"""Documents become tokens in their order, on any number of processes, with no more in memory than must be."""

import os
import random
import tracemalloc

import numpy as np
import pytest

from data_pipelines import encoding, pieces
from data_pipelines.encoding import encode_all
from data_pipelines.pieces import START
from data_pipelines.readers.documents import Reading
from data_pipelines.splits import Split
from data_pipelines.train_tokenizer import train_bpe
from gptjax.errors import UserError
from gptjax.tokenizer import Bytes, load_tokenizer

WORDS = ["one", "two", "three", "<|endoftext|>", "é☕", "\r\n", "語"]


def parts_of(n, seed=0):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 200))) for _ in range(n)]
    return [("val" if rng.random() < 0.2 else "train", text.encode()) for text in texts]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([" ".join(WORDS) * 20], vocab_size=280)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 300)
    monkeypatch.setattr(encoding, "BATCH_BYTES", 500)
    monkeypatch.setattr(encoding, "BATCHES_WORTH_A_POOL", 2)


def joined(steps):
    """Tokens, starts and bytes of each split, whole."""
    found = {}
    for result in (result for step in steps for result in step.results):
        tokens, starts, size = found.get(result.split, (np.zeros(0, np.uint16), [], 0))
        starts = starts + (result.starts + len(tokens)).tolist()
        found[result.split] = np.concatenate([tokens, result.tokens]), starts, size + result.bytes
    return found


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_every_split_is_its_documents_one_after_another(bpe, small, kind, processes):
    tokenizer, parts = {"bpe": bpe, "bytes": Bytes()}[kind], parts_of(60)
    before = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    found = joined(encode_all(parts, tokenizer, processes=processes))
    for split, (tokens, starts, size) in found.items():
        texts = [document.decode() for name, document in parts if name == split]
        documents = [[*before, *tokenizer.encode(text)] for text in texts]
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == [token for document in documents for token in document]
        assert starts == np.cumsum([0, *map(len, documents[:-1])]).tolist()
        assert size == sum(len(text.encode()) for text in texts)
    assert found.keys() == {"train", "val"}


def test_processes_do_not_even_change_the_steps(bpe, small):
    one, two = (list(encode_all(parts_of(60), bpe, processes=processes)) for processes in (1, 2))
    assert [step.after for step in one] == [step.after for step in two]
    for first, second in zip(one, two, strict=True):
        for a, b in zip(first.results, second.results, strict=True):
            assert (a.split, a.bytes) == (b.split, b.bytes)
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_array_equal(a.starts, b.starts)


def test_going_on_after_any_step(bpe, small):
    parts = parts_of(12)
    every = list(encode_all(parts, bpe, processes=1))
    whole = joined(every)
    for i, place in enumerate([START, *(step.after for step in every)]):
        rest = joined([*every[:i], *encode_all(parts, bpe, processes=1, start=place)])
        for split, (tokens, starts, size) in whole.items():
            np.testing.assert_array_equal(rest[split][0], tokens)
            assert rest[split][1:] == (starts, size)


def test_nothing_gives_nothing(bpe):
    assert list(encode_all([], bpe, processes=2)) == []


class Deadly(Bytes):
    """Ends the process that uses it, as the system does when memory runs out."""

    def encode(self, text):
        os._exit(9)

    def __reduce__(self):
        return Deadly, ()


def test_a_worker_that_dies_is_told(small):
    with pytest.raises(UserError, match="a worker process died: for want of memory"):
        list(encode_all(parts_of(60), Deadly(), processes=2))


def test_the_pool_reads_no_further_ahead_than_it_must(monkeypatch):
    """Four batches a worker are under way, however long the source is."""
    taken, finished = [], []

    class Now:
        def __init__(self, result):
            self.result = lambda: finished.append(1) or result

    class Pool:
        def __init__(self, *args, **kwargs): ...

        def submit(self, function, batch):
            assert len(taken) - len(finished) <= 4 * 2 + 1
            return Now([encoding.Encoded("train", np.zeros(1, np.uint16), 1, 1)])

        def shutdown(self, *, cancel_futures): ...

    def parts():
        for i in range(100):
            taken.append(i)
            yield "train", b"x" * 500

    monkeypatch.setattr(encoding, "BATCH_BYTES", 500)
    monkeypatch.setattr(encoding, "ProcessPoolExecutor", Pool)
    assert len(list(encoding.encode_all(parts(), load_tokenizer("bytes"), processes=2))) == 100


@pytest.mark.parametrize("split", ["documents:0.1", "none"])
def test_only_the_document_that_is_read_is_in_memory(split):
    """Beside it there is room for a few pieces, whatever its size, and not for the one before it."""
    size = 12_000_000

    class Large:
        def documents(self, reading):
            for word in (b"alpha ", b"beta ", b"gamma "):
                yield word * (size // len(word))

    parts = Split.parse(split).parts(Large(), Reading())
    tracemalloc.start()
    tokens = sum(
        len(result.tokens)
        for step in encoding.encode_all(parts, load_tokenizer("bytes"), processes=1)
        for result in step.results
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tokens == 3 * size
    assert peak < size + 10 * encoding.BATCH_BYTES
