"""Weights with axis names, and their use: drawn sharded, cast, gathered, multiplied, looked up."""

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


def cast_and_gather(parameter: "nnx.Param[Array]", dtype: str, mesh: MeshConfig) -> Array:
    """A weight as products need it: cast first, so that fewer bytes travel, then gathered over fsdp."""
    return reshard(parameter[...].astype(dtype), mesh.unsharded_spec(parameter.axis_names))


def project(axis_names: str, x: Array, w: Array, mesh: MeshConfig) -> Array:
    """`einsum` of activations (B, T, …) with a weight, such as "BTD,DF->BTF". B and T are one axis meanwhile.

    On CPUs this saves about a quarter of a training step (LAB.md).
    """
    ins, out = axis_names.split("->")
    sizes = dict(zip(ins.replace(",", ""), (*x.shape, *w.shape), strict=True))
    activation, weight = ins.replace("BT", "M").split(",")
    product = jnp.einsum(
        f"{activation},{weight}->{out.replace('BT', 'M')}",
        jnp.reshape(x, (-1, *x.shape[2:]), out_sharding=mesh.activation_spec(activation)),
        w,
        out_sharding=mesh.activation_spec(out.replace("BT", "M")),
    )
    return jnp.reshape(product, tuple(sizes[letter] for letter in out), out_sharding=mesh.activation_spec(out))


def embedding_lookup(table: Float[Array, "rows width"], ids: BT, mesh: MeshConfig) -> Float[Array, "B T width"]:
    """The rows of a gathered table that the ids name."""
    return table[ids] if not mesh.is_sharded else table.at[ids].get(out_sharding=mesh.activation_spec("BTD"))
