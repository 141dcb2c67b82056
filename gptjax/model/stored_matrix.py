"""Weights as decoding reads them, and products of a few rows with them.

Decoding multiplies few rows, so its time is that of reading the weights. `StoredMatrix` holds a weight in the form that
is read fastest, and `multiply_stored` reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from gptjax.model.products import multiply_read_only, separate
from gptjax.sharding.devices import target_device

Quantize = Literal["int8"]

HEAD_COLUMNS = 4096
"""Most columns of an output head that CPUs multiply at a time while decoding."""
FEW_ROWS = 2
"""Most rows that CPUs multiply with a narrow weight by elementwise operations (`_multiply_few_rows`)."""
GROUP = 16
"""Most inputs that such a multiplication adds in one pass over the outputs."""


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
    index: Array | None = None
    """The weight's place in a stack of weights, which `values` and `scale` then are. Whoever reads it takes it out, for
    a slice before a loop over few rows would be a copy."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape if self.index is None else self.values.shape[1:]

    def at(self, index: Array) -> "StoredMatrix":
        """One weight of a stack."""
        return replace(self, index=index)

    def __getitem__(self, index: Any) -> "StoredMatrix":
        return jax.tree.map(lambda array: array[index], self)

    def take(self) -> "StoredMatrix":
        """The weight by itself."""
        if self.index is None:
            return self
        return jax.tree.map(lambda array: array[self.index], replace(self, index=None))

    def dequantize(self) -> Array:
        """The float32 weight."""
        assert self.scale is not None
        return self.values.astype(jnp.float32) * self.scale


def take_layer(weights: Any, layer: Array | int) -> Any:
    """A tree of stacked arrays and stored weights → that of one layer."""
    is_stored = lambda leaf: isinstance(leaf, StoredMatrix)
    take = lambda leaf: leaf.at(jnp.asarray(layer)) if is_stored(leaf) else leaf[layer]
    return jax.tree.map(take, weights, is_leaf=is_stored)


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
    weight, is_cpu = w.take(), target_device().platform == "cpu"
    group = next((size for size in range(GROUP, GROUP // 2 - 1, -1) if x.shape[1] % size == 0), None)
    if is_cpu and w.values.dtype in (jnp.uint16, jnp.int8) and len(x) <= FEW_ROWS and group is not None:
        product = _multiply_few_rows(x, w, group)
    else:
        operand = "float32" if w.scale is not None and is_cpu else dtype
        product = multiply_read_only(x, reveal_dtype(weight.values).reshape(x.shape[1], -1), dtype=operand)
    return product if weight.scale is None else product * weight.scale.reshape(1, -1)


def _multiply_few_rows(x: Float[Array, "M A"], w: StoredMatrix, group: int) -> Float[Array, "M F"]:
    """Rows times a weight in 16 or 8 bits, whose values CPUs widen in registers.

    XLA widens an operand of a product in memory, twice or four times as large as it is read. Here a sum over `group`
    inputs is one elementwise operation over the outputs, which reads `group` rows of the weight. The few sums that are
    left are added at the end.
    """
    inputs = x.shape[1] // group
    stack = w.values if w.index is not None else w.values[None]
    stack = stack.reshape(len(stack), inputs, group, -1)
    index, outputs = jnp.int32(0) if w.index is None else w.index, stack.shape[3]
    rows = (x if w.scale is not None else jax.lax.reduce_precision(x, 8, 7)).reshape(-1, inputs, group)
    total = jnp.zeros((len(x), inputs, outputs), jnp.float32)
    for i in range(group):
        values = jax.lax.dynamic_slice(stack, (index, 0, i, 0), (1, inputs, 1, outputs)).reshape(inputs, outputs)
        total = total + rows[:, :, i, None] * _widen(values)[None]
    return separate(total, x).sum(axis=1)


def _widen(values: Array) -> Array:
    """int8, or the bits of bfloat16 → float32. A shift takes fewer instructions than a conversion of bfloat16."""
    if values.dtype == jnp.int8:
        return values.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)


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
    chunks = jnp.arange(len(head.values))
    _, logits = jax.lax.scan(lambda _, chunk: (None, multiply_stored(x, head.at(chunk), dtype=dtype)), None, chunks)
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
