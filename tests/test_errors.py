"""Errors of a user become a message on stderr and an exit code; bugs keep their traceback."""

import errno
from pathlib import Path

import pytest

from gptjax.core.errors import UserError, exit_on_user_error


def exit_with(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """(exit code, stderr) of an entry point that raises an error."""
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise error
    captured = capsys.readouterr()
    assert captured.out == ""
    return stopped.value.code, captured.err


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
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_of_the_user_exits_with_its_message(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert exit_with(error, capsys) == (code, message)


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
