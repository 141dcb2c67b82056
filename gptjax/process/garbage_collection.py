"""Python's garbage collector during start-up."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def postpone_garbage_collection() -> Iterator[None]:
    """Collect no garbage in the block, and never visit afterwards what it has made.

    Imports make a million objects that live as long as the process. Each full collection would visit all of them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
