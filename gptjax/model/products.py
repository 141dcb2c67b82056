"""Matrix products: operands in the compute dtype, sums in float32. The form follows the backend.

`project` multiplies activations with a weight, and `multiply` multiplies two batches of matrices. The gradient of a
weight is float32 on every backend, for it is a sum over all tokens.

On CPUs XLA multiplies bfloat16 operands at twice the rate of float32 ones in one form only: plain matrices, a float32
result, and no operand that must be transposed. Otherwise it widens them first, or fails at run time. So products reach
it in that form here, forward and in both derivatives.

Decoding multiplies few rows, so its time is that of reading the weights. `StoredMatrix` holds a weight in the form that
is read fastest, and `multiply_stored` reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.sharding.devices import target_device
from gptjax.sharding.mesh import MeshConfig, reshard

Quantize = Literal["int8"]

HEAD_COLUMNS = 4096
"""Most columns of an output head that CPUs multiply at a time while decoding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StoredMatrix:
    """A weight for decoding (`multiply_stored`), with the axes of the weight: those of its inputs first.

    CPUs hold bfloat16 as the 16 bits of a uint16: XLA would widen all layers before the loop over them.
    """

    values: Array
    """float32, bfloat16, uint16 or int8."""
    scale: Array | None = None
    """Of int8 values: a float32 factor for each output, with axes of size 1 for the inputs."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, index: Any) -> "StoredMatrix":
        return jax.tree.map(lambda array: array[index], self)

    def dequantize(self) -> Array:
        """The float32 weight."""
        assert self.scale is not None
        return self.values.astype(jnp.float32) * self.scale


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


def store_matrix(w: Array, inputs: tuple[int, ...], *, dtype: str, quantize: Quantize | None = None) -> StoredMatrix:
    """A weight in the form that decoding reads. `inputs` are the axes that products sum over."""
    if quantize == "int8":
        largest = jnp.abs(w.astype(jnp.float32)).max(axis=inputs, keepdims=True)
        scale = jnp.where(largest == 0.0, 1.0, largest / 127.0)
        return StoredMatrix(jnp.round(w / scale).astype(jnp.int8), scale)
    return StoredMatrix(hide_dtype(w.astype(dtype)))


def hide_dtype(x: Array) -> Array:
    """The bits of a bfloat16 array on CPUs, where XLA would widen it for longer than it is read. Others stay."""
    is_hidden = x.dtype == jnp.bfloat16 and target_device().platform == "cpu"
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if is_hidden else x


def reveal_dtype(x: Array) -> Array:
    """The inverse of `hide_dtype`."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def multiply_stored(x: Float[Array, "M A"], w: StoredMatrix, *, dtype: str) -> Float[Array, "M F"]:
    """Rows times a stored weight, a float32 sum. The operands are in `dtype`; with int8, CPUs multiply in float32."""
    values = reveal_dtype(w.values).reshape(x.shape[1], -1)
    operand = jnp.float32 if w.scale is not None and target_device().platform == "cpu" else dtype
    product = _dot(x.astype(operand), values.astype(operand), False)
    return product if w.scale is None else product * w.scale.reshape(1, -1)


def store_head(head: Float[Array, "D V"], *, dtype: str, quantize: Quantize | None = None) -> StoredMatrix:
    """An output head for `multiply_head`, in chunks of columns (chunks, D, columns). The last is filled with zeros.

    CPUs read chunks in a loop several times faster than the whole.
    """
    width, vocab = head.shape
    chunks = -(-vocab // HEAD_COLUMNS) if target_device().platform == "cpu" else 1
    filled = jnp.pad(head, ((0, 0), (0, -vocab % chunks)))
    columns = filled.reshape(width, chunks, -1).transpose(1, 0, 2)
    return store_matrix(columns, (1,), dtype=dtype, quantize=quantize)


def multiply_head(x: Float[Array, "M D"], head: StoredMatrix, *, dtype: str) -> Float[Array, "M columns"]:
    """The logits of all columns of `store_head`, zeros at the end included."""
    _, logits = jax.lax.scan(lambda _, chunk: (None, multiply_stored(x, chunk, dtype=dtype)), None, head)
    return logits.transpose(1, 0, 2).reshape(len(x), -1)


def run_in_loop(function: Callable[[Array, Any], tuple[Any, Any]], carry: Any, *, position: Array) -> tuple[Any, Any]:
    """`function(0, carry)`, a result and the next carry, as the body of a loop of one round.

    On CPUs XLA multiplies few rows several times faster in a loop, unless it can tell that there is only one round. So
    the number of rounds comes from a position of the text, which is not negative. The carry is updated in place.
    """
    result = jax.eval_shape(lambda: function(jnp.int32(0), carry)[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), result)
    rounds = 1 + jnp.minimum(position, 0)
    return jax.lax.fori_loop(0, rounds, lambda i, last: function(i, last[1]), (zeros, carry))


def activation_dtype(dtype: str) -> str:
    """Type of activations between products whose operands are `dtype`.

    CPUs have units for bfloat16 products alone: everything else would be widened, computed and rounded again.
    """
    return "float32" if target_device().platform == "cpu" else dtype


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
    return finish_product(_separate(_dot(x, y, transposed), x))


def finish_product(x: Array) -> Array:
    """A product into which nothing that follows can move on CPUs: with its result transposed, it fails at run time."""
    return jax.lax.optimization_barrier(x) if target_device().platform == "cpu" else x


def _cast_operand(x: Array, dtype: str) -> Array:
    """`x` in `dtype`, in memory in the order of its axes."""
    x = x.astype(dtype)
    return _separate(x, x)


def _separate(x: Array, other: Array) -> Array:
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
    """xᵀ. On CPUs it is in memory, hidden from XLA in a branch that is chosen at run time (see `_separate`).

    Both branches transpose, so the choice, which a NaN changes, is always right.
    """
    if target_device().platform != "cpu":
        return x.mT
    first, backwards = x[(0,) * x.ndim], lambda x: jnp.flip(jnp.flip(x, -1).mT, -2)
    return jax.lax.cond(first == first, lambda x: x.mT, backwards, x)
