"""Matrix products: operands in the compute dtype, sums in float32. The form follows the backend.

`multiply` multiplies two batches of matrices, `multiply_read_only` without a derivative. `gptjax.model.projection`
multiplies activations with a weight.

On CPUs XLA multiplies bfloat16 operands at twice the rate of float32 ones in one form only: plain matrices, a float32
result, and no operand that must be transposed. Otherwise it widens them first, or fails at run time. So products reach
it in that form here, forward and in both derivatives.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.sharding.devices import target_device


def activation_dtype(dtype: str) -> str:
    """Type of activations between products whose operands are `dtype`.

    CPUs have units for bfloat16 products alone: everything else would be widened, computed and rounded again.
    """
    return "float32" if target_device().platform == "cpu" else dtype


def multiply(
    x: Float[Array, "*batch M A"], y: Array, *, dtype: str, transposed: bool = False
) -> Float[Array, "*batch M F"]:
    """x y, or x yᵀ if `transposed`, of matrices (M, A) and (A, F), or (F, A): float32 sums of operands in `dtype`.

    The operands of both derivatives are in `dtype`, too: products of float32 cotangents are far slower everywhere.
    """
    return _product(x.astype(jnp.float32), y.astype(jnp.float32), dtype, transposed)


def multiply_read_only(
    x: Float[Array, "*batch M A"], y: Array, *, dtype: str, transposed: bool = False
) -> Float[Array, "*batch M F"]:
    """`multiply` without a derivative, for a `y` that is in memory as it is multiplied, such as a cache."""
    return _dot(x.astype(dtype), y.astype(dtype), transposed)


def _dot(x: Array, y: Array, transposed: bool) -> Array:
    """The float32 product of matrices with leading batch axes."""
    batch = tuple(range(x.ndim - 2))
    contracted = ((x.ndim - 1,), (y.ndim - (1 if transposed else 2),))
    return jax.lax.dot_general(x, y, (contracted, (batch, batch)), preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, y: Array, dtype: str, transposed: bool) -> Array:
    return _product_forward(x, y, dtype, transposed)[0]


def _product_forward(x: Array, y: Array, dtype: str, transposed: bool) -> tuple[Array, tuple[Array, Array]]:
    x, y = _cast_operand(x, dtype), _cast_operand(y, dtype)
    return _plain_dot(x, y, transposed), (x, y)


def _product_backward(
    dtype: str, transposed: bool, saved: tuple[Array, Array], d_product: Array
) -> tuple[Array, Array]:
    x, y = saved
    d_product = _cast_operand(d_product, dtype)
    left, right = (d_product, x) if transposed else (x, d_product)
    return _plain_dot(d_product, y, not transposed), _plain_dot(_transpose(left), right, False)


_product.defvjp(_product_forward, _product_backward)


def _plain_dot(x: Array, y: Array, transposed: bool) -> Array:
    """`_dot`, on CPUs apart from what follows."""
    return finish_product(separate(_dot(x, y, transposed), x))


def finish_product(x: Array) -> Array:
    """A product into which nothing that follows can move on CPUs: with its result transposed, it fails at run time."""
    return jax.lax.optimization_barrier(x) if target_device().platform == "cpu" else x


def _cast_operand(x: Array, dtype: str) -> Array:
    """`x` in `dtype`, in memory in the order of its axes."""
    x = x.astype(dtype)
    return separate(x, x)


def separate(x: Array, other: Array) -> Array:
    """`x`, on CPUs kept apart from the operations before and after it, if it is a batch of matrices.

    XLA makes the transposition of heads part of a product, and then widens its operands. It also runs additions after a
    product within its kernel, several times slower than by themselves. It cannot see through a choice at run time,
    which costs nothing in the pass that follows. Where the first number of `other` is NaN, all of `x` is.
    """
    if x.ndim == 2 or target_device().platform != "cpu":
        return x
    first = other[(0,) * other.ndim]
    return jnp.where(first == first, x, jnp.asarray(jnp.nan, x.dtype))


def _transpose(x: Array) -> Array:
    """xᵀ. On CPUs it is in memory, hidden from XLA in a branch that is chosen at run time (see `separate`).

    Both branches transpose, so the choice, which a NaN changes, is always right.
    """
    if target_device().platform != "cpu":
        return x.mT
    first, backwards = x[(0,) * x.ndim], lambda x: jnp.flip(jnp.flip(x, -1).mT, -2)
    return jax.lax.cond(first == first, lambda x: x.mT, backwards, x)
