"""What the devices of this run can do: a large matrix product and a large read, measured beside the rest."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.benchmark.timing import FunctionContestant
from gptjax.sharding.mesh import MeshConfig

PRODUCT_SIZE = {"cpu": 1536, "gpu": 8192, "tpu": 8192}
"""Rows and columns of the matrices, by platform: large enough that a device is busy."""
READ_BYTES = {"cpu": 2**28, "gpu": 2**31, "tpu": 2**30}
"""Bytes of the array that is read: more than any cache."""
PRODUCT, READ = "matrix product", "memory read"


def matmul_contestant(mesh: MeshConfig, dtype: str) -> tuple[FunctionContestant, float]:
    """A product of two square matrices on each device at once, and its FLOPs on all of them, under `mesh.activate()`.

    Operands are of `dtype`, sums float32. Float32 products have float32 precision, as in training.
    """
    size = PRODUCT_SIZE.get(jax.default_backend(), 4096)
    multiply = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32))
    x, y = (_on_each_device(jnp.ones((size, size), dtype), mesh) for _ in range(2))
    return FunctionContestant(PRODUCT, lambda: multiply(x, y).block_until_ready()), 2.0 * size**3 * mesh.num_devices


def read_contestant(mesh: MeshConfig) -> tuple[FunctionContestant, float]:
    """A sum over a large float32 array on each device, and the bytes that all read, under `mesh.activate()`."""
    size = READ_BYTES.get(jax.default_backend(), 2**28)
    array = _on_each_device(jnp.ones(size // 4, jnp.float32), mesh)
    total = jax.jit(jnp.sum)
    return FunctionContestant(READ, lambda: total(array).block_until_ready()), float(size * mesh.num_devices)


def _on_each_device(array: jax.Array, mesh: MeshConfig) -> jax.Array:
    """A copy on every device. Each then does the whole work."""
    if not mesh.is_sharded:
        return array
    return jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), PartitionSpec()))
