"""Options of the compiler: for the same bits in every run, and for programs of few calls.

A training step runs for hours, so XLA may take its time. An evaluation has a program for each length of its batches,
and each runs a few times: there compilation is a large part of the whole.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from gptjax.sharding.devices import target_device

R = TypeVar("R")

DETERMINISTIC_OPTIONS: dict[str, bool | str] = {"xla_gpu_deterministic_ops": True}
"""Same bits in every run on a GPU: sums without atomic additions, cuDNN's deterministic gradient of attention, and no
choice of kernels by time. openxla/xla pull requests 12520 and 14125; known to jaxlib 0.10 to 0.12."""
FEW_CALLS_OPTIONS: dict[str, bool | str | int] = {"xla_backend_optimization_level": 1}
"""On a CPU: half of the time to compile a forward pass, and the same time to run it.

benchmarks/RESULTS.md, "Tasks of the harness", has the figures. They are not for decoding or training steps.
"""


def jit_for_few_calls(function: Callable[..., R]) -> Callable[..., R]:
    """`jax.jit` for a forward pass. On CPUs LLVM does less; on other devices nothing changes.

    It may not be called inside another compiled function, for XLA takes options for whole programs only.
    """

    @functools.cache
    def compile_for(platform: str) -> Any:
        # Where the user has XLA optimise nothing, as tests do, an option of ours would have it do more.
        is_changed = platform == "cpu" and not jax.config.read("jax_disable_most_optimizations")
        return jax.jit(function, compiler_options=FEW_CALLS_OPTIONS if is_changed else None)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        return compile_for(target_device().platform)(*args, **kwargs)

    return call
