"""What Python brings along, and tiny Shakespeare: checked, kept, and explained where there is no network."""

import hashlib
from dataclasses import replace

import pytest
from hub_server import Hub, serving
from texts import documents_in

from data_pipelines.readers import bundled, downloads
from data_pipelines.readers.bundled import Shakespeare, Stdlib
from data_pipelines.readers.documents import ReadContext
from gptjax.errors import UserError

TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0)
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    with serving(Hub("o/n", {"input.txt": TEXT})) as hub:
        wanted = {"url": f"{hub.endpoint}/storage/input.txt", "size": len(TEXT)}
        wanted["sha256"] = hashlib.sha256(TEXT).hexdigest()
        monkeypatch.setattr(bundled, "TINY_SHAKESPEARE", replace(bundled.TINY_SHAKESPEARE, **wanted))
        yield hub


def read():
    return list(documents_in(Shakespeare(), ReadContext()))


def test_shakespeare_is_checked_and_kept(server, tmp_path):
    server.served["input.txt"] = b"F" + TEXT[1:-1] + b"!"
    with pytest.raises(UserError, match="not the file that was promised"):
        read()
    server.served.clear()
    assert read() == [TEXT]
    before = len(server.requests)
    assert read() == [TEXT]
    assert len(server.requests) == before
    (tmp_path / "cache" / "tinyshakespeare.txt").write_bytes(b"E" + TEXT[1:])
    assert read() == [TEXT]


def test_without_a_network_another_way_is_named(server):
    server.refuse = [500] * downloads.TRIES
    with pytest.raises(UserError, match=r"did not answer.*--source=PATH/input\.txt.*stdlib"):
        read()


def test_the_true_one_is_known():
    assert Shakespeare().identity()["sha256"].startswith("86c4e6aa")
    assert bundled.TINY_SHAKESPEARE.size == 1_115_394


def test_python_brings_its_own_corpus():
    texts = list(documents_in(Stdlib(), ReadContext()))
    assert len(texts) > 400
    assert sum(map(len, texts)) > 5_000_000
    assert any(text.startswith(b'r"""HTTP/1.1 client library') for text in texts)
    assert not any(b"class TestCase_" in text or b"test.support" in text[:300] for text in texts)
    assert texts == list(documents_in(Stdlib(), ReadContext()))
