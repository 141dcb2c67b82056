"""A directory appears when it is complete, is made once, and other people's files are never replaced."""

import contextlib

import numpy as np
import pytest

from data_pipelines.output import atomic_dir
from data_pipelines.output.atomic_dir import PROGRESS_NAME, compare_requests, find_prepared, replace_directory
from data_pipelines.output.shard_writer import write_manifest
from gptjax.core.errors import UserError
from gptjax.data.manifest import Counts, read_manifest
from gptjax.data.shards import write_shard
from gptjax.tokenization.tokenizer import Bytes

REQUEST = {"source": "x", "shard_tokens": 9}


def fill_half(out, *, resumable):
    with contextlib.suppress(ZeroDivisionError), replace_directory(out, resumable=resumable) as directory:
        (directory / "a").write_text("half")
        (directory / PROGRESS_NAME).write_text("")
        raise ZeroDivisionError


def test_replace_directory_shows_it_when_complete(tmp_path):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    fill_half(out, resumable=False)
    assert not list(tmp_path.iterdir())
    fill_half(out, resumable=True)
    with replace_directory(out, resumable=True) as directory:
        assert directory == partial
        assert (directory / "a").read_text() == "half"
    assert [path.name for path in out.iterdir()] == ["a"]
    with replace_directory(out) as directory:
        assert not list(directory.iterdir())
        assert out.exists()
    assert not list(out.iterdir())


def fill(directory, request):
    write_shard(directory / "train_000000.bin", np.zeros(3, np.uint16))
    return write_manifest(directory, {"train": Counts(0, 3, 3)}, tokenizer=Bytes(), request=request)


@pytest.fixture
def made(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    return out, fill(out, REQUEST)


class Killed(BaseException):
    """Stands for an end at which nothing is cleaned up."""


def make_until_rename(monkeypatch, out, request, *, rename):
    """Make `out` as `request` asks, killed at that rename of a directory."""
    count, original = 0, atomic_dir.os.rename

    def rename_or_die(*paths):
        nonlocal count
        count += 1
        if count == rename:
            raise Killed
        original(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_dir.os, "rename", rename_or_die)
        with contextlib.suppress(Killed), replace_directory(out, resumable=True) as directory:
            (directory / PROGRESS_NAME).write_text("")
            fill(directory, request)
    assert count == rename


@pytest.mark.parametrize("rename", [1, 2])
def test_kill_between_renames_loses_neither_result(made, monkeypatch, rename):
    out, older = made
    other = REQUEST | {"source": "y"}
    make_until_rename(monkeypatch, out, other, rename=rename)
    assert find_prepared(out, REQUEST, overwrite=False) == older
    assert find_prepared(out, other, overwrite=True) is None
    with replace_directory(out, resumable=True) as directory:
        assert read_manifest(directory).request == other, "the newer one can be resumed"
    assert read_manifest(out).request == other
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_find_prepared_returns_what_the_same_request_made(made, capsys):
    out, manifest = made
    assert find_prepared(out, REQUEST, overwrite=False) == manifest
    assert "already prepared" in capsys.readouterr().out
    assert find_prepared(out, REQUEST, overwrite=True) is None
    with pytest.raises(UserError, match=r"another request \(seed, shard_tokens differ\).*--overwrite"):
        find_prepared(out, REQUEST | {"shard_tokens": 8, "seed": 1}, overwrite=False)
    (out / "train_000000.bin").write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        find_prepared(out, REQUEST, overwrite=False)


def test_find_prepared_refuses_other_peoples_files(tmp_path):
    assert find_prepared(tmp_path / "absent", REQUEST, overwrite=False) is None
    assert find_prepared(tmp_path, REQUEST, overwrite=False) is None, "an empty directory"
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="will not be replaced"):
            find_prepared(path, REQUEST, overwrite=True)


def test_compare_requests_names_the_differences():
    assert compare_requests({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    assert compare_requests({"b": 2, "a": 1, "d": None}, {"b": 3, "c": 0}) == "a, b, c"
