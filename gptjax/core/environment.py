"""Variables and limits of the environment with which no run can go well. Nothing here imports JAX."""

import os
import resource
from collections.abc import Mapping

from gptjax.core.errors import UserError

MIN_ADDRESS_SPACE = 3 * 2**30
"""Bytes. A tiny run on two cores needs 2 to 4 GiB; at fewer, threads of XLA or Orbax cannot be started and abort it."""
_TRUE = ("1", "true", "yes", "on")


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Raise a UserError that names the variable or the limit. Call it before JAX is imported."""
    if environment.get("JAX_ENABLE_X64", "").lower() in _TRUE:
        raise UserError("JAX_ENABLE_X64 is set, but gptjax trains in float32 and counts in int32. Unset it.")
    if environment.get("JAX_DISABLE_JIT", "").lower() in _TRUE:
        raise UserError("JAX_DISABLE_JIT is set, but a training step is compiled as a whole. Unset it.")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_SPACE:
        raise UserError(
            f"This process may map {limit / 2**30:.1f} GiB of memory; JAX and its threads need more. Raise the limit: "
            "ulimit -v unlimited, or the memory that the scheduler grants."
        )
