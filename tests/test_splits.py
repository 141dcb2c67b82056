"""Which split a text is for: by its hash, the same for whoever asks."""

import hashlib
from collections import Counter

import pytest

from data_pipelines.splits import DEFAULT_SPLIT, SKIPPED, Divided, Split, TwoSources


class Texts:
    name = "texts"

    def __init__(self, *texts):
        self.texts = texts

    def documents(self, notes):
        yield from self.texts

    def identity(self):
        return {"source": self.texts}


@pytest.mark.parametrize("text", ["a", "é☕", "half \ud83d", "long " * 500_000])
def test_the_hash_is_that_of_the_utf8(text):
    """Pinned: other hashes would move documents between the splits of data that exists."""
    share = int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
    assert Split("documents", share).side(text) == "train"
    assert Split("documents", share + 1e-9).side(text) == "val"
    assert Split("none").side(text) == "train"


def test_examples_and_documents_are_divided_alike():
    texts, split = [str(i) for i in range(500)], Split.parse("documents:0.3")
    assert [name for name, _ in split.parts(Texts(*texts), Counter())] == [split.side(text) for text in texts]
    assert 100 < sum(split.side(text) == "val" for text in texts) < 200


def test_two_sources_stay_apart_and_blank_texts_are_left_out():
    notes, corpus = Counter(), TwoSources(Texts("a", " ", "b"), Texts("", "a"))
    assert list(corpus.parts(notes)) == [("train", "a"), ("train", "b"), ("val", "a")]
    assert notes == {SKIPPED: 2}
    assert corpus.identity() == {"source": ("a", " ", "b"), "validation": {"source": ("", "a")}}


@pytest.mark.parametrize("spec", [DEFAULT_SPLIT, "tail:0.1", "none"])
def test_a_split_is_named_as_it_was_asked_for(spec):
    assert str(Split.parse(spec)) == spec
    assert Divided(Texts("a"), Split.parse(spec)).identity() == {"source": ("a",), "split": spec}
