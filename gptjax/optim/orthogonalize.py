"""Orthogonalize matrix parameters by Newton-Schulz iterations, distributed over the devices of a mesh.

The axis names of a parameter say which axes are inputs and outputs, so q, k and v of every layer are separate matrices.
All matrices of one shape, from whatever parameter, form one batch. Under a mesh every device orthogonalizes an equal
share of the batch, and the results return to the sharding of their parameters.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float

from gptjax.core.lazy import LazyModule
from gptjax.model.products import activation_dtype, multiply
from gptjax.sharding.axes import matrix_axes
from gptjax.sharding.mesh import MeshConfig

if TYPE_CHECKING:
    from flax import nnx
else:
    nnx = LazyModule("flax.nnx")  # half a second

Quintic = tuple[float, float, float]
"""(a, b, c) of an iteration X → aX + b(XXᵀ)X + c(XXᵀ)²X, which maps a singular value s to as + bs³ + cs⁵."""
QUINTIC: Quintic = (3.4445, -4.7750, 2.0315)
"""Jordan's: steep at zero, so that five equal iterations bring singular values near 1."""
POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Each iteration is optimal for the range that the ones before leave of [0.001, 1] (arXiv:2505.16932)."""
POLAR_EXPRESS_MARGIN = 1.02
"""Polar Express divides by a little more than the norm: rounding must not push a singular value above 1."""

Coefficients = Literal["quintic", "polar_express"] | Quintic
MatrixSplit = Literal["projections", "heads"]
Matrices = Float[Array, "M R S"]


@jax.named_scope("newton_schulz")  # the name marks its products in profiles and compiled programs
def newton_schulz(
    x: Matrices, *, ns_steps: int = 5, ns_coefficients: Coefficients = "quintic", dtype: str = "float32"
) -> Matrices:
    """Approximate the nearest semi-orthogonal matrices; `quintic` leaves singular values in about [0.7, 1.2].

    Matrices must not have more rows than columns. Polar Express repeats its last iteration beyond five.
    """
    norm = norm_over(x, (1, 2))
    if ns_coefficients == "polar_express":
        iterations = (POLAR_EXPRESS + POLAR_EXPRESS[-1:] * ns_steps)[:ns_steps]
        norm = POLAR_EXPRESS_MARGIN * norm
    else:
        iterations = (QUINTIC if ns_coefficients == "quintic" else ns_coefficients,) * ns_steps
    product = lambda x, y, **form: multiply(x, y, dtype=dtype, **form).astype(activation_dtype(dtype))
    x = (x / (norm + 1e-8)).astype(activation_dtype(dtype))
    for a, b, c in iterations:
        gram = product(x, x, transposed=True)
        x = a * x + product(b * gram + c * product(gram, gram), x)
    return x


def orthogonalize_all(
    arrays: Sequence[Array],
    views: Sequence["MatrixView"],
    *,
    ns_steps: int = 5,
    ns_coefficients: Coefficients = "quintic",
    dtype: str = "bfloat16",
) -> list[Array]:
    """Orthogonalize every matrix of some parameters, all of one shape (and sharding) in one batch; float32 results."""
    iterate = partial(newton_schulz, ns_steps=ns_steps, ns_coefficients=ns_coefficients, dtype=dtype)
    batches: dict[Any, list[int]] = defaultdict(list)
    for index, view in enumerate(views):
        batches[view.shape, view.spec].append(index)
    results: dict[int, Array] = {}
    for (_, spec), indices in batches.items():
        stacks = [views[i].to_matrices(arrays[i]) for i in indices]
        stacks = _map_distributed(iterate, stacks, spec=spec, mesh=views[indices[0]].mesh)
        results |= {i: views[i].from_matrices(stack) for i, stack in zip(indices, stacks, strict=True)}
    return [results[i] for i in range(len(views))]


def count_muon_flops(
    params: Any, *, ns_steps: int = 5, matrix_split: MatrixSplit = "projections", devices: int = 1
) -> int:
    """FLOPs of the matrix products of one update, for all matrix parameters of a pytree, on all devices together.

    An iteration takes XXᵀ (2R²S), its square (2R³) and one product with X (2R²S), for a matrix of R ≤ S. Elementwise
    operations are not counted: about 30 a parameter, against 4R an iteration. Every one of the `devices` takes equally
    many whole matrices of each shape, so some compute zeros. This assumes that parameters of one shape are sharded
    alike, as in data parallelism.
    """
    counts = Counter[tuple[int, int]]()
    for param in jax.tree.leaves(params, is_leaf=is_unmasked_param):
        view = MatrixView(param, MeshConfig(), matrix_split=matrix_split)
        counts[view.shape] += view.count
    iteration_flops = lambda rows, columns: 4 * rows**2 * columns + 2 * rows**3
    return sum(-(-count // devices) * devices * ns_steps * iteration_flops(*shape) for shape, count in counts.items())


class MatrixView:
    """A parameter, stacked over layers or not, seen as a batch of matrices with no more rows than columns."""

    def __init__(self, param: "nnx.Variable[Array]", mesh: MeshConfig, *, matrix_split: MatrixSplit) -> None:
        axis_names, self.array_shape, self.mesh = param.axis_names, param.shape, mesh
        lead = len(param.shape) - len(axis_names)
        inputs, outputs = matrix_axes(axis_names, heads=matrix_split == "heads")
        self.input_axes, self.output_axes = (tuple(lead + axis for axis in axes) for axes in (inputs, outputs))
        self.input_dim, self.output_dim = self._size(self.input_axes), self._size(self.output_axes)
        # Rows are the smaller side. Of a square they are embed_dim, so that stacked parameters are sharded alike.
        embed, other = self.input_axes, self.output_axes
        if not axis_names.startswith("D"):
            embed, other = other, embed
        rows, columns = (embed, other) if self._size(embed) <= self._size(other) else (other, embed)
        self.weight_spec = mesh.weight_spec("N" * lead + axis_names)
        mesh_axis = lambda axis: None if self.weight_spec is None else self.weight_spec[axis]
        batch = [axis for axis in range(len(param.shape)) if axis not in (*rows, *columns)]
        # A sharded axis (heads) comes first: then each device's matrices are a contiguous part of the batch.
        batch.sort(key=lambda axis: mesh_axis(axis) is None)
        self.order = (*batch, *rows, *columns)
        self.shape, self.count = (self._size(rows), self._size(columns)), self._size(batch)
        batch_axis = mesh_axis(batch[0]) if batch else None
        self.spec = self.weight_spec and PartitionSpec(batch_axis, mesh_axis(rows[0]), mesh_axis(columns[0]))

    def _size(self, axes: Sequence[int]) -> int:
        return math.prod(self.array_shape[axis] for axis in axes)

    def zero_second_moment(self) -> Array:
        """Zeros with one value for each output of each matrix; sharded like the parameter, input axes of size 1."""
        shape = tuple(1 if axis in self.input_axes else size for axis, size in enumerate(self.array_shape))
        spec = self.weight_spec
        spec = spec and PartitionSpec(*(None if axis in self.input_axes else spec[axis] for axis in range(len(shape))))
        return jnp.zeros(shape, jnp.float32, out_sharding=spec)  # pyright: ignore[reportCallIssue]

    def to_matrices(self, array: Array) -> Matrices:
        """The parameter's array as (count, rows, columns)."""
        return jnp.reshape(array.transpose(self.order), (self.count, *self.shape), out_sharding=self.spec)

    def from_matrices(self, matrices: Matrices) -> Array:
        """The inverse of `to_matrices`."""
        ordered = tuple(self.array_shape[axis] for axis in self.order)
        spec = self.weight_spec and PartitionSpec(*(self.weight_spec[axis] for axis in self.order))
        array = jnp.reshape(matrices, ordered, out_sharding=spec)
        return array.transpose(tuple(self.order.index(axis) for axis in range(len(self.order))))


