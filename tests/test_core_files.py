"""Whole files: written atomically, hashed."""

import hashlib
import os
from pathlib import Path

import pytest

from gptjax.core.files import file_sha256, write_atomically


def test_write_atomically_creates_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, wanted in (("é\r\n", "é\r\n".encode()), (b"\xff", b"\xff"), ("", b"")):
        write_atomically(path, content)
        assert path.read_bytes() == wanted
        assert list(tmp_path.iterdir()) == [path]
        assert file_sha256(path) == hashlib.sha256(wanted).hexdigest()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_write_atomically_after_failure_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
