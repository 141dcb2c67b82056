"""A small file is there as a whole, or as it was."""

import os

import pytest

from gptjax.core.files import write_atomically


def test_made_and_replaced(tmp_path):
    path = tmp_path / "x.json"
    for content, wanted in (("é\r\n", "é\r\n".encode()), (b"\xff", b"\xff"), ("", b"")):
        write_atomically(path, content)
        assert path.read_bytes() == wanted
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="no room"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
