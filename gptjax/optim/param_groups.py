"""Parameter groups: hyperparameters by the role of a parameter and by its name.

The role is read off the parameter's axis names (`sharding.axes.weight_role`): matrix, embedding, value_embedding, head
or vector (norm scales, biases, scalars, attention sinks). A group lists only what differs from the optimizer's fields.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gptjax.core.errors import UserError
from gptjax.optim.schedules import Cosine, Schedule, Step
from gptjax.sharding.axes import Scalar, weight_role

_TINY = float(np.finfo(np.float32).tiny)
"""The smallest normal float32; processors may flush smaller values to 0."""

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(
        ("learning_rate", "adam_learning_rate", "clip_norm"), (lambda x: 0 < x < math.inf, "above 0 and finite")
    ),
    **dict.fromkeys(
        ("momentum", "momentum_min", "beta1", "beta2", "normuon_beta2"), (lambda x: 0 <= x < 1, "in [0, 1)")
    ),
    "weight_decay": (lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    "epsilon": (lambda x: _TINY <= x < math.inf, f"at least {_TINY:.3g}, the smallest normal float32, and finite"),
}


def check_ranges(config: Any, prefix: str) -> None:
    """Raise a UserError that names a field of an optimizer config whose value is out of its range."""
    for field in fields(config):
        value = getattr(config, field.name)
        in_range, wanted = _RANGES.get(field.name, (lambda x: True, ""))
        if value is not None and not in_range(value):
            raise UserError(f"{prefix}.{field.name} is {value}; it must be {wanted}.")


@dataclass(frozen=True)
class ParamGroup:
    """Hyperparameters of one group. Fields that are None fall back to the optimizer's."""

    learning_rate: float | None = None
    """Peak learning rate."""
    beta1: float | None = None
    """Share of the mean of gradients that is kept each step."""
    beta2: float | None = None
    """Share of the mean of squared gradients that is kept each step."""
    epsilon: float | None = None
    """Added to the root of the mean square, by which an update is divided."""
    weight_decay: float | None = None
    """Decoupled weight decay, times the learning rate."""

    def __post_init__(self) -> None:
        check_ranges(self, "ParamGroup")

    def overrides(self) -> dict[str, float]:
        """The fields that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class NamedGroup:
    """A group for parameters of one name. It overrides the group of the parameter's role."""

    name: str
    """The parameter's path or its last parts: `x0_mix` or `blocks.x0_mix`."""
    group: ParamGroup = ParamGroup()

    def matches(self, path: str) -> bool:
        return path == self.name or path.endswith(f".{self.name}")


class ParamHyperparams(NamedTuple):
    """The resolved hyperparameters of one parameter."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


Resolver = Callable[[str, str], ParamHyperparams]
"""(path, axis names) of a parameter → its hyperparameters."""


@dataclass(frozen=True)
class GroupedOptimizer:
    """The fields and methods that AdamW and Muon share."""

    learning_rate: float = 6e-4
    """Peak learning rate."""
    schedule: Schedule = Cosine(warmup_steps=2000, min_ratio=0.1)
    """Multiplies the learning rates of all groups."""
    beta1: float = 0.9
    """Adam's share of the mean of gradients that is kept each step."""
    beta2: float = 0.95
    """Adam's share of the mean of squared gradients that is kept each step."""
    epsilon: float = 1e-8
    """Added to the root of Adam's mean square, by which an update is divided."""
    weight_decay: float = 0.1
    """Decoupled weight decay, times the learning rate; vectors decay only if their group says so."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradients; None does not clip."""
    embedding: ParamGroup = ParamGroup()
    """Group of the token and position embeddings; of the head too, if it is tied."""
    value_embedding: ParamGroup = ParamGroup()
    """Group of the value embeddings."""
    head: ParamGroup = ParamGroup()
    """Group of an untied head."""
    vector: ParamGroup = ParamGroup()
    """Group of norm scales, biases, scalars and attention sinks."""
    named_groups: tuple[NamedGroup, ...] = ()
    """Groups of single parameters, by name."""

    def __post_init__(self) -> None:
        check_ranges(self, "optimizer")

    def learning_rate_at(self, step: Step, *, steps: int) -> Scalar:
        """`learning_rate` at a step of a run of `steps`, for the log."""
        return jnp.float32(self.learning_rate) * self.schedule(step, steps=steps)

    def apply_groups(self, base: ParamHyperparams, path: str, *, axis_names: str) -> ParamHyperparams:
        """`base`, overridden by the group of the parameter's role and then by each named group that matches."""
        role = weight_role(axis_names)
        groups = [] if role in ("matrix", "adapter") else [getattr(self, role)]
        groups += [named.group for named in self.named_groups if named.matches(path)]
        for group in groups:
            base = base._replace(**group.overrides())
        return base

    def check_groups(self) -> optax.GradientTransformation:
        """A transformation that changes nothing; its `init` raises a UserError for a group without parameters."""

        def init(params: Any) -> optax.EmptyState:
            axis_names: dict[str, str] = {}
            map_params(lambda path, param: axis_names.update({path: param.axis_names}), params)
            roles = set(map(weight_role, axis_names.values()))
            for role in ("embedding", "value_embedding", "head", "vector"):
                if (overrides := getattr(self, role).overrides()) and role not in roles:
                    tied = " (it is tied to the embedding)" if role == "head" else ""
                    raise UserError(
                        f"optimizer.{role} sets {', '.join(f'{name}={value}' for name, value in overrides.items())}, "
                        f"but this model has no {role.replace('_', ' ')} of its own{tied}. Remove the group."
                    )
            for named in self.named_groups:
                if not any(map(named.matches, axis_names)):
                    raise UserError(
                        f"optimizer.named_groups has a group for {named.name!r}, but no parameter of this model has "
                        f"that name. Use the last parts of one of: {', '.join(axis_names)}."
                    )
            return optax.EmptyState()

        return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def map_params(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map `function(path, param, ...)` over the `nnx.Variable`s of trees; paths are dotted, such as `blocks.mlp.up`."""
    from flax import nnx  # slow to import

    with_dots = lambda path, *params: function(jax.tree_util.keystr(path, simple=True, separator="."), *params)
    return jax.tree_util.tree_map_with_path(with_dots, tree, *rest, is_leaf=lambda node: isinstance(node, nnx.Variable))


def map_with_hyperparams(resolve: Resolver, function: Callable[..., Array], tree: Any, *rest: Any) -> Any:
    """Map `function(hyperparams, array, ...)` over the arrays of trees of parameters; masked ones are skipped."""
    map_arrays = lambda path, param, *others: jax.tree.map(
        partial(function, resolve(path, param.axis_names)), param, *others
    )
    return map_params(map_arrays, tree, *rest)
