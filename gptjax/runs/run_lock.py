"""The right to write to a run directory: one command at a time, whose processes all share the directory."""

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptjax.core.directory_identity import LOCK, read_token
from gptjax.core.errors import UserError
from gptjax.core.files import lock_file, make_directories

SHARE_SECONDS = 60.0
"""A network file system may show a new file so much later."""
_LOOK_SECONDS = 0.5


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold the right to write to a run directory; a `UserError` if another command has it. It ends with the process.

    The first of several processes takes it for all, and all are refused together: one that left alone would be awaited.
    So they are if one of them has another directory under this name, where a save would wait for it forever.
    """
    with contextlib.ExitStack() as stack:
        failure, token = None, secrets.randbelow(2**31)
        try:
            if jax.process_index() == 0:
                make_directories(directory)
                file = stack.enter_context((directory / LOCK).open("a"))
                lock_file(file)
                file.truncate(0)
                file.write(str(token))
                file.flush()
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
        yield


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
