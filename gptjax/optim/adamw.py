"""AdamW, as an optax chain: clip → Adam's direction → weight decay → learning rate."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from gptjax.optim.param_groups import GroupedOptimizer, ParamHyperparams, Resolver, map_with_hyperparams
from gptjax.optim.schedules import Schedule, Step
from gptjax.sharding.axes import Scalar, weight_role
from gptjax.sharding.mesh import MeshConfig


@dataclass(frozen=True)
class AdamW(GroupedOptimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019). The defaults are nanoGPT's for GPT-2 124M."""

    def hyperparams(self, path: str, axis_names: str) -> ParamHyperparams:
        """The hyperparameters of a parameter, groups applied."""
        decay = 0.0 if weight_role(axis_names) == "vector" else self.weight_decay
        base = ParamHyperparams(self.learning_rate, self.beta1, self.beta2, self.epsilon, decay)
        return self.apply_groups(base, path, axis_names=axis_names)

    def build(self, *, steps: int, mesh: MeshConfig) -> optax.GradientTransformationExtraArgs:
        """The transformation for a run of `steps`.

        `optax.partition` with a chain for each group would count steps in every group. Here hyperparameters are looked
        up for each parameter, so the step that `update` receives is the only one.
        """
        del mesh  # elementwise, so moments are sharded like their parameters
        return optax.named_chain(
            ("check_groups", self.check_groups()),
            ("clip", clip_by_norm(self.clip_norm)),
            ("adam", scale_by_adam(self.hyperparams)),
            ("weight_decay", add_weight_decay(self.hyperparams)),
            ("learning_rate", scale_by_learning_rate(self.hyperparams, self.schedule, steps=steps)),
        )


def clip_by_norm(norm: float | None) -> optax.GradientTransformation:
    """Scale all gradients down together where their global norm exceeds `norm`; None does not."""
    if norm is None:
        return optax.identity()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found = optax.tree.norm(updates)
        factor = jnp.where(found < norm, 1.0, norm / found)  # of scalars: dividing arrays costs a pass of its own
        return jax.tree.map(lambda update: factor * update, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_adam(resolve: Resolver) -> optax.GradientTransformation:
    """Adam's direction (Kingma & Ba 2015) with betas and epsilon for each parameter; moments are float32."""

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = partial(jax.tree.map, partial(jnp.zeros_like, dtype=jnp.float32))
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu=zeros(params), nu=zeros(params))

    def advance(updates: Any, mu: Any, nu: Any) -> tuple[Any, Any]:
        mu = map_with_hyperparams(resolve, lambda hp, g, m: (1 - hp.beta1) * g + hp.beta1 * m, updates, mu)
        return mu, map_with_hyperparams(resolve, lambda hp, g, v: (1 - hp.beta2) * g**2 + hp.beta2 * v, updates, nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = state.count + 1
        mu, nu = advance(updates, state.mu, state.nu)
        # Computed once more: XLA would hold the new moments beside the old ones until the step is accepted.
        own_mu, own_nu = advance(*jax.lax.optimization_barrier((updates, state.mu, state.nu)))

        def direction(hp: ParamHyperparams, m: Array, v: Array) -> Array:
            m, v = m / (1 - hp.beta1**count), v / (1 - hp.beta2**count)
            return m / (jnp.sqrt(v) + hp.epsilon)

        return map_with_hyperparams(resolve, direction, own_mu, own_nu), optax.ScaleByAdamState(count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def add_weight_decay(
    resolve: Resolver, schedule: Callable[[Step], Scalar | float] = lambda step: 1.0, *, cautious: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Add each parameter times its decay to its update; with `cautious`, only where the update shrinks it, too."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        multiplier = schedule(extra["step"])

        def decay(hp: ParamHyperparams, update: Array, param: Array) -> Array:
            if hp.weight_decay == 0:
                return update
            decay = hp.weight_decay * multiplier * param
            return update + (jnp.where(update * param >= 0, decay, 0.0) if cautious else decay)

        return map_with_hyperparams(resolve, decay, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_learning_rate(
    resolve: Resolver, schedule: Schedule, *, steps: int
) -> optax.GradientTransformationExtraArgs:
    """Multiply each update by minus its parameter's learning rate at the `step` that `update` receives."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        multiplier = schedule(extra["step"], steps=steps)
        return map_with_hyperparams(resolve, lambda hp, u: -hp.learning_rate * multiplier * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
