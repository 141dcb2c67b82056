"""The right to write to a run directory: one command at a time, whose processes all share the directory."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptjax.core.directory_identity import LOCK, read_token
from gptjax.core.errors import UserError
from gptjax.core.files import lock_file, make_directories

SHARE_SECONDS = 60.0
"""A network file system may show a new file so much later."""
_LOOK_SECONDS = 0.5
_OPENINGS = 10
"""So often the lock is opened while others remove it."""


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[list[Path]]:
    """Hold the right to write to a run directory; a `UserError` if another command has it. It ends with the process.

    The first of several processes takes it for all, and all are refused together: one that left alone would be awaited.
    So they are if one of them has another directory under this name, where a save would wait for it forever.
    The block gets the directories that were made for it, lowest first. It may remove the lock as its last file.
    """
    made = list[Path]()
    with contextlib.ExitStack() as stack:
        failure, token = None, secrets.randbelow(2**31)
        try:
            if jax.process_index() == 0:
                stack.enter_context(_open_locked(directory, token, made))
        except OSError as error:
            failure = error
            error.filename = error.filename or str(directory / LOCK)  # writing into an open file names none
        taken, failed, token = multihost_utils.broadcast_one_to_all(
            (isinstance(failure, BlockingIOError), failure is not None, np.int32(token))
        )
        if taken:
            raise UserError(
                f"{directory}: another process is training this run. Wait for it or stop it, or choose another --name."
            )
        if failed:
            raise failure or UserError(f"{directory}: the first process cannot write there; it says why.")
        check_shared(directory, int(token))
        yield made


def _open_locked(directory: Path, token: int, made: list[Path]) -> IO[str]:
    """The locked file that has the name of the lock, with this token. New directories are added to `made`.

    A start that is refused removes its lock, perhaps between the opening and the locking here. Then another command
    could lock a new file of that name, so this one is opened again.
    """
    path, missing = directory / LOCK, None
    for _ in range(_OPENINGS):
        try:
            made += [new for new in make_directories(directory) if new not in made]
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(path.open("a"))
                lock_file(file)
                file.truncate(0)
                file.write(str(token))
                file.flush()
                # Mounts of buckets change inode numbers.
                if os.path.samestat(os.fstat(file.fileno()), path.stat()) or read_token(directory) == str(token):
                    stack.pop_all()
                    return file
        except FileNotFoundError as error:
            missing = error
    raise missing or BlockingIOError(f"{path} is removed again and again")


def check_shared(directory: Path, token: int, *, seconds: float = SHARE_SECONDS) -> None:
    """Raise a `UserError` on all processes unless each finds this number in the lock that the first one has written."""
    if jax.process_count() == 1:
        return
    end = time.monotonic() + seconds
    while not (is_there := read_token(directory) == str(token)) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    found = np.ravel(multihost_utils.process_allgather(np.asarray(is_there)))
    if missing := [str(i) for i in np.flatnonzero(~found)]:
        who = f"process {missing[0]} has" if len(missing) == 1 else f"processes {', '.join(missing)} have"
        raise UserError(
            f"{directory}: {who} another directory of this name than process 0. All need one that they share: give "
            "--output-dir a path on a shared file system, the same for all."
        )
