"""The one exception that a person can mend.

Raised wherever input from outside (a config, a file, a command line) is wrong; the doors turn it into a short
message and exit code 2. Anything else that escapes is a bug of ours and keeps its traceback.
"""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """What was wrong, what was found, what was wanted and what to do: in one or two sentences."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn a `UserError` into its message on stderr and exit code 2; used by every door around its work."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
