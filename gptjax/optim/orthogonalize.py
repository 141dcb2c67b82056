"""Muon: momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

Which axes of a weight lead in and out is read off its letters, so q, k and v of every layer are matrices of their own.
All matrices of one shape, whatever weight they come from, are stacked into one batch; under a mesh the batch is spread
over all devices, each orthogonalises its share, and the result goes back to the weights' own sharding.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float

from gptjax.optim.schedules import Step
from gptjax.sharding.axes import Scalar, matrix_axes
from gptjax.sharding.mesh import MeshConfig

Quintic = tuple[float, float, float]
"""(a, b, c) of a step X → aX + b(XXᵀ)X + c(XXᵀ)²X, which makes each singular value s into as + bs³ + cs⁵."""
QUINTIC: Quintic = (3.4445, -4.7750, 2.0315)
"""Jordan's: steep at zero, so that five equal steps bring singular values near 1."""
POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Each step the best one for what the steps before leave of singular values in [0.001, 1] (arXiv:2505.16932)."""
POLAR_EXPRESS_MARGIN = 1.02
"""Polar Express starts a little inside the unit ball: rounding must not push a singular value out of its range."""

Coefficients = Literal["quintic", "polar_express"] | Quintic
UpdateScaling = Literal["spectral", "rms"]
MatrixSplit = Literal["projections", "heads"]
Matrices = Float[Array, "M R S"]


class MuonState(NamedTuple):
    """What Muon remembers, in float32."""

    remaining: Scalar
    """The product of all momenta so far: how much of the average is still the zero that it began as."""
    momentum: Any
    """An array for each matrix weight, sharded like it."""
    neurons: Any
    """NorMuon's second moments: the same arrays with one place along the input axes; None without it."""


def scale_by_muon(
    *,
    momentum: Callable[[Step], Scalar | float] = lambda step: 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_coefficients: Coefficients = "quintic",
    dtype: str = "bfloat16",
    scaling: UpdateScaling = "spectral",
    split: MatrixSplit = "projections",
    row_normalize: bool = False,
    normuon_beta2: float | None = None,
    mesh: MeshConfig,
) -> optax.GradientTransformationExtraArgs:
    """Replace each matrix's gradient by its orthogonalised momentum, scaled by its shape.

    Takes a pytree whose leaves are `nnx.Param`s with letters, all of them matrices; `update` is given the training step
    as `step=`. In float32, and with the defaults, it equals `optax.contrib.muon` (before the learning rate) on one
    device: an exponential average with bias correction. The average is float32 whatever `dtype` the products have.
    """
    iterate = partial(newton_schulz, ns_steps=ns_steps, ns_coefficients=ns_coefficients, dtype=dtype)
    view = partial(MatrixView, mesh=mesh, split=split)

    def init(params: Any) -> MuonState:
        average = jax.tree.map(partial(jnp.zeros_like, dtype=jnp.float32), params)
        second = lambda weight: weight.replace(view(weight).no_neurons())
        neurons = None if normuon_beta2 is None else jax.tree.map(second, params, is_leaf=_is_weight)
        return MuonState(jnp.ones([], jnp.float32), average, neurons)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, MuonState]:
        now = momentum(extra["step"])
        remaining = state.remaining * now
        average = optax.tree.update_moment(updates, state.momentum, now, 1)  # pyright: ignore[reportArgumentType]
        if nesterov:
            share, own = now / (1 - remaining * now), (1 - now) / (1 - remaining)
            direction = jax.tree.map(lambda m, g: share * m + own * g, average, updates)
        else:
            direction = jax.tree.map(lambda m: m / (1 - remaining), average)

        weights, structure = jax.tree.flatten(direction, is_leaf=_is_weight)
        views, arrays = [view(weight) for weight in weights], [weight[...] for weight in weights]
        if row_normalize:
            arrays = [x / (_norm(x, v.ins) + 1e-8) for x, v in zip(arrays, views, strict=True)]
        arrays = orthogonalize_all(arrays, views, iterate, mesh)
        neurons = state.neurons
        if normuon_beta2 is not None:
            kept, places = jax.tree.flatten(neurons, is_leaf=_is_weight)
            pairs = [
                normalize_neurons(x, second[...], v, normuon_beta2)
                for x, second, v in zip(arrays, kept, views, strict=True)
            ]
            arrays = [x for x, _ in pairs]
            neurons = jax.tree.unflatten(places, [w.replace(s) for w, (_, s) in zip(kept, pairs, strict=True)])
        scaled = [w.replace(x * v.scale(scaling)) for w, x, v in zip(weights, arrays, views, strict=True)]
        return jax.tree.unflatten(structure, scaled), MuonState(remaining, average, neurons)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.named_scope("newton_schulz")  # profiles and compiled programs show where its products are