def norm_over(x: Array, axes: tuple[int, ...]) -> Array:
    """The Euclidean norm over some axes, which stay with size 1."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def is_unmasked_param(node: Any) -> bool:
    """Whether a node is a variable with an array; `optax.masked` leaves variables without one."""
    return isinstance(node, nnx.Variable) and not isinstance(node.get_value(), optax.MaskedNode)


def _map_distributed(
    iterate: Callable[[Matrices], Matrices], stacks: list[Array], *, spec: PartitionSpec | None, mesh: MeshConfig
) -> list[Array]:
    """Apply `iterate` with whole matrices divided over all devices, so that no product needs communication.

    Where a mesh axis shards rows or columns, devices exchange parts of matrices for whole ones (all-to-all). Where an
    axis replicates the matrices (data), each device takes its share of them. Where an axis shards the batch (whole
    heads), nothing is to do. Afterwards the exchange is reversed, and the shares are gathered along data, since every
    device needs the whole update.
    """
    exchanged = [] if spec is None else [(axis, dim) for dim, axis in enumerate(spec) if axis is not None and dim > 0]
    sharding_axes = set() if spec is None else set(spec)
    replicated = [axis for axis, size in mesh.axis_sizes.items() if size > 1 and axis not in sharding_axes]
    devices = math.prod(mesh.axis_sizes[axis] for axis in (*(axis for axis, _ in exchanged), *replicated))

    def iterate_share(*parts: Array) -> tuple[Array, ...]:
        x = jnp.concatenate(parts)
        x = jnp.pad(x, ((0, -x.shape[0] % devices), (0, 0), (0, 0)))
        for axis, dim in exchanged:
            x = _exchange_for_whole(x, axis, dim=dim, devices=mesh.axis_sizes[axis])
        for axis in replicated:
            size = x.shape[0] // mesh.axis_sizes[axis]
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size)
        x = iterate(x)
        for axis in reversed(replicated):
            x = jax.lax.all_gather(x, axis, axis=0, tiled=True)
        for axis, dim in reversed(exchanged):
            x = _exchange_for_parts(x, axis, dim=dim, devices=mesh.axis_sizes[axis])
        ends = itertools.accumulate(part.shape[0] for part in parts)
        return tuple(x[end - part.shape[0] : end] for part, end in zip(parts, ends, strict=True))

    specs = (spec,) * len(stacks)
    return [x.astype(jnp.float32) for x in mesh.shard_map(iterate_share, specs, specs)(*stacks)]


def _exchange_for_whole(x: Array, axis: str, *, dim: int, devices: int) -> Array:
    """Exchange many matrices, of which this device has a part along `dim`, for fewer that are whole along it."""
    parts = jax.lax.all_to_all(x.reshape(devices, -1, *x.shape[1:]), axis, split_axis=0, concat_axis=0)
    shape = (x.shape[0] // devices, *(size * (devices if i == dim else 1) for i, size in enumerate(x.shape) if i))
    return jnp.moveaxis(parts, 0, dim).reshape(shape)


def _exchange_for_parts(x: Array, axis: str, *, dim: int, devices: int) -> Array:
    """The inverse of `_exchange_for_whole`."""
    split = x.reshape(*x.shape[:dim], devices, x.shape[dim] // devices, *x.shape[dim + 1 :])
    parts = jax.lax.all_to_all(jnp.moveaxis(split, dim, 0), axis, split_axis=0, concat_axis=0)
    return parts.reshape(-1, *parts.shape[2:])
