"""Optional packages, imported where they are used and named when they are missing."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from gptjax.core.errors import UserError


@contextlib.contextmanager
def needs_extra(extra: str, *, what: str) -> Iterator[None]:
    """Turn a missing package into a `UserError`: `what` needs it, and the extra `extra` installs it."""
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise UserError(f"{what} needs {missing}, which is not installed: pip install 'gptjax[{extra}]'.") from None


def import_pyarrow(*, what: str) -> Any:
    """Import `pyarrow` for `what`."""
    # Its other allocators keep large pages that were freed; the choice is made at the first import.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with needs_extra("data", what=what):
        import pyarrow
    return pyarrow
