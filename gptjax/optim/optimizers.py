"""Optimizers: each config builds an optax chain: clip → direction → decay → learning rate of the step.

Weights fall into groups by their letters (`shapes.role`): matrices, embedding tables, value embeddings, the head, and
vectors (gains, biases, scalars, sinks); some may be named. Of a group a config writes what is unlike the rest. All
schedules are functions of the training step, given to `update` as `step=`: there is one clock.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from gptjax.core.errors import UserError
from gptjax.optim.orthogonalize import Coefficients, MatrixSplit, UpdateScaling, scale_by_muon
from gptjax.optim.schedules import Constant, Cosine, Schedule, Step
from gptjax.sharding.axes import Scalar, weight_role
from gptjax.sharding.mesh import MeshConfig

Optimizer = optax.GradientTransformationExtraArgs

_POSITIVE = ("learning_rate", "adam_learning_rate", "epsilon", "clip_norm")
_SHARES = ("momentum", "momentum_min", "beta1", "beta2", "normuon_beta2")
_NOT_NEGATIVE = ("weight_decay",)
_TINY = float(np.finfo(np.float32).tiny)
"""The least float32 that no processor takes for 0."""


def _check(part: Any, where: str) -> None:
    """The ranges of all fields that are given."""
    for field in fields(part):
        value = getattr(part, field.name)
        if value is None:
            continue
        if field.name in _POSITIVE and not 0 < value < math.inf:
            raise UserError(f"{where}.{field.name} is {value}; it must be above 0 and finite.")
        if field.name == "epsilon" and value < _TINY:
            raise UserError(f"{where}.epsilon is {value}, which float32 takes for 0; it must be above {_TINY:.3g}.")
        if field.name in _SHARES and not 0 <= value < 1:
            raise UserError(f"{where}.{field.name} is {value}; it must be in [0, 1).")
        if field.name in _NOT_NEGATIVE and not 0 <= value < math.inf:
            raise UserError(f"{where}.{field.name} is {value}; it must be at least 0 and finite.")


@dataclass(frozen=True)
class ParamGroup:
    """What one group of weights has of its own; None: as the optimizer says."""

    learning_rate: float | None = None
    """Peak learning rate."""
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    weight_decay: float | None = None
    """Share of a weight taken off each step, times the learning rate."""

    def __post_init__(self) -> None:
        _check(self, "Adam")


@dataclass(frozen=True)
class NamedGroup:
    """A group for weights of one name, whatever part they play; the rest is as that part's group says."""

    weight: str
    """The end of a weight's path: `x0_mix`, or `blocks.x0_mix`."""
    group: ParamGroup = ParamGroup()

    def matches(self, path: str) -> bool:
        return path == self.weight or path.endswith(f".{self.weight}")


class ParamHyperparams(NamedTuple):
    """All that one weight is updated by: a group's own values, and the optimizer's where it has none."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


Rules = Callable[[str, str], ParamHyperparams]
"""(path, letters) of a weight → its rule."""


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); the defaults are nanoGPT's for GPT-2 124M."""

    learning_rate: float = 6e-4
    """Peak learning rate."""
    schedule: Schedule = Cosine(warmup_steps=2000, min_ratio=0.1)
    """Multiplies the learning rates, as a function of the step."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    """Share of a weight taken off each step, times the learning rate; not of vectors, unless their group says so."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None does not clip."""
    embedding: ParamGroup = ParamGroup()
    """What the token and position tables (and so a tied head) have of their own."""
    value_embedding: ParamGroup = ParamGroup()
    head: ParamGroup = ParamGroup()
    """An untied head."""
    vector: ParamGroup = ParamGroup()
    """Gains, biases, scalars of layers, attention sinks; no decay unless it says so."""
    named_groups: tuple[NamedGroup, ...] = ()
    """Weights with a group of their own."""

    def __post_init__(self) -> None:
        _check(self, "optimizer")

    def rule(self, path: str, axis_names: str) -> ParamHyperparams:
        """What a weight is updated by."""
        decay = 0.0 if weight_role(axis_names) == "vector" else self.weight_decay
        base = ParamHyperparams(self.learning_rate, self.beta1, self.beta2, self.epsilon, decay)
        return apply_groups(base, self, path, axis_names)

    def build(self, *, steps: int, mesh: MeshConfig) -> Optimizer:
        """The optax transformation for a run of `steps`."""
        del mesh  # elementwise: as sharded as its weights
        return optax.named_chain(
            ("groups", check_groups(self)),
            ("clip", clip_gradients(self.clip_norm)),
            ("adam", scale_by_adam(self.rule)),
            ("decay", add_decay(self.rule)),
            ("rate", scale_by_rates(self.rule, self.schedule, steps)),
        )


