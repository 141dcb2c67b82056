"""A directory appears when it is complete, is made once, and other people's files are never replaced."""

import contextlib
import errno
import os
import threading

import numpy as np
import pytest

from data_pipelines.output.atomic_dir import PROGRESS_NAME, find_prepared, hold_lock, replace_directory
from data_pipelines.output.shard_writer import write_manifest
from gptjax.core.errors import UserError
from gptjax.data.manifest import Counts
from gptjax.data.shards import write_shard
from gptjax.tokenization.tokenizer import Bytes

REQUEST = {"source": "x", "shard_tokens": 9}


def fill_and_stop(out, *, resumable):
    with contextlib.suppress(ZeroDivisionError), replace_directory(out) as directory:
        (directory / "a").write_text("half")
        if resumable:
            (directory / PROGRESS_NAME).write_text("")
        raise ZeroDivisionError


def test_replace_directory_shows_it_when_complete(tmp_path):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    fill_and_stop(out, resumable=False)
    assert not list(tmp_path.iterdir())
    fill_and_stop(out, resumable=True)
    with pytest.raises(OSError, match=r"No space left on device: .*out'$"), replace_directory(out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with replace_directory(out) as directory:
        assert directory == partial
        assert (directory / "a").read_text() == "half"
    assert [path.name for path in out.iterdir()] == ["a"]
    with replace_directory(out) as directory:
        assert not list(directory.iterdir())
        assert out.exists()
    assert not list(out.iterdir())
    assert list(tmp_path.iterdir()) == [out]


def fill(directory, request):
    write_shard(directory / "train_000000.bin", np.zeros(3, np.uint16))
    return write_manifest(directory, {"train": Counts(0, 3, 3)}, tokenizer=Bytes(), request=request)


@pytest.fixture
def made(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    return out, fill(out, REQUEST)


def test_find_prepared_returns_what_the_same_request_made(made, capsys):
    out, manifest = made
    assert find_prepared(out, REQUEST, overwrite=False) == manifest
    assert "already prepared" in capsys.readouterr().out
    assert find_prepared(out, REQUEST, overwrite=True) is None
    later = REQUEST | {"shard_tokens": 8}
    assert find_prepared(out, later, overwrite=False, former={"shard_tokens": REQUEST["shard_tokens"]}) == manifest
    with pytest.raises(UserError, match=r"another request \(seed, shard_tokens differ\).*--overwrite"):
        find_prepared(out, REQUEST | {"shard_tokens": 8, "seed": 1}, overwrite=False)
    with pytest.raises(UserError, match=r"request \(names, sizes or times of the source's files, seed differ\)"):
        find_prepared(out, REQUEST | {"seed": 1, "files": 2, "names_sizes_times": "x"}, overwrite=False)
    with pytest.raises(UserError, match=rf"--overwrite\. --tokenizer={out} keeps its ids, which runs on it need\.$"):
        find_prepared(out, REQUEST | {"tokenizer": "bpe:400"}, overwrite=False)
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


def test_hold_lock_makes_the_second_wait(tmp_path):
    order = []

    def second():
        with hold_lock(tmp_path / "out"):
            order.append("second")

    thread = threading.Thread(target=second)
    with hold_lock(tmp_path / "out"):
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == [], "the lock is removed by the last that held it"
