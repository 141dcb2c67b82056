"""A directory appears when it is whole, is made once, and what is not ours is never replaced."""

import contextlib
import threading

import numpy as np
import pytest

from data_pipelines.output import differing, locked, made_already, replaced
from data_pipelines.writing import split_writers, write_manifest
from gptjax.errors import UserError
from gptjax.tokenizer import Bytes


def fill_half(out, *, keep):
    with contextlib.suppress(ZeroDivisionError), replaced(out, keep=keep) as directory:
        (directory / "a").write_text("half")
        (directory / "record").write_text("")
        raise ZeroDivisionError


def test_a_directory_appears_when_it_is_whole(tmp_path):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    fill_half(out, keep=None)
    assert not out.exists()
    assert not partial.exists()
    fill_half(out, keep="record")
    with replaced(out, keep="record") as directory:
        assert directory == partial
        assert (directory / "a").read_text() == "half"
    assert (out / "a").read_text() == "half"
    with replaced(out) as directory:
        assert not list(directory.iterdir())
        assert out.exists()
    assert not list(out.iterdir())


REQUEST = {"source": "x", "shard_tokens": 9}


@pytest.fixture
def made(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with split_writers(out, ["train"], Bytes(), shard_tokens=9) as writers:
        writers["train"].append(np.zeros(3, np.uint8), np.array([0]), size=3)
    return out, write_manifest(out, writers, Bytes(), REQUEST)


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
