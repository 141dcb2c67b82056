"""Tells a directory from another one that has taken its path, as when a run was moved and a new one begins there."""

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path

LOCK = ".lock"
"""The file with the token of the command that may write to a run directory; see `gptjax.runs.run_lock`."""


@dataclass(frozen=True)
class DirectoryIdentity:
    """What a directory was when it was opened.

    Two commands have different tokens. Inode numbers decide only where a token is missing: mounts of buckets change
    them.
    """

    path: Path
    token: str | None
    status: os.stat_result

    @classmethod
    def read(cls, path: Path) -> "DirectoryIdentity":
        """Raises an `OSError` if there is none."""
        return cls(path, read_token(path), path.stat())

    def is_replaced(self) -> bool:
        """Whether another directory has this path now. False if none has."""
        token = read_token(self.path)
        with contextlib.suppress(OSError):
            if token is None or self.token is None:
                return not os.path.samestat(self.status, self.path.stat())
            return token != self.token
        return False

    def check(self) -> None:
        """Raise an `OSError` if another directory has this path now, or none."""
        if not self.path.is_dir():
            raise OSError(errno.ENOENT, f"{self.path} was moved or deleted; put it back")
        if self.is_replaced():
            raise OSError(errno.ESTALE, f"{self.path} is of another command now: this run was moved; put it back")


def read_token(directory: Path) -> str | None:
    """The token in the lock of a directory; None without one."""
    with contextlib.suppress(OSError, ValueError):
        return (directory / LOCK).read_text() or None
    return None
