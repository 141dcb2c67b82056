import os
import platform
import subprocess
import sys

import jax
import pytest

from gptjax.sharding import devices

KEEP_AND_MEASURE = """
import ctypes, resource
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: a fault is one of a small page
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
KEEP_THREE_GIBIBYTES = """
import ctypes
from gptjax.process.memory import keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
count_pages = lambda: int(open("/proc/self/statm").read().split()[0])  # of addresses: none of them is touched
address = libc.malloc(ctypes.c_size_t(3 * 2**30))
held = count_pages()
libc.free(address)
print(held - count_pages())
"""
COUNT_FAULTS_OF_STEPS = """
import resource, sys
sys.argv = ["-m"]  # as Python has it while it imports the packages above a module
import gptjax
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.sin(x) @ jnp.cos(x)).sum())
x = jnp.ones((1536, 1536))
def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sorted([count_faults() for _ in range(40)][20:])[10])  # after the heap has grown around small blocks
"""
requires_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def run_python(script: str, **variables: str) -> list[str]:
    """The words that a process prints which runs the script."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GPTJAX_KEEP"))}
    words = [sys.executable, "-c", script]
    return subprocess.run(words, env=inherited | variables, capture_output=True, text=True, check=True).stdout.split()


def keep_and_measure(**variables: str) -> tuple[bool, int, int]:
    """(freed memory is kept, page faults of a process that uses 64 MiB four times, bytes it can return then)."""
    kept, faults, returned = run_python(KEEP_AND_MEASURE, **variables)
    return kept == "True", int(faults), int(returned)


@requires_glibc
def test_a_buffer_of_more_than_two_gibibytes_is_kept_too() -> None:
    (returned,) = run_python(KEEP_THREE_GIBIBYTES)
    assert returned == "0"


@requires_glibc
def test_freed_memory_is_kept_until_it_is_released_unless_the_user_decides() -> None:
    kept, few, returned = keep_and_measure()
    refused, many, _ = keep_and_measure(GPTJAX_KEEP_MEMORY="0")
    assert (kept, refused) == (True, False)
    assert many - few > 2 * 64 * 2**20 / os.sysconf("SC_PAGE_SIZE")
    assert returned > 32 * 2**20, "of 64 MiB, of which the system counts some late"
    assert keep_and_measure(MALLOC_ARENA_MAX="2")[0] is False


@requires_glibc
def test_a_command_computes_in_the_memory_that_the_last_step_freed() -> None:
    """It does only if malloc is told before there are threads with arenas of their own."""
    (faults,) = run_python(COUNT_FAULTS_OF_STEPS)
    pages_of_a_buffer = 1536 * 1536 * 4 // os.sysconf("SC_PAGE_SIZE")
    assert int(faults) < pages_of_a_buffer / 8


@pytest.mark.parametrize(("platform", "taken_back"), [("cpu", []), ("gpu", [True])])
def test_other_devices_than_cpus_return_freed_memory(
    monkeypatch: pytest.MonkeyPatch, platform: str, taken_back: list[bool]
) -> None:
    calls = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(devices, "return_freed_memory", lambda: calls.append(True))
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    devices.start_backend()
    assert calls == taken_back