def newton_schulz(
    x: Matrices, *, ns_steps: int = 5, ns_coefficients: Coefficients = "quintic", dtype: str = "float32"
) -> Matrices:
    """The nearest semi-orthogonal matrix, nearly: quintic singular values end in about [0.7, 1.2].

    Rows must not outnumber columns. Polar Express repeats its last step if there are more than five.
    """
    norm = _norm(x, (1, 2))
    if ns_coefficients == "polar_express":
        steps, norm = (POLAR_EXPRESS + POLAR_EXPRESS[-1:] * ns_steps)[:ns_steps], POLAR_EXPRESS_MARGIN * norm
    else:
        steps = (QUINTIC if ns_coefficients == "quintic" else ns_coefficients,) * ns_steps
    x = (x / (norm + 1e-8)).astype(dtype)
    for a, b, c in steps:
        gram = jnp.einsum("mrs,mqs->mrq", x, x)
        x = a * x + jnp.einsum("mrq,mqs->mrs", b * gram + c * (gram @ gram), x)
    return x


def count_muon_flops(params: Any, *, ns_steps: int = 5, split: MatrixSplit = "projections", devices: int = 1) -> int:
    """Multiplications and additions of one update's products, for all matrix weights of a pytree on all devices.

    A step takes XXᵀ (2R²S), its square (2R³) and one product with X (2R²S), for a matrix of R ≤ S. What is counted
    element by element (momentum, norms, scales) comes on top: about 30 operations a weight, against 4R a step.
    Matrices are not divided: of each shape every one of the `devices` takes as many, the last ones perhaps zeros
    (where weights of one shape are sharded alike, as by data alone).
    """
    views = [MatrixView(weight, MeshConfig(), split) for weight in jax.tree.leaves(params, is_leaf=_is_weight)]
    step = lambda rows, columns: 4 * rows**2 * columns + 2 * rows**3
    counts = Counter[tuple[int, int]]()
    for view in views:
        counts[view.shape] += view.count
    return sum(-(-count // devices) * devices * ns_steps * step(*shape) for shape, count in counts.items())


def orthogonalize_all(
    arrays: Sequence[Array], views: Sequence["MatrixView"], iterate: Callable[[Matrices], Matrices], mesh: MeshConfig
) -> list[Array]:
    """Apply `iterate` to every matrix of some weights, all of one shape (and sharding) at once."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, view in enumerate(views):
        alike[view.shape, view.spec].append(index)
    results: dict[int, Array] = {}
    for (_, spec), indices in alike.items():
        stacks = _on_shares(iterate, [views[i].matrices(arrays[i]) for i in indices], spec, mesh)
        results |= {i: views[i].restored(stack) for i, stack in zip(indices, stacks, strict=True)}
    return [results[i] for i in range(len(views))]


def normalize_neurons(x: Array, second: Array, view: "MatrixView", beta2: float) -> tuple[Array, Array]:
    """NorMuon (arXiv:2510.05491): (each neuron over the root of its mean square, averaged over steps; that average).

    A neuron is all that leads into one output. Each matrix keeps its norm; so the average needs no bias correction.
    """
    second = beta2 * second + (1 - beta2) * jnp.mean(jnp.square(x), axis=view.ins, keepdims=True)
    even = x / (jnp.sqrt(second) + 1e-8)
    both = (*view.ins, *view.outs)
    return even * (_norm(x, both) / (_norm(even, both) + 1e-8)), second


def _norm(x: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def _is_weight(node: Any) -> bool:
    """A variable that holds an array: `optax.masked` leaves empty ones where others take over."""
    return isinstance(node, nnx.Variable) and not isinstance(node.get_value(), optax.MaskedNode)


class MatrixView:
    """One weight, stacked over layers or not, seen as a batch of matrices with no more rows than columns, and back."""

    def __init__(self, param: nnx.Variable[Array], mesh: MeshConfig, split: MatrixSplit) -> None:
        axis_names, self.array_shape = param.axis_names, param.shape
        lead = len(param.shape) - len(axis_names)
        ins, outs = matrix_axes(axis_names, heads=split == "heads")
        self.ins, self.outs = (tuple(lead + axis for axis in axes) for axes in (ins, outs))
        # Rows are the smaller side; of a square, the width: stacked weights are then sharded alike.
        width, other = (self.ins, self.outs) if axis_names.startswith("D") else (self.outs, self.ins)
        rows, columns = (width, other) if self._size(width) <= self._size(other) else (other, width)
        self.weight_spec = mesh.weight_spec("N" * lead + axis_names)
        sharded = lambda axis: None if self.weight_spec is None else self.weight_spec[axis]
        batch = [axis for axis in range(len(param.shape)) if axis not in (*rows, *columns)]
        batch.sort(key=lambda axis: sharded(axis) is None)  # heads in front: devices that divide them divide the stack
        self.order = (*batch, *rows, *columns)
        self.shape = (self._size(rows), self._size(columns))
        self.count = self._size(batch)
        first = sharded(batch[0]) if batch else None
        self.spec = self.weight_spec and PartitionSpec(first, sharded(rows[0]), sharded(columns[0]))

    def _size(self, axes: Sequence[int]) -> int:
        return math.prod(self.array_shape[axis] for axis in axes)

    def scale(self, rule: UpdateScaling) -> float:
        """What an orthogonal matrix of this shape is multiplied by.

        `spectral`: √max(1, out / in). `rms`: 0.2 √max(out, in), so that the root of the mean square is 0.2, about as in
        Adam's updates (arXiv:2502.16982).
        """
        ins, outs = self._size(self.ins), self._size(self.outs)
        return math.sqrt(max(1.0, outs / ins)) if rule == "spectral" else 0.2 * math.sqrt(max(ins, outs))

    def no_neurons(self) -> Array:
        """Zeros, one for each neuron of each matrix, with the weight's axes and its sharding of those that stay."""
        shape = tuple(1 if axis in self.ins else size for axis, size in enumerate(self.array_shape))
        spec = self.weight_spec
        own = spec and PartitionSpec(*(None if axis in self.ins else spec[axis] for axis in range(len(shape))))
        return jnp.zeros(shape, jnp.float32, out_sharding=own)  # pyright: ignore[reportCallIssue]

    def matrices(self, array: Array) -> Matrices:
        return jnp.reshape(array.transpose(self.order), (self.count, *self.shape), out_sharding=self.spec)

    def restored(self, matrices: Matrices) -> Array:
        ordered = tuple(self.array_shape[axis] for axis in self.order)
        spec = self.weight_spec and PartitionSpec(*(self.weight_spec[axis] for axis in self.order))
        back = jnp.reshape(matrices, ordered, out_sharding=spec)
        return back.transpose(tuple(self.order.index(axis) for axis in range(len(self.order))))


def _on_shares(
    iterate: Callable[[Matrices], Matrices], stacks: list[Array], spec: PartitionSpec | None, mesh: MeshConfig
) -> list[Array]:
    """`iterate`, with the matrices (not their rows) divided over all devices: no product needs communication.

    The way there is written out. Along an axis that shards the matrices, devices exchange parts of them for whole ones
    (all-to-all); along one that does not (data), each takes its share of what it has; an axis that divides the stacks
    (whole heads) has done it already. On the way back the results are exchanged again, and along data gathered: every
    device needs all of the update, and that much is sent and no more.
    """
    inside = [] if spec is None else [(axis, dim) for dim, axis in enumerate(spec) if axis is not None and dim > 0]
    taken = set() if spec is None else set(spec)
    repeating = [axis for axis, size in mesh.axis_sizes.items() if size > 1 and axis not in taken]
    devices = math.prod(mesh.axis_sizes[axis] for axis in (*(axis for axis, _ in inside), *repeating))

    def share(*parts: Array) -> tuple[Array, ...]:
        x = jnp.concatenate(parts)
        count = x.shape[0]
        x = jnp.pad(x, ((0, -count % devices), (0, 0), (0, 0)))
        for axis, dim in inside:
            x = _whole(x, axis, dim, mesh.axis_sizes[axis])
        for axis in repeating:
            size = x.shape[0] // mesh.axis_sizes[axis]
            x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size)
        x = iterate(x)
        for axis in reversed(repeating):
            x = jax.lax.all_gather(x, axis, axis=0, tiled=True)
        for axis, dim in reversed(inside):
            x = _divided(x, axis, dim, mesh.axis_sizes[axis])
        ends = itertools.accumulate(part.shape[0] for part in parts)
        return tuple(x[end - part.shape[0] : end] for part, end in zip(parts, ends, strict=True))

    specs = (spec,) * len(stacks)
    return [x.astype(jnp.float32) for x in mesh.shard_map(share, specs, specs)(*stacks)]


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
