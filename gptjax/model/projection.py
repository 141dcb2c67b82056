"""Products of activations with a weight, which may be sharded, stored for decoding or have an adapter.

The gradient of a weight is float32 on every backend, for it is a sum over all tokens.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gptjax.model.products import activation_dtype, multiply
from gptjax.model.stored_matrix import StoredMatrix, multiply_stored
from gptjax.sharding.devices import target_device
from gptjax.sharding.mesh import MeshConfig, reshard


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankMatrix:
    """A weight with an adapter: W + scale · A B. `project` multiplies with W and with A, B, and adds the results.

    Its fields are `Any`, because the gradient of layers that are not scanned makes one of placeholders.
    """

    weight: Any
    a: Any
    """The axes of the weight's inputs, then the rank."""
    b: Any
    """The rank, then the axes of the weight's outputs."""
    scale: float = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def __getitem__(self, index: Any) -> "LowRankMatrix":
        return jax.tree.map(lambda array: array[index], self)


def project(
    axis_names: str, x: Array, w: Array | StoredMatrix | LowRankMatrix, *, dtype: str, mesh: MeshConfig
) -> Array:
    """`einsum` of activations (B, T, …) with a stored weight, such as "BTD,DF->BTF". The result has `x`'s dtype.

    The weight is float32 as stored, or already cast. It is cast to `dtype` and gathered over fsdp here. B and T are one
    axis meanwhile, which saves CPUs about a quarter of a training step
    (benchmarks/RESULTS.md, "Merged tokens").
    """
    ins, out = axis_names.split("->")
    if isinstance(w, LowRankMatrix):
        activation, weight = ins.split(",")
        inputs = activation.removeprefix("BT")
        multiply_by = partial(project, dtype=dtype, mesh=mesh)
        reduced = multiply_by(f"{activation},{inputs}R->BTR", x, w.a)
        correction = multiply_by(f"BTR,R{weight.removeprefix(inputs)}->{out}", reduced, w.b)
        return multiply_by(axis_names, x, w.weight) + (w.scale * correction).astype(x.dtype)
    activation, weight = ins.replace("BT", "M").split(",")
    rows = jnp.reshape(x, (-1, *x.shape[2:]), out_sharding=mesh.activation_spec(activation))
    sizes = dict(zip(ins.replace(",", ""), (*x.shape, *w.shape), strict=True))
    if not isinstance(w, StoredMatrix) and (mesh.is_sharded or target_device().platform != "cpu"):
        product: Any = _einsum((activation, weight, out.replace("BT", "M")), dtype, mesh, rows, w)
        return jnp.reshape(product, tuple(sizes[name] for name in out), out_sharding=mesh.activation_spec(out))
    contracted = len(activation) - 1
    inputs = rows.reshape(len(rows), -1)
    if isinstance(w, StoredMatrix):
        product = multiply_stored(inputs, w, dtype=dtype)
    else:
        product = multiply(inputs, w.reshape(inputs.shape[1], -1), dtype=dtype)
    free = "BT" + weight[contracted:]
    product = product.reshape(tuple(sizes[name] for name in free))
    return product.transpose([free.index(name) for name in out]).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _einsum(axis_names: tuple[str, str, str], dtype: str, mesh: MeshConfig, x: Array, w: Array) -> Array:
    """Activations times a weight, over a mesh or on an accelerator, in `x`'s dtype.

    The weight's gradient is float32, and sharded like the weight.
    """
    activation, weight, out = axis_names
    gathered = reshard(w.astype(dtype), mesh.unsharded_spec(weight))
    product = jnp.einsum(
        f"{activation},{weight}->{out}",
        _round_operand(x, dtype),
        _round_operand(gathered, dtype),
        out_sharding=mesh.activation_spec(out),
    )
    return product.astype(x.dtype)


def _round_operand(x: Array, dtype: str) -> Array:
    """`x` in `dtype`. Of several CPU devices, a test's stand-in for accelerators, XLA multiplies float32 alone."""
    return x.astype(dtype).astype(activation_dtype(dtype))


def _einsum_forward(
    axis_names: tuple[str, str, str], dtype: str, mesh: MeshConfig, x: Array, w: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _einsum(axis_names, dtype, mesh, x, w), (x, w)


def _einsum_backward(
    axis_names: tuple[str, str, str], dtype: str, mesh: MeshConfig, saved: tuple[Array, Array], d_out: Array
) -> tuple[Array, Array]:
    activation, weight, out = axis_names
    x, w = saved
    gathered = reshard(w.astype(dtype), mesh.unsharded_spec(weight))
    d_out = _round_operand(d_out, dtype)
    d_x = jnp.einsum(
        f"{out},{weight}->{activation}",
        d_out,
        _round_operand(gathered, dtype),
        out_sharding=mesh.activation_spec(activation),
    )
    d_w = jnp.einsum(
        f"{activation},{out}->{weight}",
        _round_operand(x, dtype),
        d_out,
        out_sharding=mesh.weight_spec(weight),
        preferred_element_type=jnp.float32,
    )
    return d_x.astype(x.dtype), d_w.astype(w.dtype)


_einsum.defvjp(_einsum_forward, _einsum_backward)
