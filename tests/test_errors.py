"""Errors of a user become a message on stderr and an exit code; bugs keep their traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptjax.core.errors import UserError, count_of, exit_on_user_error, format_message, quote, quote_error


def exit_with(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """(exit code, stderr) of an entry point that raises an error."""
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise error
    captured = capsys.readouterr()
    assert captured.out == ""
    return stopped.value.code, captured.err


def test_deleted_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        Path("x").absolute()
    monkeypatch.chdir(tmp_path)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: The current directory was deleted.")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("steps is 0. Give 1 or more."), 2, "error: steps is 0. Give 1 or more.\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "error: /x: Permission denied. Choose another path.\n",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", Path("/x")),
            2,
            "error: /x: No such file. Choose another path.\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left", "/x"),
            2,
            "error: /x: No space left. Free space and give the same command again.\n",
        ),
        (
            OSError(errno.EDQUOT, "Quota exceeded"),
            2,
            "error: Quota exceeded. Free space and give the same command again.\n",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "/x"),
            2,
            "error: /x: Too many open files. Raise the limit (ulimit -n 4096) and give the same command again.\n",
        ),
        (
            OSError(errno.EIO, "Input/output error", "/x"),
            2,
            "error: /x: Input/output error. The disk, or the connection to it, may be faulty: dmesg tells more.\n",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            2,
            "error: Input/output error. The disk, or the connection to it, may be faulty, or the terminal gone: dmesg "
            "tells more.\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_of_the_user_exits_with_its_message(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert exit_with(error, capsys) == (code, message)


def test_file_system_without_room_for_a_file_is_no_full_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=60, f_ffree=0, f_bavail=9))
    told = "error: /x: No space left. The file system can hold no more files (df -i). Remove some and give the same "
    assert exit_with(OSError(errno.ENOSPC, "No space left", "/x"), capsys) == (2, told + "command again.\n")


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EINVAL, "a bug")])
def test_a_bug_keeps_its_traceback(error: Exception):
    with pytest.raises(type(error), match="a bug"), exit_on_user_error():
        raise error


def test_exit_on_user_error_passes_results_and_exits_through():
    with exit_on_user_error():
        pass
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise SystemExit(75)
    assert stopped.value.code == 75


@pytest.mark.parametrize("word", ["--version", "--help"])
@pytest.mark.parametrize("variables", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_output_that_nobody_reads_ends_quietly(word: str, variables: dict[str, str]):
    code = f"from gptjax.__main__ import main; import sys; sys.argv[1:] = ['{word}']; main()"
    words = [sys.executable, "-c", code]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | variables
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        done = subprocess.run(words, stdout=nobody, stderr=subprocess.PIPE, env=env, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_output_to_a_full_disk_is_one_line():
    code = "from gptjax.__main__ import main; import sys; sys.argv[1:] = ['--help']; main()"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "No space left on device. Free space" in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("a\nerror: b", r"a\nerror: b"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\u202e\ud800", r"\u202e\ud800"),
        ("a" * 300, "a" * 200 + "…"),
    ],
)
def test_text_of_strangers_stays_on_one_line(text: str, shown: str):
    assert quote(text) == shown


def test_an_error_of_another_library_is_told_on_one_line():
    assert quote_error(ValueError("Unknown split.\n  Known: a\x1b, b.\n")) == r"Unknown split. Known: a\x1b, b"


def test_no_line_of_a_message_but_the_first_begins_at_the_margin():
    assert format_message("error: a\nerror: b\n\x1b[0m") == "error: a\n  error: b\n  \\x1b[0m"


@pytest.mark.parametrize(
    ("path", "advice"), [("/h/.cache/x", "Set GPTJAX_CACHE"), ("/h", "Set GPTJAX_CACHE"), ("/h/x", "Choose")]
)
def test_home_that_cannot_be_written_is_avoided_by_a_variable(
    path: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("GPTJAX_CACHE", raising=False)
    with pytest.raises(SystemExit), exit_on_user_error():
        raise OSError(errno.EROFS, "Read-only file system", path)
    assert f"error: {path}: Read-only file system. {advice}" in capsys.readouterr().err


def test_count_of_names_one_thing_in_the_singular():
    plurals = ("documents", "processes", "losses", "caches", "layers × 32", "lines are", "files of a set")
    assert [count_of(1, plural) for plural in plurals] == [
        *("1 document", "1 process", "1 loss", "1 cache", "1 layer × 32", "1 line is", "1 file of a set")
    ]
    assert count_of(1200, "documents") == "1,200 documents"


def test_file_that_may_not_be_read_is_to_be_made_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SystemExit), exit_on_user_error():
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    assert (
        capsys.readouterr().err == f"error: {tmp_path}: Permission denied. Make it readable, or choose another path.\n"
    )
