"""Which split a document is for: decided by its text or its place, the same in every process."""

import hashlib

import numpy as np
import pytest

from data_pipelines.encode.splits import AllTo, Corpus, HashFraction, parse_split
from data_pipelines.readers.documents import EMPTY, INVALID, ReadContext
from gptjax.core.errors import UserError


class Texts:
    name = "texts"

    def __init__(self, *texts):
        self.texts = [text.encode() for text in texts]

    def chunks(self, context):
        yield from self.texts

    def identity(self):
        return {"source": [text.decode() for text in self.texts]}


def split_documents(spec, source, context=None):
    """(split, document) of every document that is not blank."""
    corpus = Corpus(source, spec)
    return [(side, bytes(text)) for side, text in corpus.iter_split_documents(context or ReadContext())]


@pytest.mark.parametrize("text", ["a", "é☕", "long " * 500_000])
def test_hash_is_that_of_the_utf8(text):
    """Pinned: other hashes would move documents between the splits of data that exists."""
    document = text.encode()
    share = int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64
    for same in (document, bytearray(document), memoryview(document)):
        assert HashFraction(share).choose_split(same) == "train"
        assert HashFraction(share + 1e-9).choose_split(same) == "val"
        assert AllTo("train").choose_split(same) == "train"


def test_hash_ignores_order_and_repetition():
    texts = [f"text {i}" for i in range(2000)]

    def find_validation(texts):
        return {text for side, text in split_documents("hash:0.1", Texts(*texts)) if side == "val"}

    found = find_validation(texts)
    assert found == find_validation(texts[::-1]) == find_validation(texts + texts)
    assert find_validation(texts[:500]) == {text.encode() for text in texts[:500]} & found
    assert 150 < len(found) < 250


@pytest.mark.parametrize("count", [1, 5])
def test_hash_of_few_documents_splits_the_tail(count):
    source, context = Texts(*(f"text {i} " * 3 for i in range(count))), ReadContext()
    assert split_documents("hash:1e-6", source, context) == split_documents("tail:0.1", source)
    assert context.notes == {"documents, too few for hash:1e-6: split by tail:0.1 instead": count}
    assert split_documents("hash:0.999999", Texts("ab" * 5))[-1] == ("val", b"ab" * 5)
    assert split_documents("hash:0.999999", Texts(" ")) == []


@pytest.mark.parametrize(
    ("spec", "count", "wanted"),
    [("hash:1e-9", 30, 3), ("hash:0.99999", 3, 2), ("hash:1e-9", 2, 1), ("hash:1e-9", 9000, 10)],
)
def test_a_hash_that_leaves_a_side_empty_gets_another_fraction(spec, count, wanted):
    """Equal examples stay on one side, and the fraction says again what was done."""
    rule = HashFraction(float(spec.removeprefix("hash:")))
    points = [rule.point(str(number).encode()) for number in range(count)]
    widened = rule.widen(points * 2)
    assert widened is not None
    assert (np.array(points) < widened.fraction).sum() == wanted
    assert parse_split(f"hash:{widened.fraction}") == widened
    assert len(str(widened.fraction)) < 8
    assert rule.widen([0.5] * 9) is None
    unread = iter([0.1, 0.9, 0.2])
    assert HashFraction(0.5).widen(unread) is None
    assert next(unread) == 0.2


def test_hash_reads_few_documents_to_decide():
    texts, read = [f"text {i} " * 3 for i in range(2000)], []

    class Counted(Texts):
        def chunks(self, context):
            for document in self.texts:
                read.append(document)
                yield document

    context, rule = ReadContext(), HashFraction(0.01)
    splits = [rule.choose_split(text.encode()) for text in texts]
    first = next(Corpus(Counted(*texts), "hash:0.01").iter_split_documents(context))
    assert first == (splits[0], texts[0].encode())
    assert len(read) == 2 + max(splits.index("train"), splits.index("val"))
    assert not context.notes


