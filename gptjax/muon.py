"""Muon: momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

Which axes of a weight lead in and out is read off its letters, so q, k and v of every layer are matrices of their own.
All matrices of one shape, whatever weight they come from, are stacked into one batch; under a mesh the batch is spread
over all devices, each orthogonalises its share, and the result goes back to the weights' own sharding.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float

from gptjax.layout import Layout
from gptjax.shapes import Count, matrix_axes

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton–Schulz iteration: steep at zero, so that five steps bring singular values near 1."""

Matrices = Float[Array, "M R S"]


class MuonState(NamedTuple):
    """Updates made so far, and the momentum: one array for each matrix weight, sharded like it."""

    updates: Count
    momentum: Any


def scale_by_muon(
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    dtype: str = "bfloat16",
    layout: Layout,
) -> optax.GradientTransformation:
    """Replace each matrix's gradient by its orthogonalised momentum, times √max(1, out / in).

    Takes a pytree whose leaves are `nnx.Param`s with letters, all of them matrices. In float32 it equals
    `optax.contrib.muon` (before the learning rate) on one device: an exponential average with bias correction.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MuonState]:
        count = state.updates + 1
        average = optax.tree.update_moment(updates, state.momentum, momentum, 1)
        direction = optax.tree.bias_correction(average, momentum, count + 1 if nesterov else count)
        if nesterov:
            fresh = optax.tree.bias_correction(updates, momentum, count)
            direction = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, direction, fresh)
        iterate = lambda x: newton_schulz(x, iterations=iterations, coefficients=coefficients, dtype=dtype)
        return orthogonalised(direction, iterate, layout), MuonState(count, average)

    return optax.GradientTransformation(init, update)


def newton_schulz(
    x: Matrices, *, iterations: int = 5, coefficients: tuple[float, float, float] = QUINTIC, dtype: str = "float32"
) -> Matrices:
    """The nearest semi-orthogonal matrix, nearly: singular values end in about [0.7, 1.2].

    Rows must not outnumber columns.
    """
    a, b, c = coefficients
    norm = jnp.linalg.norm(x, axis=(1, 2), keepdims=True)
    x = (x / (norm + 1e-8)).astype(dtype)
    for _ in range(iterations):
        gram = jnp.einsum("mrs,mqs->mrq", x, x)
        x = a * x + jnp.einsum("mrq,mqs->mrs", b * gram + c * (gram @ gram), x)
    return x


def orthogonalised(direction: Any, iterate: Callable[[Matrices], Matrices], layout: Layout) -> Any:
    """Apply `iterate` to every matrix in the tree, all of one shape at once, and scale by √max(1, out / in)."""
    params, structure = jax.tree.flatten(direction, is_leaf=_is_weight)
    views = [MatrixView(param, layout) for param in params]
    by_shape: dict[tuple[int, int], list[MatrixView]] = defaultdict(list)
    for view in views:
        by_shape[view.shape].append(view)

    results: dict[MatrixView, Array] = {}
    for alike in by_shape.values():
        stack = jnp.concatenate([view.matrices() for view in alike])
        stack = _on_shares(iterate, stack, alike[0].spec, layout)
        ends = itertools.accumulate(view.count for view in alike)
        results.update(
            (view, view.restored(stack[end - view.count : end])) for view, end in zip(alike, ends, strict=True)
        )
    return jax.tree.unflatten(
        structure, [param.replace(results[view]) for param, view in zip(params, views, strict=True)]
    )


def _is_weight(node: Any) -> bool:
    """A variable that holds an array: `optax.masked` leaves empty ones where others take over."""
    return isinstance(node, nnx.Variable) and not isinstance(node.get_value(), optax.MaskedNode)


class MatrixView:
    """One weight, stacked over layers, seen as a batch of matrices with no more rows than columns, and back again."""

    def __init__(self, param: nnx.Variable[Array], layout: Layout) -> None:
        letters = param.letters
        ins, outs = matrix_axes(letters)
        size = lambda axes: math.prod(param.shape[1 + axis] for axis in axes)
        self.scale = math.sqrt(max(1.0, size(outs) / size(ins)))
        # Rows are the smaller side; of a square, the width: stacked weights are then sharded alike.
        width, other = (ins, outs) if letters.startswith("D") else (outs, ins)
        rows, columns = (width, other) if size(width) <= size(other) else (other, width)
        batch = tuple(axis for axis in range(len(letters)) if axis not in (*rows, *columns))
        self.order = (0, *(1 + axis for axis in (*batch, *rows, *columns)))
        self.shape = (size(rows), size(columns))
        self.count = param.shape[0] * size(batch)
        self.array, self.layout = param[...], layout
        self.spec = layout.weights("N" + letters[rows[0]] + letters[columns[0]])
        self.weight_spec = layout.weights("N" + letters)

    def matrices(self) -> Matrices:
        return jnp.reshape(self.array.transpose(self.order), (self.count, *self.shape), out_sharding=self.spec)

    def restored(self, matrices: Matrices) -> Array:
        ordered = tuple(self.array.shape[axis] for axis in self.order)
        spec = self.weight_spec and PartitionSpec(*(self.weight_spec[axis] for axis in self.order))
        back = jnp.reshape(matrices * self.scale, ordered, out_sharding=spec)
        return back.transpose(tuple(self.order.index(axis) for axis in range(len(self.order))))


def _on_shares(
    iterate: Callable[[Matrices], Matrices], stack: Matrices, spec: PartitionSpec | None, layout: Layout
) -> Matrices:
    """`iterate`, with the matrices (not their rows) divided over all devices: no product needs communication.

    The way there is written out. Along an axis that shards the matrices, devices exchange parts of them for whole ones
    (all-to-all); along one that does not (data), each takes its share of what it has. On the way back the results are
    exchanged again, and along data gathered: every device needs all of the update, and that much is sent and no more.
    """
    if spec is None:
        return iterate(stack).astype(jnp.float32)
    sharding = [(axis, dim) for dim, axis in enumerate(spec) if axis is not None]
    names = [axis for axis, _ in sharding]
    repeating = [axis for axis, size in layout.devices_along.items() if size > 1 and axis not in names]

    def share(x: Array) -> Array:
        for axis, dim in sharding:
            x = _whole(x, axis, dim, layout.devices_along[axis])
        for axis in repeating:
            size = x.shape[0] // layout.devices_along[axis]
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size)
        x = iterate(x)
        for axis in reversed(repeating):
            x = jax.lax.all_gather(x, axis, axis=0, tiled=True)
        for axis, dim in reversed(sharding):
            x = _divided(x, axis, dim, layout.devices_along[axis])
        return x

    count = stack.shape[0]
    padded = jnp.pad(stack, ((0, -count % layout.size), (0, 0), (0, 0)))
    return layout.island(share, spec, spec)(padded)[:count].astype(jnp.float32)


def _whole(x: Array, axis: str, dim: int, devices: int) -> Array:
    """Many matrices of which this device has a part along `dim` → fewer, whole along it."""
    parts = jax.lax.all_to_all(x.reshape(devices, -1, *x.shape[1:]), axis, split_axis=0, concat_axis=0)
    shape = (x.shape[0] // devices, *(size * (devices if i == dim else 1) for i, size in enumerate(x.shape) if i))
    return jnp.moveaxis(parts, 0, dim).reshape(shape)


def _divided(x: Array, axis: str, dim: int, devices: int) -> Array:
    """The inverse of `_whole`."""
    split = x.reshape(*x.shape[:dim], devices, x.shape[dim] // devices, *x.shape[dim + 1 :])
    parts = jax.lax.all_to_all(jnp.moveaxis(split, dim, 0), axis, split_axis=0, concat_axis=0)
    return parts.reshape(-1, *parts.shape[2:])
