"""Documents become tokens in their order, on any number of processes, with no more in memory than must be."""

import os
import random
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from texts import make_small

from data_pipelines.encode import batching
from data_pipelines.encode import encoder as encoding
from data_pipelines.encode.batching import START, Position, batches
from data_pipelines.encode.encoder import encode_all
from data_pipelines.encode.split_rules import Only
from data_pipelines.encode.splits import Split
from data_pipelines.encode.worker_pool import Workers
from data_pipelines.readers.documents import EMPTY, INVALID, Notes, ReadContext
from data_pipelines.train_tokenizer import train_bpe
from gptjax.errors import UserError
from gptjax.tokenizer import Bytes, load_tokenizer

WORDS = ["one", "two", "three", "<|endoftext|>", "é☕", "\r\n", "語"]


def parts_of(n, seed=0):
    rng = random.Random(seed)
    texts = ["a " + " ".join(rng.choices(WORDS, k=rng.randrange(1, 200))) for _ in range(n)]
    return [(Only("val") if rng.random() < 0.2 else Only("train"), text.encode()) for text in texts]


def steps_of(parts, tokenizer, *, processes=1, start=START, context=None):
    context = context or ReadContext()
    some = batches(parts, tokenizer, context, start=start)
    return encode_all(some, tokenizer, context, processes=processes, documents=start.documents)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([" ".join(WORDS) * 20], vocab_size=280)


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch, batch=500, piece=300)


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
    found = joined(steps_of(parts, tokenizer, processes=processes))
    for split, (tokens, starts, size) in found.items():
        texts = [document.decode() for rule, document in parts if rule == Only(split)]
        documents = [[*before, *tokenizer.encode(text)] for text in texts]
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == [token for document in documents for token in document]
        assert starts == np.cumsum([0, *map(len, documents[:-1])]).tolist()
        assert size == sum(len(text.encode()) for text in texts)
    assert found.keys() == {"train", "val"}


def test_processes_do_not_even_change_the_steps(bpe, small):
    one, two = (list(steps_of(parts_of(60), bpe, processes=processes)) for processes in (1, 2))
    assert [step.after for step in one] == [step.after for step in two]
    for first, second in zip(one, two, strict=True):
        for a, b in zip(first.results, second.results, strict=True):
            assert (a.split, a.bytes) == (b.split, b.bytes)
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_array_equal(a.starts, b.starts)


def test_going_on_after_any_step(bpe, small):
    parts = parts_of(12)
    every = list(steps_of(parts, bpe))
    whole = joined(every)
    for i, place in enumerate([START, *(step.after for step in every)]):
        rest = joined([*every[:i], *steps_of(parts, bpe, start=place)])
        for split, (tokens, starts, size) in whole.items():
            np.testing.assert_array_equal(rest[split][0], tokens)
            assert rest[split][1:] == (starts, size)


def test_nothing_gives_nothing(bpe):
    assert list(steps_of([], bpe, processes=2)) == []


class Deadly:
    """Ends the process that reads it, as the system does when memory runs out."""

    size = 500

    def documents(self, context):
        os._exit(9)


def test_a_worker_that_dies_is_told(small):
    parts = [*parts_of(60), (Only("train"), Deadly()), *parts_of(60)]
    with pytest.raises(UserError, match="a worker process died: for want of memory"):
        list(steps_of(parts, Bytes(), processes=2))


@pytest.mark.parametrize(("size", "most"), [(500, 4 * 2), (2**23, 4), (2**26, 1)])
def test_the_pool_reads_no_further_ahead_than_it_must(monkeypatch, size, most):
    """Four batches a worker are under way, or fewer large ones, however long the source is."""
    taken, finished = [], []

    class Counted(Workers):
        def submit(self, argument):
            assert len(taken) - len(finished) <= most + 1
            result = super().submit(argument)
            return lambda: finished.append(1) or result()

    def parts():
        for i in range(100):
            taken.append(i)
            yield Only("train"), Numbered(i, count=1, size=size)

    make_small(monkeypatch, batch=500, piece=500)
    monkeypatch.setattr(encoding, "Workers", Counted)
    assert len(list(steps_of(parts(), load_tokenizer("bytes"), processes=2))) == 100