@dataclass(frozen=True)
class Muon:
    """Muon for the matrices of the blocks, Adam for everything else."""

    learning_rate: float = 0.02
    """Peak learning rate of the matrices; an update's singular values are about this, times what `scaling` says."""
    schedule: Schedule = Cosine(warmup_steps=100, min_ratio=0.1)
    """Multiplies all learning rates, as a function of the step."""
    momentum: float = 0.95
    """Share of the average gradient (float32) that stays each step."""
    momentum_min: float = 0.85
    """The momentum where `momentum_schedule` is 0; between, it lies in proportion."""
    momentum_schedule: Schedule = Constant()
    """1: `momentum`. With a warm-up it rises from `momentum_min`, with a decay it falls again at the end."""
    nesterov: bool = True
    ns_steps: int = 5
    """Newton–Schulz iterations."""
    ns_coefficients: Coefficients = "quintic"
    """Of the iterations: Jordan's `quintic`, `polar_express` (each step its own), or any (a, b, c)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the Newton–Schulz products; momentum is float32."""
    scaling: UpdateScaling = "spectral"
    """Of an update by its shape: `spectral` √max(1, out / in), or `rms` 0.2 √max(out, in), the size of Adam's."""
    split: MatrixSplit = "projections"
    """Which parts of q, k and v are matrices: each projection, or each head's."""
    row_normalize: bool = False
    """Whether each output's row of a matrix is first brought to the same norm (MuonEq)."""
    normuon_beta2: float | None = None
    """NorMuon: share of each neuron's mean square (float32) that stays each step; None: every neuron as it comes."""
    weight_decay: float = 0.0
    """Decoupled decay of the matrices, times their learning rate."""
    weight_decay_schedule: Schedule = Constant()
    """Multiplies the decay of the matrices, besides their learning rate's schedule."""
    cautious_decay: bool = False
    """Whether a matrix decays only where the update, too, makes an element smaller."""
    adam_learning_rate: float = 6e-3
    """Adam's peak learning rate, for all groups that have none of their own."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-10
    clip_norm: float | None = None
    """Largest global gradient norm; None does not clip (Muon's update does not grow with the gradient)."""
    embedding: ParamGroup = ParamGroup()
    """What the token and position tables (and so a tied head) have of their own; no decay unless it says so."""
    value_embedding: ParamGroup = ParamGroup()
    head: ParamGroup = ParamGroup()
    """An untied head."""
    vector: ParamGroup = ParamGroup()
    """Gains, biases, scalars of layers, attention sinks."""
    named_groups: tuple[NamedGroup, ...] = ()
    """Weights with a group of their own; a matrix named here is left to Adam."""

    def __post_init__(self) -> None:
        _check(self, "optimizer")
        if self.ns_steps < 1:
            raise UserError(f"optimizer.ns_steps is {self.ns_steps}; it must be at least 1.")
        if not isinstance(self.ns_coefficients, str) and not all(map(math.isfinite, self.ns_coefficients)):
            raise UserError(f"optimizer.ns_coefficients is {self.ns_coefficients}; it must be three numbers.")
        if self.momentum_min != type(self).momentum_min and self.momentum_schedule == Constant():
            raise UserError(
                f"optimizer.momentum_min is {self.momentum_min}, which needs optimizer.momentum_schedule to warm up or "
                "fall: without one the momentum is always optimizer.momentum."
            )

    def rule(self, path: str, axis_names: str) -> ParamHyperparams:
        """What a weight is updated by; of Muon's matrices the betas and epsilon mean nothing."""
        base = ParamHyperparams(self.adam_learning_rate, self.beta1, self.beta2, self.epsilon, 0.0)
        if self.is_muon_matrix(path, axis_names):
            return base._replace(learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        return apply_groups(base, self, path, axis_names)

    def is_muon_matrix(self, path: str, axis_names: str) -> bool:
        """Whether a weight is Muon's: a matrix that no group names."""
        return weight_role(axis_names) == "matrix" and not any(group.matches(path) for group in self.named_groups)

    def momentum_at(self, step: Step, *, steps: int) -> Scalar:
        """The momentum of a step."""
        return self.momentum_min + (self.momentum - self.momentum_min) * self.momentum_schedule(step, steps=steps)

    def build(self, *, steps: int, mesh: MeshConfig) -> Optimizer:
        """The optax transformation for a run of `steps` whose weights are sharded by `layout`."""
        muon = scale_by_muon(
            momentum=partial(self.momentum_at, steps=steps),
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            ns_coefficients=self.ns_coefficients,
            dtype=self.dtype,
            scaling=self.scaling,
            split=self.split,
            row_normalize=self.row_normalize,
            normuon_beta2=self.normuon_beta2,
            mesh=mesh,
        )
        decay = add_decay(self.rule, partial(self.weight_decay_schedule, steps=steps), cautious=self.cautious_decay)
        marked = lambda tree, own: map_weights(
            lambda path, w: w.replace(self.is_muon_matrix(path, w.axis_names) == own), tree
        )
        matrices, others = partial(marked, own=True), partial(marked, own=False)
        return optax.named_chain(
            ("groups", check_groups(self)),
            ("clip", clip_gradients(self.clip_norm)),
            ("muon", optax.masked(muon, matrices)),
            ("adam", optax.masked(scale_by_adam(self.rule), others)),
            ("matrix_decay", optax.masked(decay, matrices)),
            ("decay", optax.masked(add_decay(self.rule), others)),
            ("rate", scale_by_rates(self.rule, self.schedule, steps)),
        )


def apply_groups(rule: ParamHyperparams, optimizer: AdamW | Muon, path: str, axis_names: str) -> ParamHyperparams:
    """A rule with what the groups of a weight have of their own: that of its role, then each that names it."""
    part = weight_role(axis_names)
    groups = [] if part == "matrix" else [getattr(optimizer, part)]
    groups += [named.group for named in optimizer.named_groups if named.matches(path)]
    for group in groups:
        own = {field.name: getattr(group, field.name) for field in fields(group)}
        rule = rule._replace(**{name: value for name, value in own.items() if value is not None})
    return rule


def map_weights(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map `function(path, weight, ...)` over the variables of trees alike; a path is dotted: `blocks.mlp.up`."""
    named = lambda path, *weights: function(jax.tree_util.keystr(path, simple=True, separator="."), *weights)
    return jax.tree_util.tree_map_with_path(named, tree, *rest, is_leaf=lambda node: isinstance(node, nnx.Variable))


def map_by_group(rules: Rules, function: Callable[..., Array], tree: Any, *rest: Any) -> Any:
    """Map `function(rule, array, ...)` over the weights of trees alike; those that are masked stay out."""
    own = lambda path, weight, *others: jax.tree.map(partial(function, rules(path, weight.axis_names)), weight, *others)
    return map_weights(own, tree, *rest)


def check_groups(optimizer: AdamW | Muon) -> optax.GradientTransformation:
    """Nothing but a check, when the state is made, that each group that says something has a weight."""

    def init(params: Any) -> optax.EmptyState:
        axis_names: dict[str, str] = {}
        map_weights(lambda path, weight: axis_names.update({path: weight.axis_names}), params)
        paths, roles = list(axis_names), set(map(weight_role, axis_names.values()))
        for part in ("embedding", "value_embedding", "head", "vector"):
            own = {name: value for name, value in vars(getattr(optimizer, part)).items() if value is not None}
            if own and part not in roles:
                why = " (it is tied to the embedding)" if part == "head" else ""
                raise UserError(
                    f"optimizer.{part} says {', '.join(f'{name}={value}' for name, value in own.items())}, but this "
                    f"model has no {part.replace('_', ' ')} of its own{why}. Leave the group out."
                )
        for group in optimizer.named_groups:
            if not any(map(group.matches, paths)):
                raise UserError(
                    f"optimizer.named_groups has a group for {group.weight!r}, but no weight of this model is called so. "
                    f"Use the end of one of: {', '.join(paths)}."
                )
        return optax.EmptyState()

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def clip_gradients(norm: float | None) -> optax.GradientTransformation:
    """Scale all gradients down together when their global norm exceeds `norm`."""
    return optax.identity() if norm is None else optax.clip_by_global_norm(norm)


def scale_by_adam(rules: Rules) -> optax.GradientTransformation:
    """Adam's direction (Kingma & Ba 2015), each weight by the betas and epsilon of its own; moments are float32."""

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = partial(jax.tree.map, partial(jnp.zeros_like, dtype=jnp.float32))
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu=zeros(params), nu=zeros(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = state.count + 1
        mu = map_by_group(rules, lambda rule, g, m: (1 - rule.beta1) * g + rule.beta1 * m, updates, state.mu)
        nu = map_by_group(rules, lambda rule, g, v: (1 - rule.beta2) * g**2 + rule.beta2 * v, updates, state.nu)

        def direction(rule: ParamHyperparams, m: Array, v: Array) -> Array:
            m, v = m / (1 - rule.beta1**count), v / (1 - rule.beta2**count)
            return m / (jnp.sqrt(v) + rule.epsilon)

        return map_by_group(rules, direction, mu, nu), optax.ScaleByAdamState(count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def add_decay(
    rules: Rules, schedule: Callable[[Step], Scalar | float] = lambda step: 1.0, *, cautious: bool = False
) -> Optimizer:
    """Add each weight times its decay to its update; `cautious`: not where the update makes the weight larger."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        multiplier = schedule(extra["step"])

        def decayed(rule: ParamHyperparams, update: Array, weight: Array) -> Array:
            if rule.weight_decay == 0:
                return update
            decay = rule.weight_decay * multiplier * weight
            return update + (jnp.where(update * weight >= 0, decay, 0.0) if cautious else decay)

        return map_by_group(rules, decayed, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_rates(rules: Rules, schedule: Schedule, steps: int) -> Optimizer:
    """Multiply each update by minus its group's learning rate at the training step, given to `update` as `step`."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        multiplier = schedule(extra["step"], steps=steps)
        return map_by_group(rules, lambda rule, u: -rule.learning_rate * multiplier * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def learning_rate(optimizer: AdamW | Muon, step: Any, *, steps: int) -> Scalar:
    """The learning rate of the matrices at a step, for the log."""
    return jnp.float32(optimizer.learning_rate) * optimizer.schedule(step, steps=steps)
