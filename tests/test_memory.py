import os
import platform
import subprocess
import sys

import pytest

KEEP_AND_MEASURE = """
import ctypes, resource
from gptjax.core.memory import keep_freed_memory
kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(4):
    address = libc.malloc(64 * 2**20)
    ctypes.memset(address, 1, 64 * 2**20)
    libc.free(address)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
requires_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def keep_and_measure(**variables: str) -> tuple[bool, int]:
    """(freed memory is kept, page faults of a process that uses 64 MiB four times)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GPTJAX_KEEP"))}
    words = [sys.executable, "-c", KEEP_AND_MEASURE]
    printed = subprocess.run(words, env=inherited | variables, capture_output=True, text=True, check=True).stdout
    kept, faults = printed.split()
    return kept == "True", int(faults)


@requires_glibc
def test_freed_memory_is_kept_unless_the_user_decides() -> None:
    kept, few = keep_and_measure()
    refused, many = keep_and_measure(GPTJAX_KEEP_MEMORY="0")
    assert (kept, refused) == (True, False)
    assert many - few > 2 * 64 * 2**20 / os.sysconf("SC_PAGE_SIZE")
    assert keep_and_measure(MALLOC_ARENA_MAX="2")[0] is False