@pytest.mark.parametrize("split", ["documents:0.1", "none"])
def test_only_the_document_that_is_read_is_in_memory(split):
    """Beside it there is room for a few pieces, whatever its size, and not for the one before it."""
    size = 12_000_000

    class Large:
        def chunks(self, context):
            for word in (b"alpha ", b"beta ", b"gamma "):
                yield word * (size // len(word))

    context = ReadContext()
    parts = Split.parse(split).parts(Large(), context)
    tracemalloc.start()
    tokens = sum(
        len(result.tokens)
        for step in steps_of(parts, load_tokenizer("bytes"), context=context)
        for result in step.results
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tokens == 3 * size
    assert peak < size + 10 * batching.BATCH_BYTES


@dataclass(frozen=True)
class Numbered:
    """A block of `count` documents, of which number 13 is broken; `size` is what it claims."""

    first: int
    count: int = 3
    size: int = 500
    length: int = 10

    def documents(self, context):
        for number in range(self.first, self.first + self.count):
            if number == 13:
                context.skip_record(f"number {number} in process {os.getpid()}")
            else:
                yield f"{number}:".encode() + b"x" * self.length


def numbered(numbers, **fields):
    return [(Only("train"), Numbered(number, **fields)) for number in numbers]


def texts_in(steps):
    tokens, starts, _ = joined(steps)["train"]
    return [bytes(part.tolist()).split(b":")[0].decode() for part in np.split(tokens, starts[1:])]


def notes_of(steps):
    whole = Notes()
    for step in steps:
        whole.add(step.notes)
    return whole


@pytest.mark.parametrize("processes", [1, 2])
def test_blocks_are_read_where_they_are_encoded(small, processes):
    steps = list(steps_of(numbered(range(0, 30, 3)), Bytes(), processes=processes))
    assert texts_in(steps) == [str(i) for i in range(30) if i != 13]
    assert [step.after for step in steps] == [Position(i, 0, 3 * i - (i > 4)) for i in range(1, 11)]
    assert notes_of(steps) == {INVALID: 1}
    assert (f"process {os.getpid()}" in notes_of(steps).first[INVALID]) == (processes == 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_done_is_not_read_again(small, processes):
    class Untouched:
        size = 500

    parts = [(Only("train"), Untouched())] * 4 + numbered(range(12, 30, 3))
    steps = list(steps_of(parts, Bytes(), processes=processes, start=Position(4, 0, 12)))
    assert texts_in(steps) == [str(i) for i in range(12, 30) if i != 13]
    assert steps[-1].after == Position(10, 0, 29)


@pytest.mark.parametrize(("processes", "broken"), [(1, 13), (1, 10), (1, 14), (1, 11), (2, 13)])
def test_a_block_that_is_larger_than_it_says_comes_in_parts(small, monkeypatch, processes, broken):
    """Wherever something is wrong with it, that is told once; and nobody goes on from its middle."""
    monkeypatch.setattr(encoding, "MOST_TEXT", 2000)
    first = 13 - broken + 10  # 13 is broken, the block of five begins up to three before it
    parts = [*numbered(range(100, 112, 3)), *numbered([first], count=5, length=700), *numbered(range(200, 209, 3))]
    steps = list(steps_of(parts, Bytes(), processes=processes))
    block = [i for i in range(first, first + 5) if i != 13]
    assert texts_in(steps) == [str(i) for i in [*range(100, 112), *block, *range(200, 209)]]
    places = [step.after for step in steps]
    assert [place.chunks for place in places if place is not None] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert places.count(None) == 1
    assert places[-1].documents == 12 + len(block) + 9
    assert notes_of(steps) == ({INVALID: 1} if len(block) == 4 else {})


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("size", [500, 100])
def test_the_first_trouble_is_told(small, processes, size):
    """Though the next one is met earlier, by whoever looks for blocks, and several blocks are one batch."""

    def parts(context):
        yield from numbered(range(0, 18, 3), size=size)
        context.skip_record("what comes later")
        yield from numbered([18], size=size)

    context = ReadContext(strict=True)
    with pytest.raises(UserError, match="number 13 in process"):
        list(steps_of(parts(context), Bytes(), processes=processes, context=context))
    context = ReadContext()
    steps = list(steps_of(parts(context), Bytes(), processes=processes, context=context))
    assert notes_of(steps) == {INVALID: 2}
    assert "number 13 in process" in notes_of(steps).first[INVALID]
    context = ReadContext(strict=True)
    with pytest.raises(UserError, match="what comes later"):
        list(steps_of(later(context), Bytes(), processes=processes, context=context))


def later(context):
    yield from numbered(range(30, 48, 3))
    context.skip_record("what comes later")


def test_blank_texts_take_no_room(small):
    """However large they are, and however many."""
    blank, parts = b" " * 20_000, []
    for _ in range(50):
        parts += [(Only("train"), blank), (Only("train"), b""), (Only("train"), b"text")]
    found = list(batches(parts, Bytes(), ReadContext()))
    assert len(found) > 10
    assert max(len(one.what) for batch in found for one in batch.found) == 4
    steps = list(steps_of(parts, Bytes()))
    assert notes_of(steps) == {EMPTY: 100}
    assert steps[-1].after == Position(150, 0, 150)
    assert len(joined(steps)["train"][1]) == 50


def test_notes_belong_to_the_chunks_with_which_they_were_made(small):
    """So whoever goes on has those of what is done already, and makes those of the rest."""

    def parts(context):
        for i in range(8):
            context.notes[f"before {i}"] += 1
            yield Only("train"), b"x" * (1200 if i in (2, 5) else 200)
        context.notes["behind"] += 1

    context = ReadContext()
    every = list(steps_of(parts(context), Bytes(), context=context))
    whole = notes_of(every)
    assert whole == {f"before {i}": 1 for i in range(8)}
    assert context.notes == {"behind": 1}
    for i, step in enumerate(every):
        context = ReadContext()
        rest = steps_of(parts(context), Bytes(), context=context, start=step.after)
        assert notes_of([*every[: i + 1], *rest]) == whole
        assert context.notes == {"behind": 1}
