"""Memory that a process keeps between steps."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
"""Parameters of mallopt, as glibc's malloc.h numbers them."""


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, for a program that allocates the same large buffers in every step.

    By default glibc returns large buffers to the system and requests them again, page by page. Call this before the
    process has a second thread, so before NumPy and JAX are imported: a thread that has an arena of its own keeps it,
    and large buffers of such arenas go back to the system whatever is set. The process does not shrink afterwards.

    Returns:
        False, with nothing changed, if the C library is not glibc, or if the user decides: by `GPTJAX_KEEP_MEMORY=0`
        or glibc's own variables (`MALLOC_MMAP_MAX_`, `MALLOC_TRIM_THRESHOLD_`, `MALLOC_ARENA_MAX`).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or os.environ.get("GPTJAX_KEEP_MEMORY") == "0":
        return False
    never = -1  # any number that an int holds would return the buffers of a step of 2 GiB or more
    return _set_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: never, _ARENA_MAX: 1})


def return_freed_memory() -> bool:
    """Let malloc return what is freed, as it does by default, after `keep_freed_memory`.

    The threshold from which a buffer is returned stays at 32 MiB, the highest that glibc's own adaptation reaches.
    """
    return _set_malloc({_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _ARENA_MAX: 0})


def _set_malloc(settings: dict[int, int]) -> bool:
    """Whether the C library is glibc and took the settings."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (raises where the library is not glibc)
    except (AttributeError, OSError, TypeError):
        return False
    results = [library.mallopt(parameter, value) for parameter, value in settings.items()]
    return all(results)


def release_freed_memory() -> bool:
    """Return what was freed so far to the system, although `keep_freed_memory` keeps what is freed from now on.

    Compilation leaves up to a gigabyte behind. Returns False if the C library is not glibc, or had nothing to return.
    """
    try:
        return ctypes.CDLL(None).malloc_trim(0) == 1
    except (AttributeError, OSError, TypeError):
        return False
