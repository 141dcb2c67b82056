"""Muon: orthogonalized momentum for the matrices of the blocks, Adam for all other parameters.

Muon is by Jordan et al. (2024), https://kellerjordan.github.io/posts/muon. The config holds everything that a
researcher changes about it; `orthogonalize` has the Newton-Schulz iteration and its distribution over devices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from gptjax.core.errors import UserError
from gptjax.optim.adamw import add_weight_decay, clip_by_norm, scale_by_adam, scale_by_learning_rate
from gptjax.optim.orthogonalize import (
    Coefficients,
    MatrixSplit,
    MatrixView,
    is_unmasked_param,
    norm_over,
    orthogonalize_all,
)
from gptjax.optim.param_groups import GroupedOptimizer, ParamHyperparams, map_params
from gptjax.optim.schedules import Constant, Cosine, Schedule, Step
from gptjax.sharding.axes import Scalar, weight_role
from gptjax.sharding.mesh import MeshConfig

UpdateScale = Literal["spectral", "rms"]


@dataclass(frozen=True)
class Muon(GroupedOptimizer):
    """Muon for the matrices of the blocks, Adam for all other parameters (which have the betas, epsilon and groups)."""

    learning_rate: float = 0.02
    """Peak learning rate of the matrices: the singular values of an update, before `update_scale`.
    Embeddings, head and vectors have `adam_learning_rate`."""
    schedule: Schedule = Cosine(warmup_steps=100, min_ratio=0.1)
    epsilon: float = 1e-10
    """Adam's: added to the root of the mean square, by which an update is divided."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices, times their learning rate; other groups set their own."""
    clip_norm: float | None = None
    """Largest global norm of the gradients; None does not clip (the size of Muon's updates does not depend on it)."""
    adam_learning_rate: float = 6e-3
    """Adam's peak learning rate: of embeddings, head and vectors, unless a group has its own."""
    momentum: float = 0.95
    """Fraction of the average gradient (float32) that is kept each step."""
    momentum_min: float = 0.85
    """Momentum where `momentum_schedule` is 0. Between 0 and 1 it is interpolated."""
    momentum_schedule: Schedule = Constant()
    """Where it is 1, the momentum is `momentum`. A warm-up raises it from `momentum_min`; a decay lowers it again."""
    nesterov: bool = True
    """Orthogonalize the momentum mixed with the gradient once more (Nesterov), not the momentum alone."""
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    ns_coefficients: Coefficients = "quintic"
    """Of an iteration: Jordan's `quintic`, `polar_express` (different ones each iteration), or any (a, b, c)."""
    ns_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the Newton-Schulz products."""
    update_scale: UpdateScale = "spectral"
    """Factor by the shape: `spectral` √max(1, out / in), or `rms` 0.2 √max(out, in), the size of Adam's updates."""
    matrix_split: MatrixSplit = "projections"
    """What counts as one matrix in attention's input projections: each of q, k and v, or each head of them."""
    row_normalize: bool = False
    """Normalize each output's row of the momentum before the iterations (MuonEq)."""
    normuon_beta2: float | None = None
    """NorMuon's second-moment decay: outputs are normalized by their running mean square; None does not."""
    weight_decay_schedule: Schedule = Constant()
    """Multiplies the weight decay of the matrices, besides `schedule`."""
    cautious_decay: bool = False
    """Decay an element of a matrix only where the update shrinks it, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ns_steps < 1:
            raise UserError(f"optimizer.ns_steps is {self.ns_steps}; it must be at least 1.")
        if not isinstance(self.ns_coefficients, str) and not all(map(math.isfinite, self.ns_coefficients)):
            raise UserError(f"optimizer.ns_coefficients is {self.ns_coefficients}; it must be three finite numbers.")
        if self.momentum_min != type(self).momentum_min and self.momentum_schedule == Constant():
            raise UserError(
                f"optimizer.momentum_min is {self.momentum_min}, but without an optimizer.momentum_schedule the "
                "momentum is always optimizer.momentum. Set a schedule that warms up or decays, or leave both out."
            )

    def uses_muon(self, path: str, axis_names: str) -> bool:
        """Whether a parameter is Muon's: a matrix that no named group claims for Adam."""
        return weight_role(axis_names) == "matrix" and not any(group.matches(path) for group in self.named_groups)

    def hyperparams(self, path: str, axis_names: str) -> ParamHyperparams:
        """The hyperparameters of a parameter, groups applied. Muon's matrices do not use betas and epsilon."""
        base = ParamHyperparams(self.adam_learning_rate, self.beta1, self.beta2, self.epsilon, 0.0)
        if self.uses_muon(path, axis_names):
            return base._replace(learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        return self.apply_groups(base, path, axis_names=axis_names)

    def momentum_at(self, step: Step, *, steps: int) -> Scalar:
        """The momentum of a step."""
        return self.momentum_min + (self.momentum - self.momentum_min) * self.momentum_schedule(step, steps=steps)

    def build(self, *, steps: int, mesh: MeshConfig) -> optax.GradientTransformationExtraArgs:
        """The transformation for a run of `steps` whose parameters are sharded over `mesh`."""
        matrix_decay = add_weight_decay(
            self.hyperparams, partial(self.weight_decay_schedule, steps=steps), cautious=self.cautious_decay
        )
        matrices, others = partial(self._mask, muon=True), partial(self._mask, muon=False)
        return optax.named_chain(
            ("check_groups", self.check_groups()),
            ("clip", clip_by_norm(self.clip_norm)),
            ("muon", optax.masked(scale_by_muon(self, steps=steps, mesh=mesh), matrices)),
            ("adam", optax.masked(scale_by_adam(self.hyperparams), others)),
            ("matrix_weight_decay", optax.masked(matrix_decay, matrices)),
            ("weight_decay", optax.masked(add_weight_decay(self.hyperparams), others)),
            ("learning_rate", scale_by_learning_rate(self.hyperparams, self.schedule, steps=steps)),
        )

    def _mask(self, params: Any, *, muon: bool) -> Any:
        """True for the parameters that are Muon's, or (`muon=False`) for those that are not."""
        return map_params(lambda path, p: p.replace(self.uses_muon(path, p.axis_names) == muon), params)


class MuonState(NamedTuple):
    """Muon's state, in float32."""

    momentum_product: Scalar
    """Product of the momenta of all steps so far, for the bias correction."""
    momentum: Any
    """Average gradient of each matrix parameter, sharded like it."""
    second_moment: Any
    """NorMuon's mean squares: the same arrays with size 1 along the input axes; None without NorMuon."""


def scale_by_muon(config: Muon, *, steps: int, mesh: MeshConfig) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient of each matrix by its orthogonalized momentum, scaled by its shape.

    All leaves must be `nnx.Param`s with the axis names of matrices. `update` takes the training step as `step=`. The
    momentum is an exponential average with bias correction, so with default fields and `ns_dtype="float32"` this
    equals `optax.contrib.muon` before the learning rate.
    """
    make_view = lambda param: MatrixView(param, mesh, matrix_split=config.matrix_split)

    def init(params: Any) -> MuonState:
        average = jax.tree.map(partial(jnp.zeros_like, dtype=jnp.float32), params)
        zeros = lambda param: param.replace(make_view(param).zero_second_moment())
        second = None if config.normuon_beta2 is None else jax.tree.map(zeros, params, is_leaf=is_unmasked_param)
        return MuonState(jnp.ones([], jnp.float32), average, second)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, MuonState]:
        momentum = config.momentum_at(extra["step"], steps=steps)
        product = state.momentum_product * momentum
        average = optax.tree.update_moment(updates, state.momentum, momentum, 1)  # pyright: ignore[reportArgumentType]
        if config.nesterov:
            kept, new = momentum / (1 - product * momentum), (1 - momentum) / (1 - product)
            direction = jax.tree.map(lambda m, g: kept * m + new * g, average, updates)
        else:
            direction = jax.tree.map(lambda m: m / (1 - product), average)
        direction, second_moment = _orthogonalize_direction(
            config, direction, second_moment=state.second_moment, make_view=make_view
        )
        return direction, MuonState(product, average, second_moment)

    return optax.GradientTransformationExtraArgs(init, update)


def _orthogonalize_direction(
    config: Muon, direction: Any, *, second_moment: Any, make_view: Callable[[Any], MatrixView]
) -> tuple[Any, Any]:
    """The scaled orthogonal update of a tree of momenta, and NorMuon's new second moment."""
    params, structure = jax.tree.flatten(direction, is_leaf=is_unmasked_param)
    views, arrays = [make_view(param) for param in params], [param[...] for param in params]
    if config.row_normalize:
        arrays = [x / (norm_over(x, view.input_axes) + 1e-8) for x, view in zip(arrays, views, strict=True)]
    arrays = orthogonalize_all(
        arrays, views, ns_steps=config.ns_steps, ns_coefficients=config.ns_coefficients, dtype=config.ns_dtype
    )
    if config.normuon_beta2 is not None:
        seconds, second_structure = jax.tree.flatten(second_moment, is_leaf=is_unmasked_param)
        pairs = [
            normalize_neurons(x, second[...], view=view, beta2=config.normuon_beta2)
            for x, second, view in zip(arrays, seconds, views, strict=True)
        ]
        arrays = [x for x, _ in pairs]
        seconds = [old.replace(new) for old, (_, new) in zip(seconds, pairs, strict=True)]
        second_moment = jax.tree.unflatten(second_structure, seconds)
    factors = [update_factor(view, config.update_scale) for view in views]
    updates = [param.replace(x * factor) for param, x, factor in zip(params, arrays, factors, strict=True)]
    return jax.tree.unflatten(structure, updates), second_moment


def normalize_neurons(x: Array, second_moment: Array, *, view: MatrixView, beta2: float) -> tuple[Array, Array]:
    """NorMuon (arXiv:2510.05491): each neuron over its root mean square, averaged over steps; and that average.

    A neuron is everything that leads into one output. The norm of each matrix is kept, so the average needs no bias
    correction.
    """
    mean_square = jnp.mean(jnp.square(x), axis=view.input_axes, keepdims=True)
    second_moment = beta2 * second_moment + (1 - beta2) * mean_square
    normalized = x / (jnp.sqrt(second_moment) + 1e-8)
    axes = (*view.input_axes, *view.output_axes)
    return normalized * (norm_over(x, axes) / (norm_over(normalized, axes) + 1e-8)), second_moment


def update_factor(view: MatrixView, scale: UpdateScale) -> float:
    """The factor on an orthogonal update by the shape of its matrix.

    `spectral`: √max(1, out / in). `rms`: 0.2 √max(out, in), which makes the root mean square 0.2, about that of Adam's
    updates (arXiv:2502.16982).
    """
    if scale == "spectral":
        return math.sqrt(max(1.0, view.output_dim / view.input_dim))
    return 0.2 * math.sqrt(max(view.input_dim, view.output_dim))
