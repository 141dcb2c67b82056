import os
import platform
import subprocess
import sys

import pytest

KEEP_AND_MEASURE = """
import ctypes, resource
from gptjax.process.memory import keep_freed_memory, release_freed_memory
kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(4):
    address = libc.malloc(64 * 2**20)
    ctypes.memset(address, 1, 64 * 2**20)
    libc.free(address)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
count_pages = lambda: int(open("/proc/self/statm").read().split()[1])
before, returned = count_pages(), release_freed_memory()
print(kept, faults, (before - count_pages()) * resource.getpagesize() if returned else 0)
"""
requires_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def keep_and_measure(**variables: str) -> tuple[bool, int, int]:
    """(freed memory is kept, page faults of a process that uses 64 MiB four times, bytes it can return then)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GPTJAX_KEEP"))}
    words = [sys.executable, "-c", KEEP_AND_MEASURE]
    printed = subprocess.run(words, env=inherited | variables, capture_output=True, text=True, check=True).stdout
    kept, faults, returned = printed.split()
    return kept == "True", int(faults), int(returned)


@requires_glibc
def test_freed_memory_is_kept_until_it_is_released_unless_the_user_decides() -> None:
    kept, few, returned = keep_and_measure()
    refused, many, _ = keep_and_measure(GPTJAX_KEEP_MEMORY="0")
    assert (kept, refused) == (True, False)
    assert many - few > 2 * 64 * 2**20 / os.sysconf("SC_PAGE_SIZE")
    assert returned > 60 * 2**20
    assert keep_and_measure(MALLOC_ARENA_MAX="2")[0] is False
