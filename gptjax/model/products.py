"""Matrix products: operands in the compute dtype, sums in float32. The form follows the backend.

`project` multiplies activations with a weight, and `multiply` multiplies two batches of matrices. The gradient of a
weight is float32 on every backend, for it is a sum over all tokens.

On CPUs XLA multiplies bfloat16 operands at twice the rate of float32 ones in one form only: plain matrices, a float32
result, and no operand that must be transposed. Otherwise it widens them first, or fails at run time. So products reach
it in that form here, forward and in both derivatives.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.sharding.devices import target_device
from gptjax.sharding.mesh import MeshConfig, reshard


def activation_dtype(dtype: str) -> str:
    """Type of activations between products whose operands are `dtype`.

    CPUs have units for bfloat16 products alone: everything else would be widened, computed and rounded again.
    """
    return "float32" if target_device().platform == "cpu" else dtype


def project(axis_names: str, x: Array, w: Array, *, dtype: str, mesh: MeshConfig) -> Array:
    """`einsum` of activations (B, T, …) with a stored weight, such as "BTD,DF->BTF". The result has `x`'s dtype.

    The weight is float32 as stored, or already cast. It is cast to `dtype` and gathered over fsdp here. B and T are one
    axis meanwhile, which saves CPUs about a quarter of a training step (LAB.md).
    """
    ins, out = axis_names.split("->")
    activation, weight = ins.replace("BT", "M").split(",")
    rows = jnp.reshape(x, (-1, *x.shape[2:]), out_sharding=mesh.activation_spec(activation))
    sizes = dict(zip(ins.replace(",", ""), (*x.shape, *w.shape), strict=True))
    if mesh.is_sharded or target_device().platform != "cpu":
        product: Any = _einsum((activation, weight, out.replace("BT", "M")), dtype, mesh, rows, w)
        return jnp.reshape(product, tuple(sizes[name] for name in out), out_sharding=mesh.activation_spec(out))
    contracted = len(activation) - 1
    inputs = rows.reshape(len(rows), -1)
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


def multiply(
    x: Float[Array, "*batch M A"], y: Array, *, dtype: str, transposed: bool = False
) -> Float[Array, "*batch M F"]:
    """x y, or x yᵀ if `transposed`, of matrices (M, A) and (A, F), or (F, A): float32 sums of operands in `dtype`."""
    if target_device().platform != "cpu":
        return _dot(x.astype(dtype), y.astype(dtype), transposed)
    return _cpu_product(x.astype(jnp.float32), y.astype(jnp.float32), dtype, transposed)


def _dot(x: Array, y: Array, transposed: bool) -> Array:
    """The float32 product of matrices with leading batch axes."""
    batch = tuple(range(x.ndim - 2))
    contracted = ((x.ndim - 1,), (y.ndim - (1 if transposed else 2),))
    return jax.lax.dot_general(x, y, (contracted, (batch, batch)), preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_product(x: Array, y: Array, dtype: str, transposed: bool) -> Array:
    return _cpu_product_forward(x, y, dtype, transposed)[0]


def _cpu_product_forward(x: Array, y: Array, dtype: str, transposed: bool) -> tuple[Array, tuple[Array, Array]]:
    x, y = _cast_operand(x, dtype), _cast_operand(y, dtype)
    return _cpu_dot(x, y, transposed), (x, y)


def _cpu_product_backward(
    dtype: str, transposed: bool, saved: tuple[Array, Array], d_product: Array
) -> tuple[Array, Array]:
    x, y = saved
    d_product = _cast_operand(d_product, dtype)
    left, right = (d_product, x) if transposed else (x, d_product)
    return _cpu_dot(d_product, y, not transposed), _cpu_dot(_transpose(left), right, False)


_cpu_product.defvjp(_cpu_product_forward, _cpu_product_backward)


def _cpu_dot(x: Array, y: Array, transposed: bool) -> Array:
    """`_dot` with nothing moved into it: a transposed result would be a form that fails at run time."""
    return jax.lax.optimization_barrier(_separate(_dot(x, y, transposed), x))


def _cast_operand(x: Array, dtype: str) -> Array:
    """`x` in `dtype`, in memory in the order of its axes."""
    x = x.astype(dtype)
    return _separate(x, x)


def _separate(x: Array, other: Array) -> Array:
    """`x`, kept apart from the operations before and after it, if it is a batch of matrices.

    XLA makes the transposition of heads part of a product, and then widens its operands. It also runs additions after a
    product within its kernel, several times slower than by themselves. It cannot see through a choice at run time,
    which costs nothing in the pass that follows. Where the first number of `other` is NaN, all of `x` is.
    """
    if x.ndim == 2:
        return x
    first = other[(0,) * other.ndim]
    return jnp.where(first == first, x, jnp.asarray(jnp.nan, x.dtype))


def _transpose(x: Array) -> Array:
    """xᵀ in memory, hidden from XLA in a branch that is chosen at run time (see `_separate`).

    Both branches transpose, so the choice, which a NaN changes, is always right.
    """
    first, backwards = x[(0,) * x.ndim], lambda x: jnp.flip(jnp.flip(x, -1).mT, -2)
    return jax.lax.cond(first == first, lambda x: x.mT, backwards, x)
