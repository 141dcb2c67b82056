"""Programs that are compiled for few calls.

A training step runs for hours, so XLA may take its time. An evaluation has a program for each length of its batches,
and each runs a few times: there compilation is a large part of the whole.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from gptjax.sharding.devices import target_device

R = TypeVar("R")

FEW_CALLS_OPTIONS: dict[str, bool | str | int] = {"xla_backend_optimization_level": 1}
"""On a CPU: half of the time to compile a forward pass, and the same time to run it.

benchmarks/RESULTS.md, "Tasks of the harness", has the figures. Decoding and training steps do not have them.
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
