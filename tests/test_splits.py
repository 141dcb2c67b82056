"""Which split a text is for: by its hash, the same for whoever asks."""

import hashlib

import numpy as np
import pytest

from data_pipelines.encode import splits
from data_pipelines.encode.splits import DEFAULT_SPLIT, Divided, Split, TwoSources, divided
from data_pipelines.readers.documents import EMPTY, INVALID, ReadContext
from gptjax.errors import UserError


class Texts:
    name = "texts"

    def __init__(self, *texts):
        self.texts = [text.encode() for text in texts]

    def chunks(self, context):
        yield from self.texts

    def identity(self):
        return {"source": [text.decode() for text in self.texts]}


def parts_of(split, source, context=None):
    """(split, document) of every document that is not blank."""
    context = context or ReadContext()
    return [(name, bytes(document)) for name, document in divided(Divided(source, split), context)]


@pytest.mark.parametrize("text", ["a", "é☕", "long " * 500_000])
def test_the_hash_is_that_of_the_utf8(text):
    """Pinned: other hashes would move documents between the splits of data that exists."""
    document = text.encode()
    share = int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64
    for same in (document, bytearray(document), memoryview(document)):
        assert Split("documents", share).side(same) == "train"
        assert Split("documents", share + 1e-9).side(same) == "val"
        assert Split("none").side(same) == "train"


def test_examples_and_documents_are_divided_alike():
    texts, split = [str(i) for i in range(500)], Split.parse("documents:0.3")
    assert [name for name, _ in parts_of(split, Texts(*texts))] == [split.side(text.encode()) for text in texts]
    assert 100 < sum(split.side(text.encode()) == "val" for text in texts) < 200


def test_few_documents_are_cut_by_the_tail():
    """As it says itself; as soon as both sides have one, hashes decide, and few documents are read to know."""
    texts = [f"text {i} " * 3 for i in range(2000)]
    for count, wanted in [(1, "tail:0.1"), (5, "tail:0.1")]:
        context, source = ReadContext(), Texts(*texts[:count])
        split = Split.parse("documents:1e-6")
        assert parts_of(split, source, context) == parts_of(Split.parse(wanted), source)
        assert context.notes == {f"documents, too few for {split}: cut by {wanted} instead": count}
    everything = Split.parse("documents:0.999999")
    assert parts_of(everything, Texts("ab" * 5)) == [("val", b"ab" * 5)]
    assert parts_of(everything, Texts(" ")) == []
    read = []

    class Counted(Texts):
        def chunks(self, context):
            for document in self.texts:
                read.append(document)
                yield document

    split, context = Split.parse("documents:0.01"), ReadContext()
    first = next(divided(Divided(Counted(*texts), split), context))
    assert first == (split.side(texts[0].encode()), texts[0].encode())
    sides = [split.side(text.encode()) for text in texts]
    assert len(read) == 2 + max(sides.index("train"), sides.index("val"))
    assert not context.notes


def test_two_sources_stay_apart_and_blank_texts_are_left_out():
    context, corpus = ReadContext(), TwoSources(Texts("a", " ", "b"), Texts("", "a"))
    assert list(divided(corpus, context)) == [("train", b"a"), ("train", b"b"), ("val", b"a")]
    assert context.notes == {EMPTY: 2}
    assert corpus.identity() == {"source": ["a", " ", "b"], "validation": {"source": ["", "a"]}}


@pytest.mark.parametrize("spec", [DEFAULT_SPLIT, "tail:0.1", "drawn:3/20/7", "none"])
def test_a_split_is_named_as_it_was_asked_for(spec):
    assert str(Split.parse(spec)) == spec
    assert Divided(Texts("a"), Split.parse(spec)).identity() == {"source": ["a"], "split": spec}


