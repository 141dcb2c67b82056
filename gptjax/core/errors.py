"""The one exception that a person can mend.

Raised wherever input from outside (a config, a file, a command line) is wrong; the doors turn it into a short
message and exit code 2. Anything else that escapes is a bug of ours and keeps its traceback.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers where there is no room for what was to be written."""


class UserError(Exception):
    """What was wrong, what was found, what was wanted and what to do: in one or two sentences."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn what a person can mend into its message on stderr and exit code 2; used by every door around its work.

    That is a `UserError`, or a file that the system would not open or write, or had no room for. Ctrl-C ends with 130.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
            print(f"error: {where}{error.strerror}. Make room and give the same command again.", file=sys.stderr)
            raise SystemExit(2) from None
        if error.filename is None:
            raise
        print(f"error: {os.fspath(error.filename)}: {error.strerror}. Choose another path.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
