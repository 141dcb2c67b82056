"""A directory appears when it is whole, is made once, and what is not ours is never replaced."""

import contextlib
import errno
import threading

import numpy as np
import pytest

from data_pipelines.output import atomic_dir as output
from data_pipelines.output.atomic_dir import PROGRESS_NAME, differing, made_already, replaced
from data_pipelines.output.shard_writer import split_writers, write_manifest
from data_pipelines.runtime.locks import locked
from gptjax.errors import UserError
from gptjax.manifest import read_manifest
from gptjax.tokenizer import Bytes


def fill_half(out, *, resumable):
    with contextlib.suppress(ZeroDivisionError), replaced(out, resumable=resumable) as directory:
        (directory / "a").write_text("half")
        (directory / PROGRESS_NAME).write_text("")
        raise ZeroDivisionError


def test_a_directory_appears_when_it_is_whole(tmp_path):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    fill_half(out, resumable=False)
    assert not out.exists()
    assert not partial.exists()
    fill_half(out, resumable=True)
    with replaced(out, resumable=True) as directory:
        assert directory == partial
        assert (directory / "a").read_text() == "half"
    assert [path.name for path in out.iterdir()] == ["a"], "without the record"
    with replaced(out) as directory:
        assert not list(directory.iterdir())
        assert out.exists()
    assert not list(out.iterdir())


@pytest.mark.parametrize(("resumable", "advice"), [(True, "again; it goes on with what is written"), (False, "again")])
def test_a_full_disk_is_told(tmp_path, resumable, advice):
    def fill(trouble):
        with replaced(tmp_path / "out", resumable=resumable) as directory:
            (directory / PROGRESS_NAME).write_text("")
            raise OSError(trouble, "no room")

    with pytest.raises(UserError, match=rf"out: could not be written: no room\. Make room and .* {advice}\."):
        fill(errno.ENOSPC)
    assert (tmp_path / ".out.partial").exists() is resumable
    with pytest.raises(OSError, match="no room"):
        fill(errno.EIO)


REQUEST = {"source": "x", "shard_tokens": 9}


class Killed(BaseException):
    """A stand-in for an end at which nobody cleans up."""


def fill(directory, request):
    with split_writers(directory, ["train"], Bytes(), shard_tokens=9) as writers:
        writers["train"].append(np.zeros(3, np.uint8), np.array([0]), size=3)
    return write_manifest(directory, writers, Bytes(), request)


@pytest.fixture
def made(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    return out, fill(out, REQUEST)


def killed_at(monkeypatch, out, request, *, rename):
    """Make `out` as `request` asks, killed at that rename of a directory."""
    count, original = 0, output.os.rename

    def renamed(*paths):
        nonlocal count
        count += 1
        if count == rename:
            raise Killed
        original(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "rename", renamed)
        with contextlib.suppress(Killed), replaced(out, resumable=True) as directory:
            (directory / PROGRESS_NAME).write_text("")
            fill(directory, request)
    assert count == rename


def test_a_complete_result_survives_a_kill_before_it_is_moved(tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed_at(monkeypatch, out, REQUEST, rename=1)
    assert not out.exists()
    manifest = made_already(out, REQUEST, overwrite=False)
    assert manifest is not None
    assert read_manifest(out) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_another_request_left_is_replaced_where_that_is_asked_for(tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed_at(monkeypatch, out, REQUEST, rename=1)
    assert made_already(out, REQUEST | {"source": "y"}, overwrite=True) is None


@pytest.mark.parametrize("rename", [1, 2])
def test_neither_result_is_lost_when_one_was_to_replace_the_other(made, monkeypatch, rename):
    """Killed before the older one steps aside, or after."""
    out, older = made
    other = REQUEST | {"source": "y"}
    killed_at(monkeypatch, out, other, rename=rename)
    if rename == 1:
        assert made_already(out, REQUEST, overwrite=False) == older, "who asks for the older one finds it"
        killed_at(monkeypatch, out, other, rename=rename)
    newer = made_already(out, other, overwrite=True)
    assert newer is not None
    assert newer.request == other
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert made_already(out, other, overwrite=True) is None, "asked again, it is made again"


def test_the_older_result_comes_back_where_the_newer_is_not_complete(made):
    out, older = made
    out.rename(out.with_name(".out.old"))
    out.with_name(".out.partial").mkdir()
    assert made_already(out, REQUEST, overwrite=False) == older


def test_what_the_same_request_made_is_found(made):
    out, manifest = made
    assert made_already(out, REQUEST, overwrite=False) == manifest
    assert made_already(out, REQUEST, overwrite=True) is None
    with pytest.raises(UserError, match=r"another request \(seed, shard_tokens differ\).*--overwrite"):
        made_already(out, REQUEST | {"shard_tokens": 8, "seed": 1}, overwrite=False)
    (out / "train_000000.bin").write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        made_already(out, REQUEST, overwrite=False)


def test_only_prepared_data_is_replaced(tmp_path):
    assert made_already(tmp_path / "absent", REQUEST, overwrite=False) is None
    assert made_already(tmp_path, REQUEST, overwrite=False) is None, "an empty directory"
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="will not be replaced"):
            made_already(path, REQUEST, overwrite=True)


def test_what_differs():
    assert differing({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    assert differing({"b": 2, "a": 1, "d": None}, {"b": 3, "c": 0}) == "a, b, c"


def test_who_comes_second_waits(tmp_path, capsys):
    order = []

    def second():
        with locked(tmp_path / "out"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path / "out"):
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == [tmp_path / ".out.lock"]