def test_tail_cuts_the_document_at_the_fraction():
    def measure(spec, *texts):
        return [(side, len(part)) for side, part in split_documents(spec, Texts(*texts))]

    assert measure("tail:0.5", "x" * 20, "x" * 30, "x" * 50) == [("train", 20), ("train", 30), ("val", 50)]
    assert measure("tail:0.1", "x" * 60, "x" * 38, "x" * 2) == [("train", 60), ("train", 30), ("val", 8), ("val", 2)]
    assert measure("tail:0.1", "short", "x" * 995) == [("train", 5), ("train", 895), ("val", 100)]


def test_tail_is_counted_in_characters():
    """The cut in a single text is where nanoGPT makes it, also inside of long characters."""
    text = "é☕x" * 400_000
    cut = int(len(text) * 0.7)
    assert dict(split_documents("tail:0.3", Texts(text))) == {"train": text[:cut].encode(), "val": text[cut:].encode()}


@pytest.mark.parametrize("spec", ["tail:0.1", "hash:0.005"])
def test_tail_notes_what_is_wrong_behind_the_last_text(spec):
    class Invalid(Texts):
        def chunks(self, context):
            yield from super().chunks(context)
            context.skip_record("the end")

    context = ReadContext()
    parts = split_documents(spec, Invalid("some words " * 500, " "), context)
    assert [side for side, _ in parts] == ["train", "val"]
    assert {EMPTY: 1, INVALID: 1}.items() <= context.notes.items()


def test_random_draws_as_hugging_face_does():
    """As `datasets.Dataset.train_test_split`; a blank document has its number."""
    texts = [f"text {i}" if i != 5 else " " for i in range(20)]
    context, spec = ReadContext(), "random:6/20/2357"
    drawn = set(np.random.default_rng(2357).permutation(20)[:6].tolist())
    wanted = [("val" if i in drawn else "train", text.encode()) for i, text in enumerate(texts) if i != 5]
    assert split_documents(spec, Texts(*texts), context) == wanted
    assert context.notes == {EMPTY: 1}
    with pytest.raises(UserError, match=r"texts has 21 documents, not 20\. Use random:6/21/2357"):
        split_documents(spec, Texts(*texts, "one more"))
    rule = parse_split("random:40000/800000/1")
    drawn = np.sort(np.random.default_rng(1).permutation(800_000)[:40_000])
    numbers = np.concatenate([drawn[:5], drawn[:5] + 1, [800_000, 900_000]])
    np.testing.assert_array_equal(rule.is_validation(numbers, numbers * 0.0), np.isin(numbers, drawn))  # pyright: ignore[reportAttributeAccessIssue]


def test_corpus_of_two_sources_keeps_them_apart():
    context, corpus = ReadContext(), Corpus(Texts("a", " ", "b"), "none", Texts("", "a"))
    assert list(corpus.iter_split_documents(context)) == [("train", b"a"), ("train", b"b"), ("val", b"a")]
    assert context.notes == {EMPTY: 2}
    assert corpus.identity() == {"source": ["a", " ", "b"], "validation": {"source": ["", "a"]}}


@pytest.mark.parametrize("spec", ["hash:0.005", "tail:0.1", "random:3/20/7", "none"])
def test_corpus_identity_names_the_split(spec):
    assert Corpus(Texts("a"), spec).identity() == {"source": ["a"], "split": spec}


@pytest.mark.parametrize(
    ("spec", "part"), [("0.1", "0.1"), ("90/10", "0.1"), ("0.98,0.02", "0.02"), ("969,30,1", "0.03")]
)
def test_parse_split_reads_the_part_of_other_programs(spec, part):
    with pytest.raises(UserError, match=f"Write hash:{part} for that part of the documents"):
        parse_split(spec)


WRONG = ["hash", "tail:0", "tail:1.5", "head:0.1", "hash:x", "", "random:0/5/1", "random:5/5/1", "random:1/5"]


@pytest.mark.parametrize("spec", WRONG)
def test_parse_split_refuses_other_specs(spec):
    with pytest.raises(UserError, match=r"wanted hash:F or tail:F.*random:K/N/SEED"):
        parse_split(spec)
