"""Variables and limits of the environment with which no run can go well. Nothing here imports JAX."""

import os
import resource
from collections.abc import Mapping

from gptjax.core.errors import UserError

MIN_ADDRESS_SPACE = 3 * 2**30
"""Bytes. A tiny run on two cores needs 2 to 4 GiB; at fewer, threads of XLA or Orbax cannot be started and abort it."""
_TRUE = ("1", "true", "yes", "on")
_REFUSED = {
    "JAX_ENABLE_X64": (_TRUE, "gptjax trains in float32 and counts in int32"),
    "JAX_DISABLE_JIT": (_TRUE, "a training step is compiled as a whole"),
    "JAX_NUMPY_DTYPE_PROMOTION": (("strict",), "gptjax computes with several dtypes"),
}
"""Values of JAX's variables with which nothing is trained, and why."""


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Raise a UserError that names the variable or the limit. Call it before JAX is imported."""
    for name, (values, reason) in _REFUSED.items():
        if (value := environment.get(name, "").lower()) in values:
            raise UserError(f"{name} is set to {value}, but {reason}. Unset it.")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_SPACE:
        raise UserError(
            f"This process may map {limit / 2**30:.1f} GiB of memory; JAX and its threads need more. Raise the limit: "
            "ulimit -v unlimited, or the memory that the scheduler grants."
        )
