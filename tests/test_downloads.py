"""Small downloads are checked and kept."""

import hashlib
from functools import partial

import pytest
from hub_server import Hub, serving

from data_pipelines.readers.downloads import cache_directory, download
from gptjax.core.errors import UserError

CONTENT = b"some text" * 1000


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(Hub("o/n", {"x.bin": CONTENT}), tmp_path, monkeypatch) as hub:
        yield hub


def test_download_is_checked_and_kept(tmp_path, hub):
    url, path = f"{hub.endpoint}/datasets/o/n/resolve/{hub.commit}/x.bin", tmp_path / "deep" / "x.bin"
    fetch = partial(download, url, path, sha256=hashlib.sha256(CONTENT).hexdigest())
    hub.served["x.bin"] = b"another"
    with pytest.raises(UserError, match=r"the SHA-256 of its content is \w+, wanted"):
        fetch()
    assert not path.exists()
    hub.served.clear()
    assert fetch() == fetch() == path.read_bytes() == CONTENT
    assert len(hub.requests) == 2, "what is there is not fetched again"
    path.write_bytes(b"damaged")
    assert fetch() == path.read_bytes() == CONTENT
    path.unlink()
    with pytest.raises(UserError, match="cannot be fetched: HTTP Error 404"):
        download(f"{url}absent", path, sha256="")


def test_cache_directory_is_set_by_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("GPTJAX_CACHE")
    assert cache_directory().parts[-2:] == (".cache", "gptjax")
