"""Variables and limits of the environment with which no run can go well, and misspelt ones. Imports no JAX."""

import difflib
import os
import resource
from collections.abc import Iterable, Mapping

from gptjax.core.errors import UserError, quote

MIN_ADDRESS_SPACE = 3 * 2**30
"""Bytes. A tiny run on two cores needs 2 to 4 GiB; at fewer, threads of XLA or Orbax cannot be started and abort it."""
_TRUE = ("1", "true", "yes", "on", "y", "t")
_FALSE = ("0", "false", "no", "off", "n", "f")
_OF_GPTJAX = (
    *("GPTJAX_CACHE", "GPTJAX_COMPILE_CACHE", "GPTJAX_DISTRIBUTED", "GPTJAX_JOIN_SECONDS", "GPTJAX_KEEP_MEMORY"),
    *("GPTJAX_REQUEUE_SIGNALS", "GPTJAX_STOP_SIGNALS", "GPTJAX_SUPERVISED", "GPTJAX_TRACEBACK"),
)
_OF_LIBRARIES = (
    *("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS", "JAX_COORDINATOR_PORT", "JAX_LOCAL_DEVICE_IDS"),
    *("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_PARTITION_INDEX", "JAX_SLICE_INDEX", "XLA_FLAGS"),
    *("XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"),
    *("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ABORT_COLLECTIVES_ON_FAILURE"),
    *("XLA_PYTHON_CLIENT_COLLECTIVE_MEM_SIZE_MB", "XLA_PYTHON_CLIENT_USE_TFRT_GPU_CLIENT"),
)
"""Variables of JAX and XLA that are no options of `jax.config`."""
_ALIKE = 0.85
"""Names with at least so much in common (`difflib`) are taken for misspelt: a library may read others of its own."""
_REFUSED = {
    "JAX_ENABLE_X64": (_TRUE, "gptjax trains in float32 and counts in int32"),
    "JAX_DISABLE_JIT": (_TRUE, "a training step is compiled as a whole"),
    "JAX_NUMPY_DTYPE_PROMOTION": (("strict",), "gptjax computes with several dtypes"),
    "JAX_THREEFRY_PARTITIONABLE": (_FALSE, "gptjax draws the same random numbers on every mesh"),
    "JAX_DEFAULT_PRNG_IMPL": (("rbg", "unsafe_rbg"), "the seeds of a run stand for random numbers of threefry2x32"),
}
"""Values of JAX's variables with which nothing is trained, and why."""


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Raise a UserError that names the variable or the limit. Call it before JAX is imported."""
    for name, (values, reason) in _REFUSED.items():
        if (value := environment.get(name, "").lower()) in values:
            raise UserError(f"{name} is set to {value}, but {reason}. Unset it.")
    os.umask(mask := os.umask(0o077))
    if mask & 0o700 and os.geteuid() != 0:
        raise UserError(f"The umask is {mask:03o}: this user could not read what it writes. Give umask 022.")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_SPACE:
        raise UserError(
            f"This process may map {limit / 2**30:.1f} GiB of memory; JAX and its threads need more. Raise the limit: "
            "ulimit -v unlimited, or the memory that the scheduler grants."
        )


def describe_misspelt(known: Iterable[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """A note for each variable that nobody reads and whose name is almost one of gptjax's or of `known`, as JAX's."""
    known, notes = {*known, *_OF_GPTJAX, *_OF_LIBRARIES}, []
    for name in sorted(environment):
        if not name.startswith(("GPTJAX_", "JAX_", "XLA_")) or name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
        if close or name.startswith("GPTJAX_"):
            meant = f" Did you mean {close[0]}?" if close else ""
            effect = "has no effect" if name.startswith("GPTJAX_") else "may have no effect"
            notes.append(f"note: the variable {quote(name)} {effect}: none of this name is known.{meant}")
    return notes
