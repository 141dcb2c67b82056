"""WikiText's rows become articles again, byte for byte."""

from dataclasses import dataclass

import pytest
from texts import documents_in

from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.sources import open_source
from data_pipelines.readers.wikitext import Articles

ORIGINAL = (
    " \n = Valkyria Chronicles = \n \n The game began . \n \n = = Gameplay = = \n \n Text with 1 = 1 = 1 . \n"
    " = not after a blank line = \n \n = = = Deeper = = = \n \n"
    " \n = ? = \n \n Short é . \n \n = 1 = 2 = \n \n Last . \n"
)
ARTICLES = [
    ORIGINAL[: ORIGINAL.index(" \n = ? =")],
    ORIGINAL[ORIGINAL.index(" \n = ? =") : ORIGINAL.index(" \n = 1 = 2")],
    ORIGINAL[ORIGINAL.index(" \n = 1 = 2") :],
]
ARTICLES = [article.encode() for article in ARTICLES]


@dataclass
class Given:
    texts: list[str]
    name: str = "given"

    def chunks(self, context):
        return (text.encode() for text in self.texts)

    def identity(self):
        return {"source": "given"}


def split_rows(text):
    """The rows as published: a line with its end each, a blank line as an empty string."""
    return ["" if not line.strip() else f"{line}\n" for line in text.split("\n")[:-1]]


@pytest.mark.parametrize(
    "texts", [split_rows(ORIGINAL), [row.rstrip("\n") for row in split_rows(ORIGINAL)], [ORIGINAL]]
)
def test_rows_and_files_become_the_same_articles(texts):
    articles = list(documents_in(Articles(Given(texts)), ReadContext()))
    assert articles == ARTICLES
    assert b"".join(articles) == ORIGINAL.encode()


def test_text_without_titles_is_one_article():
    assert list(documents_in(Articles(Given([])), ReadContext())) == []
    assert list(documents_in(Articles(Given(["just text"])), ReadContext())) == [b"just text\n"]
    assert list(documents_in(Articles(Given(["one\ntwo"])), ReadContext())) == [b"one\ntwo"]


def test_source_with_the_wikitext_prefix_opens_articles(tmp_path):
    (tmp_path / "wiki.train.raw").write_bytes(ORIGINAL.encode())
    plain = open_source(str(tmp_path / "wiki.train.raw"))
    source = open_source(f"wikitext:{tmp_path}/wiki.train.raw")
    assert list(documents_in(source, ReadContext())) == ARTICLES
    assert source.name == plain.name == "wiki"
    assert source.identity() != plain.identity()
