"""Weights with axis names, and their use outside products: drawn sharded, cast, gathered, looked up."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.core.lazy import LazyModule
from gptjax.sharding.axes import BT
from gptjax.sharding.mesh import MeshConfig, reshard

if TYPE_CHECKING:
    from flax import nnx
else:
    nnx = LazyModule("flax.nnx")  # half a second


def normal_param(
    key: Array, axis_names: str, shape: tuple[int, ...], *, std: float, mesh: MeshConfig
) -> "nnx.Param[Array]":
    """A float32 parameter drawn from N(0, std²), sharded from the start as its axis names demand."""
    normal = jax.random.normal(key, shape, jnp.float32, out_sharding=mesh.weight_spec(axis_names))
    return nnx.Param(std * normal, axis_names=axis_names)


def constant_param(value: float, axis_names: str, shape: tuple[int, ...], *, mesh: MeshConfig) -> "nnx.Param[Array]":
    """A float32 parameter that starts as one number everywhere."""
    filled = jnp.full(shape, value, jnp.float32, out_sharding=mesh.weight_spec(axis_names))  # pyright: ignore[reportCallIssue]
    return nnx.Param(filled, axis_names=axis_names)


def gather(parameter: "nnx.Param[Array]", mesh: MeshConfig) -> Array:
    """A weight as stored, gathered over fsdp.

    It is float32, and activations meet it in float32: its gradient is a sum over tokens.
    """
    return reshard(parameter[...], mesh.unsharded_spec(parameter.axis_names))


def embedding_lookup(table: Float[Array, "rows width"], ids: BT, mesh: MeshConfig) -> Float[Array, "B T width"]:
    """The rows of a gathered float32 table that the ids name.

    The gradients of all occurrences of an id are added one by one, so the table must be float32: a bfloat16 sum stands
    still at 256 times what is added. Cast the result.
    """
    return table[ids] if not mesh.is_sharded else table.at[ids].get(out_sharding=mesh.activation_spec("BTD"))
