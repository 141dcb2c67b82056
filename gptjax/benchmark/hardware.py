"""What the devices of this run can do: a large matrix product and a large read, measured beside the rest."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.benchmark.timing import FunctionContestant

PRODUCT_SIZE = {"cpu": 1536, "gpu": 8192, "tpu": 8192}
"""Rows and columns of the matrices, by platform: large enough that a device is busy."""
READ_BYTES = {"cpu": 2**28, "gpu": 2**31, "tpu": 2**30}
"""Bytes of the array that is read: more than any cache."""
PRODUCT, READ = "matrix product", "memory read"


def matmul_contestant(devices: Sequence[Any], dtype: str) -> tuple[FunctionContestant, float]:
    """A product of two square matrices on each device at once, and its FLOPs on all of them.

    Operands are of `dtype`, sums float32. Float32 products have float32 precision, as in training.
    """
    size = PRODUCT_SIZE.get(devices[0].platform, 4096)

    @jax.jit
    def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return jnp.matmul(x, y, preferred_element_type=jnp.float32)

    pairs = [jax.device_put((jnp.ones((size, size), dtype), jnp.ones((size, size), dtype)), d) for d in devices]
    run = lambda: jax.block_until_ready([multiply(x, y) for x, y in pairs])
    return FunctionContestant(PRODUCT, run), 2.0 * size**3 * len(devices)


def read_contestant(device: Any) -> tuple[FunctionContestant, float]:
    """A sum over a large float32 array on one device, and the bytes that it reads."""
    size = READ_BYTES.get(device.platform, 2**28)
    array = jax.device_put(jnp.ones(size // 4, jnp.float32), device)
    total = jax.jit(jnp.sum)
    return FunctionContestant(READ, lambda: total(array).block_until_ready()), float(size)
