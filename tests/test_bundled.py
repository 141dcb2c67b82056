"""The standard library of Python, and tiny Shakespeare."""

import hashlib

import pytest
from hub_server import Hub, serving
from texts import documents_in

from data_pipelines.readers.bundled import Shakespeare, Stdlib
from data_pipelines.readers.documents import ReadContext
from gptjax.core.errors import UserError

TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"


def test_shakespeare_is_fetched_or_another_source_named(tmp_path, monkeypatch):
    with serving(Hub("o/n", {"input.txt": TEXT}), tmp_path, monkeypatch) as hub:
        url = f"{hub.endpoint}/datasets/o/n/resolve/{hub.commit}/input.txt"
    with pytest.raises(UserError, match=r"^source shakespeare: .* cannot be fetched.*--source=PATH/input\.txt.*stdlib"):
        list(documents_in(Shakespeare(url), ReadContext()))
    with serving(hub, tmp_path, monkeypatch):
        url = f"{hub.endpoint}/datasets/o/n/resolve/{hub.commit}/input.txt"
        with pytest.raises(UserError, match="cannot be fetched: its SHA-256 is wrong"):
            list(documents_in(Shakespeare(url), ReadContext()))
        source = Shakespeare(url, sha256=hashlib.sha256(TEXT).hexdigest())
        assert list(documents_in(source, ReadContext())) == [TEXT]
    assert list(documents_in(source, ReadContext())) == [TEXT], "it is kept"
    assert Shakespeare().identity()["sha256"].startswith("86c4e6aa")


def test_stdlib_gives_modules_and_topics():
    texts = list(documents_in(Stdlib(), ReadContext()))
    assert len(texts) > 400
    assert sum(map(len, texts)) > 5_000_000
    assert any(text.startswith(b'r"""HTTP/1.1 client library') for text in texts)  # pyright: ignore[reportAttributeAccessIssue]
    assert not any(b"class TestCase_" in text or b"test.support" in text[:300] for text in texts)
    assert texts == list(documents_in(Stdlib(), ReadContext()))
