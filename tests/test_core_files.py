"""Files and directories are written whole or not at all; locks and hashes."""

import errno
import fcntl
import hashlib
import os
import pwd
from pathlib import Path

import pytest

from gptjax.core.errors import UserError
from gptjax.core.files import (
    atomic_directory,
    atomic_file,
    cache_directory,
    expand_path,
    file_sha256,
    lock_file,
    read_text,
    write_atomically,
    write_output,
)


def test_write_atomically_creates_and_replaces(tmp_path: Path):
    path = tmp_path / "x.json"
    for content, written in (("é\r\n", "é\r\n".encode()), (b"\xff", b"\xff"), ("", b"")):
        write_atomically(path, content)
        assert path.read_bytes() == written
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_keeps_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(*_: object):
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_output_keeps_links_and_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    link, there = tmp_path / "link.json", tmp_path / "there.json"
    link.symlink_to(there)
    for content in ("first", "second"):
        write_output(link, content)
        assert there.read_text() == content
    write_output(Path(os.devnull), "nothing")
    assert link.is_symlink()
    assert Path(os.devnull).is_char_device()

    def fail(*_: object):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full") as error:
        write_output(link, "third")
    assert error.value.filename == str(there)
    assert there.read_text() == "second"


@pytest.mark.parametrize("path", ["gs://bucket/runs", Path("s3://bucket/x"), "https://example.org/a.txt"])
def test_address_is_no_local_path(path: str | Path):
    with pytest.raises(UserError, match="is an address; wanted a local path"):
        expand_path(path)


def test_empty_path_is_not_the_working_directory():
    with pytest.raises(UserError, match="a path is empty"):
        expand_path("")


def test_path_with_a_colon_is_a_path():
    for name in ("a:b/c", "./gs:/b", "C:/x"):
        assert expand_path(name) == Path(name)


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://huggingface.co/datasets/a/b/resolve/main/x.txt", r"have the name hf:a/b where"),
        ("https://huggingface.co/gpt2", r"have the name hf:gpt2 where"),
        (f"https://example.com/a.txt?x={'0' * 400}", rf"curl -LO 'https://example.com/a.txt\?x={'0' * 400}'$"),
        ("https://huggingface.co/spaces/a/b", r"Fetch it first: curl -LO https://huggingface.co/spaces/a/b"),
        ("https://huggingface.co/datasets", r"Fetch it first: curl"),
        ("https://huggingface.co/spaces-fan/b", r"have the name hf:spaces-fan/b where"),
        ("http://example.com/a b.txt", r"Fetch it first: curl -LO 'http://example.com/a b.txt'"),
    ],
)
def test_addresses_of_the_web_are_refused_with_advice(address: str, advice: str):
    with pytest.raises(UserError, match=f"is an address; wanted a local path.*{advice}"):
        expand_path(address)


def test_cache_without_a_home_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GPTJAX_CACHE", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # an unknown user, as in some containers
    with pytest.raises(UserError, match=r"no home directory.*Set GPTJAX_CACHE"):
        cache_directory()
    monkeypatch.setenv("GPTJAX_CACHE", "gs://bucket/cache")
    with pytest.raises(UserError, match="is an address; wanted a local path"):
        cache_directory()


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path):
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert file_sha256(tmp_path / "x") == file_sha256(str(tmp_path / "x")) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("exists", [False, True])
def test_atomic_directory_appears_when_the_block_ends(tmp_path: Path, exists: bool):
    output = tmp_path / "parent" / "output"
    if exists:
        output.mkdir(parents=True)
    with atomic_directory(output) as directory:
        (directory / "x").write_text("content")
        assert not (output / "x").exists()
        assert directory.parent == output.parent  # on the same file system
    assert (output / "x").read_text() == "content"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "output cannot be written: No space left"),
        (PermissionError(13, "Permission denied", "/other/file"), UserError, "^/other/file cannot be read: Permission"),
        (ValueError("wrong weights"), ValueError, "wrong weights"),
        (KeyboardInterrupt("stopped"), KeyboardInterrupt, "stopped"),
    ],
)
def test_a_failed_atomic_directory_leaves_nothing(
    tmp_path: Path, error: BaseException, raised: type[BaseException], message: str
):
    def write() -> None:
        with atomic_directory(tmp_path / "output") as directory:
            (directory / "x").touch()
            raise error

    with pytest.raises(raised, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_atomic_directory_refuses_what_exists(tmp_path: Path):
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "thesis.tex").touch()
    file.touch()
    for output in (full, file):
        with (
            pytest.raises(UserError, match=rf"--output={output} exists and is not an empty directory\."),
            atomic_directory(output),
        ):
            pytest.fail("the block must not run")
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


def test_atomic_directory_keeps_what_another_process_wrote(tmp_path: Path):
    output = tmp_path / "output"

    def write() -> None:
        with atomic_directory(output):
            output.mkdir()
            (output / "theirs").touch()

    with pytest.raises(UserError, match="cannot be written"):
        write()
    assert [path.name for path in output.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [output]


def test_atomic_file_appears_when_the_block_ends_and_replaces_what_killed_processes_left(tmp_path: Path):
    output = tmp_path / "output"
    left = tmp_path / f".output.{2**22 + 1}.tmp"  # of a process that cannot be
    left.write_text("a part")
    for content in ("old", "new"):
        with atomic_file(output) as path:
            path.write_text(content)
            assert path.parent == output.parent
        assert output.read_text() == content

    def fail() -> None:
        with atomic_file(output) as path:
            path.write_text("a part")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="output cannot be written: No space left"):
        fail()
    assert output.read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("1024 requested and 512 written"), r"1024 requested and 512 written \(is the disk full\?\)\. Choose"),
        (OSError("no such codec"), r"no such codec\. Choose"),
    ],
)
def test_disk_is_suspected_to_be_full_only_where_less_was_written(tmp_path: Path, error: OSError, reason: str):
    with pytest.raises(UserError, match=f"output cannot be written: {reason}"), atomic_file(tmp_path / "output"):
        raise error


def test_lock_file_refuses_a_second_holder_until_closed(tmp_path: Path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        lock_file(first)
        with pytest.raises(BlockingIOError):
            lock_file(second)
        first.close()
        lock_file(second)


def test_lock_file_accepts_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fail(file: object, operation: int):
        asked.append((file, operation))
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (tmp_path / "lock").open("w") as file:
        lock_file(file)
        assert asked == [(file, fcntl.LOCK_EX | fcntl.LOCK_NB)]


def test_a_path_of_a_command_line_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expand_path("~/x") == Path("/somewhere/x")
    assert expand_path("x~") == Path("x~")
    with pytest.raises(UserError, match="a user who does not exist"):
        expand_path("~no-such-user/x")


def test_one_function_expands_paths() -> None:
    root = Path(__file__).parent.parent
    files = [path for package in ("gptjax", "data_pipelines", "configs") for path in (root / package).rglob("*.py")]
    assert [path.name for path in files if "expanduser" in path.read_text(encoding="utf-8")] == ["files.py"]


def test_text_of_a_stranger_is_read_up_to_a_size(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text("für")
    assert read_text(path, limit=4) == "für"
    with pytest.raises(ValueError, match="it has 4 bytes, more than the 3 that are read"):
        read_text(path, limit=3)
    with pytest.raises(ValueError, match="it is a directory"):
        read_text(tmp_path)
