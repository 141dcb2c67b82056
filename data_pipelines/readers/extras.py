"""Packages that only some sources need: imported where they are used, and named when they are missing."""

import contextlib
from collections.abc import Iterator

from gptjax.errors import UserError


@contextlib.contextmanager
def needs_extra(extra: str, *, what: str) -> Iterator[None]:
    """Turn a missing package into a `UserError`: `what` needs it, and the extra `extra` brings it."""
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise UserError(f"{what} needs {missing}, which is not installed: {install(extra)}.") from None


def install(extra: str) -> str:
    """The command that brings an extra."""
    return f"pip install 'gptjax[{extra}]'"
