"""Documents become tokens in their order, on any number of processes, with their notes."""

import os
import random
from functools import partial

import numpy as np
import pytest

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.encode.encoder import Encoder, Limits, encode_batches, iter_batches
from data_pipelines.encode.splits import AllTo, HashFraction
from data_pipelines.readers.documents import EMPTY, INVALID, DocumentBlock, Notes, ReadContext
from gptjax.core.errors import UserError
from gptjax.tokenization.tokenizer import Bytes

WORDS = ["one", "two", "three", "<|endoftext|>", "é☕", "\r\n", "語"]
SMALL = Limits(batch_bytes=1000, piece_bytes=300, pool_bytes=2000)
TRAIN = AllTo("train")


def make_chunks(n, seed=0):
    rng = random.Random(seed)
    texts = ["a " + " ".join(rng.choices(WORDS, k=rng.randrange(1, 200))) for _ in range(n)]
    return [(AllTo("val") if rng.random() < 0.2 else TRAIN, text.encode()) for text in texts]


def encode(chunks, tokenizer=None, *, processes=1, start=0, context=None, max_tokens=None):
    tokenizer, context = tokenizer or Bytes(), context or ReadContext()
    encoder = Encoder(tokenizer, context.fresh_copy(), max_tokens)
    batches = iter_batches(chunks, context, tokenizer=tokenizer, start=start, limits=SMALL)
    return list(encode_batches(batches, encoder, processes=processes, limits=SMALL))


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([" ".join(WORDS) * 20], vocab_size=280)


def join(batches):
    """Tokens, starts and bytes of each split."""
    found, documents = {}, 0
    for batch in batches:
        for split, tokens, starts, size in batch.iter_splits(documents):
            before, before_starts, before_size = found.get(split, (np.zeros(0, np.uint16), [], 0))
            starts = before_starts + (starts + len(before)).tolist()
            found[split] = np.concatenate([before, tokens]), starts, before_size + size
        documents += batch.documents
    return found


def join_notes(batches):
    notes = Notes()
    for batch in batches:
        notes.add(batch.notes)
    return notes


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_each_split_is_its_documents_in_order(bpe, kind, processes):
    tokenizer, chunks = {"bpe": bpe, "bytes": Bytes()}[kind], make_chunks(60)
    chunks += [(HashFraction(0.4), f"{number} é".encode()) for number in range(40)]  # batches of both splits
    before = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    batches = encode(chunks, tokenizer, processes=processes)
    assert sum(batch.documents for batch in batches) == 100
    found = join(batches)
    for split, (tokens, starts, size) in found.items():
        texts = [document.decode() for rule, document in chunks if rule.choose_split(document) == split]
        documents = [[*before, *tokenizer.encode(text)] for text in texts]
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == [token for document in documents for token in document]
        assert starts == np.cumsum([0, *map(len, documents[:-1])]).tolist()
        assert size == sum(len(text.encode()) for text in texts)
    assert found.keys() == {"train", "val"}
    assert encode([], tokenizer, processes=processes) == []


def test_encoding_continues_after_any_batch(bpe):
    chunks = make_chunks(12)
    batches = encode(chunks, bpe)
    whole = join(batches)
    assert len(batches) > len(chunks), "large documents are several batches"
    for i, batch in enumerate(batches, start=1):
        rest = join([*batches[:i], *encode(chunks, bpe, start=batch.end)])
        for split, (tokens, starts, size) in whole.items():
            np.testing.assert_array_equal(rest[split][0], tokens)
            assert rest[split][1:] == (starts, size)


def die(context):
    """Read a block as where memory runs out."""
    os._exit(9)


def test_death_of_a_worker_is_explained():
    chunks = [*make_chunks(60), (TRAIN, DocumentBlock(500, die)), *make_chunks(60)]
    with pytest.raises(UserError, match="a worker process died, mostly for want of memory"):
        encode(chunks, processes=2)


def read_numbers(first, context):
    """Three documents, of which number 13 is invalid."""
    for number in range(first, first + 3):
        if number == 13:
            context.skip_record(f"number {number} in process {os.getpid()}")
        else:
            yield f"{number}:".encode() + b"x" * 10


def number_chunks(numbers):
    return [(TRAIN, DocumentBlock(500, partial(read_numbers, number))) for number in numbers]


def find_numbers(batches):
    tokens, starts, _ = join(batches)["train"]
    return [bytes(part.tolist()).split(b":")[0].decode() for part in np.split(tokens, starts[1:])]


@pytest.mark.parametrize("processes", [1, 2])
def test_blocks_are_read_where_they_are_encoded(processes):
    batches = encode(number_chunks(range(0, 30, 3)), processes=processes)
    assert find_numbers(batches) == [str(i) for i in range(30) if i != 13]
    assert [(batch.end, batch.documents) for batch in batches] == [(i, 2 if i == 5 else 3) for i in range(1, 11)]
    notes = join_notes(batches)
    assert notes == {INVALID: 1}
    assert (f"process {os.getpid()}" in notes.first[INVALID]) == (processes == 1)


def test_finished_blocks_are_not_read_again():
    chunks = [(TRAIN, DocumentBlock(500, None))] * 4 + number_chunks(range(12, 30, 3))  # pyright: ignore[reportArgumentType]
    batches = encode(chunks, start=4)
    assert find_numbers(batches) == [str(i) for i in range(12, 30) if i != 13]
    assert batches[-1].end == 10


@pytest.mark.parametrize("processes", [1, 2])
def test_strict_raises_the_error_of_any_process(processes):
    chunks, strict = number_chunks(range(0, 30, 3)), ReadContext(strict=True)
    with pytest.raises(UserError, match="number 13 in process"):
        encode(chunks, processes=processes, context=strict)


@pytest.mark.parametrize("limit", [2, 7, 1000])
def test_max_tokens_splits_documents(bpe, limit):
    for tokenizer in (bpe, Bytes()):
        before = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        texts, length = ["one two é☕ three", "two", "語" * 9], limit - len(before)
        wanted = [
            [*before, *ids[i : i + length]]
            for ids in (tokenizer.encode(text) for text in texts)
            for i in range(0, len(ids), length)
        ]
        found = join(encode([(TRAIN, text.encode()) for text in texts], tokenizer, max_tokens=limit))
        tokens, starts, size = found["train"]
        assert [part.tolist() for part in np.split(tokens, starts[1:])] == wanted
        assert size == sum(len(text.encode()) for text in texts)


def test_blank_documents_are_counted():
    chunks = [(TRAIN, text) for _ in range(50) for text in (b" " * 2000, b"", b"text")]
    batches = encode(chunks)
    assert len(batches) > 10
    assert join_notes(batches) == {EMPTY: 100}
    assert sum(batch.documents for batch in batches) == batches[-1].end == 150
    assert len(join(batches)["train"][1]) == 50


def test_notes_belong_to_the_units_with_which_they_were_taken():
    """A run that continues has the notes of what is done, and takes those of the rest."""

    def chunks(context):
        for i in range(8):
            context.notes[f"before {i}"] += 1
            yield TRAIN, b"some words " * (120 if i in (2, 5) else 20)
        context.notes["behind"] += 1

    context = ReadContext()
    batches = encode(chunks(context), context=context)
    whole = join_notes(batches)
    assert whole == {f"before {i}": 1 for i in range(8)}
    assert context.notes == {"behind": 1}
    for i, batch in enumerate(batches, start=1):
        context = ReadContext()
        assert join_notes([*batches[:i], *encode(chunks(context), context=context, start=batch.end)]) == whole
        assert context.notes == {"behind": 1}
