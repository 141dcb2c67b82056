"""`UserError`, the exception for faults that a user can correct, and its exit code.

It is raised wherever outside input (a config, a file, a command line) is wrong. Entry points turn it into a short
message and exit code 2. Any other exception that escapes is a bug in gptjax and keeps its traceback.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for a full disk, an exhausted quota and a file that is too large."""


class UserError(Exception):
    """Says in one or two sentences what was wrong, what was found, what was wanted and what to do."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a user's error into a message on stderr and exit code 2. Every entry point runs inside this context.

    A `UserError`, a full disk and a file that cannot be opened or written count as such. Ctrl-C exits with code 130.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
            print(f"error: {where}{error.strerror}. Free space and give the same command again.", file=sys.stderr)
            raise SystemExit(2) from None
        if error.filename is None:
            raise
        print(f"error: {os.fspath(error.filename)}: {error.strerror}. Choose another path.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