def test_a_large_single_text_keeps_the_fraction(monkeypatch):
    monkeypatch.setattr(splits, "ENOUGH_CHARACTERS", 50)
    context = ReadContext()
    parts = dict(parts_of(Split.parse("documents:0.05"), Texts("x" * 1000), context))
    assert len(parts["val"]) in (50, 51)
    assert list(context.notes) == ["documents, too few for documents:0.05: cut by tail:0.05 instead"]


def test_a_last_document_that_is_nearly_all_is_cut_inside():
    parts = parts_of(Split.parse("tail:0.1"), Texts("short", "x" * 995))
    assert [(name, len(part)) for name, part in parts] == [("train", 5), ("train", 895), ("val", 100)]
    parts = parts_of(Split.parse("tail:0.9"), Texts("x" * 400, "y" * 600))
    assert [(name, len(part)) for name, part in parts] == [("train", 400), ("val", 600)]


def test_the_tail_is_counted_in_characters():
    """A cut in a single text is where nanoGPT makes it, also behind a million bytes and inside of long characters."""
    text = "é☕x" * 400_000
    parts = dict(parts_of(Split.parse("tail:0.3"), Texts(text)))
    cut = int(len(text) * 0.7)
    assert parts == {"train": text[:cut].encode(), "val": text[cut:].encode()}


def test_drawn_documents_are_those_of_a_seeded_permutation_of_all():
    """As `datasets.Dataset.train_test_split` draws them; a blank document has its number."""
    texts = [f"text {i}" if i != 5 else " " for i in range(20)]
    context, split = ReadContext(), Split.parse("drawn:6/20/2357")
    drawn = set(np.random.default_rng(2357).permutation(20)[:6].tolist())
    wanted = [("val" if i in drawn else "train", text.encode()) for i, text in enumerate(texts) if i != 5]
    assert parts_of(split, Texts(*texts), context) == wanted
    assert context.notes == {EMPTY: 1}
    with pytest.raises(UserError, match=r"texts has 21 documents, not 20\. Use --split=drawn:6/21/2357"):
        parts_of(split, Texts(*texts, "one more"))
    with pytest.raises(UserError, match=r"texts has 19 documents, not 20"):
        Divided(Texts(*texts), split).check(19)


@pytest.mark.parametrize("spec", ["drawn:0/5/1", "drawn:5/5/1", "drawn:1/5", "drawn:x"])
def test_a_draw_that_cannot_be_is_refused(spec):
    with pytest.raises(UserError, match="drawn:K/N/SEED"):
        Split.parse(spec)


def test_a_half_that_is_blank_is_no_blank_document():
    """A cut inside of a text loses nothing of it."""
    for text in ("a word " * 1000 + "\n" * 2000, "\n" * 2000 + "a word " * 10):
        context = ReadContext()
        parts = parts_of(Split.parse("tail:0.1"), Texts(text), context)
        assert [name for name, _ in parts] == ["train", "val"]
        assert b"".join(part for _, part in parts) == text.encode()
        assert not context.notes


def test_drawing_many_is_quick_to_ask():
    """A number is looked up, whatever the number of those drawn."""
    rule = Split.parse("drawn:400000/8000000/1").rule
    drawn = np.sort(np.random.default_rng(1).permutation(8_000_000)[:400_000])
    numbers = np.concatenate([drawn[:5], drawn[:5] + 1, [8_000_000, 9_000_000]])
    np.testing.assert_array_equal(rule.validation(numbers, numbers * 0.0), np.isin(numbers, drawn))


@pytest.mark.parametrize("spec", ["tail:0.1", "documents:0.005"])
def test_what_is_wrong_behind_the_cut_is_told(spec):
    class Broken(Texts):
        def chunks(self, context):
            yield from super().chunks(context)
            context.skip_record("the end")

    context = ReadContext()
    parts = parts_of(Split.parse(spec), Broken("some words " * 500, " "), context)
    assert [name for name, _ in parts] == ["train", "val"]
    assert {EMPTY: 1, INVALID: 1}.items() <= context.notes.items()
