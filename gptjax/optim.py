"""Optimizers: each config builds an optax chain: clip → direction → decay → learning rate of the step.

Weights fall into groups by their letters (`shapes.role`): matrices, the embedding tables, the head, and vectors (gains
and biases). The learning rate is a function of the training step, given to `update` as `step=`: there is one clock.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gptjax.errors import UserError
from gptjax.layout import Layout
from gptjax.muon import scale_by_muon
from gptjax.schedules import Cosine, Schedule
from gptjax.shapes import Role, Scalar, role

Optimizer = optax.GradientTransformationExtraArgs


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); the defaults are nanoGPT's for GPT-2 124M."""

    learning_rate: float = 6e-4
    """Peak learning rate."""
    schedule: Schedule = Cosine(warmup=2000, floor=0.1)
    """Multiplies the learning rates, as a function of the step."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    """Share of a weight taken off each step, times the learning rate; never of vectors (gains, biases)."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None does not clip."""
    embedding_rate: float = 1.0
    """Factor on the learning rate of the token and position tables (and so of a tied head)."""
    head_rate: float = 1.0
    """Factor on the learning rate of an untied head."""
    vector_rate: float = 1.0
    """Factor on the learning rate of gains and biases."""

    def __post_init__(self) -> None:
        _check(self, positive=("learning_rate", "epsilon"), shares=("beta1", "beta2"), not_negative=("weight_decay",))

    def build(self, *, steps: int, layout: Layout) -> Optimizer:
        """The optax transformation for a run of `steps`."""
        del layout  # elementwise: as sharded as its weights
        factors: dict[Role, float] = {
            "matrix": 1.0,
            "embedding": self.embedding_rate,
            "head": self.head_rate,
            "vector": self.vector_rate,
        }
        return optax.named_chain(
            ("clip", clip(self.clip_norm)),
            ("adam", optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)),
            (
                "decay",
                optax.add_decayed_weights(
                    self.weight_decay, mask=lambda tree: where_role(tree, "vector", inside=False)
                ),
            ),
            ("rate", scale_by_rates({r: self.learning_rate * f for r, f in factors.items()}, self.schedule, steps)),
        )


@dataclass(frozen=True)
class Muon:
    """Muon for the matrices of the blocks, Adam for everything else, each group at its own learning rate."""

    learning_rate: float = 0.02
    """Peak learning rate of the matrices; an update's singular values are about this, times √max(1, out / in)."""
    schedule: Schedule = Cosine(warmup=100, floor=0.1)
    """Multiplies all learning rates, as a function of the step."""
    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    """Newton–Schulz iterations."""
    dtype: str = "bfloat16"
    """Type of the Newton–Schulz products; momentum is float32."""
    weight_decay: float = 0.0
    """Decoupled decay of the matrices, times their learning rate."""
    embedding_learning_rate: float = 6e-3
    """Adam's peak learning rate for the token and position tables (and so for a tied head)."""
    head_learning_rate: float = 6e-3
    """Adam's peak learning rate for an untied head."""
    vector_learning_rate: float = 6e-3
    """Adam's peak learning rate for gains and biases."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-10
    clip_norm: float | None = None
    """Largest global gradient norm; None does not clip (Muon's update does not grow with the gradient)."""

    def __post_init__(self) -> None:
        rates = ("learning_rate", "embedding_learning_rate", "head_learning_rate", "vector_learning_rate", "epsilon")
        _check(self, positive=rates, shares=("momentum", "beta1", "beta2"), not_negative=("weight_decay",))
        if self.dtype not in ("bfloat16", "float32"):
            raise UserError(f"optimizer.dtype is {self.dtype!r}; it is bfloat16 or float32.")
        if self.iterations < 1:
            raise UserError(f"optimizer.iterations is {self.iterations}; it must be at least 1.")

    def build(self, *, steps: int, layout: Layout) -> Optimizer:
        """The optax transformation for a run of `steps` whose weights are sharded by `layout`."""
        muon = scale_by_muon(
            momentum=self.momentum, nesterov=self.nesterov, iterations=self.iterations, dtype=self.dtype, layout=layout
        )
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
        rates: dict[Role, float] = {
            "matrix": self.learning_rate,
            "embedding": self.embedding_learning_rate,
            "head": self.head_learning_rate,
            "vector": self.vector_learning_rate,
        }
        matrices = lambda tree: where_role(tree, "matrix")
        return optax.named_chain(
            ("clip", clip(self.clip_norm)),
            ("muon", optax.masked(muon, matrices)),
            ("adam", optax.masked(adam, lambda tree: where_role(tree, "matrix", inside=False))),
            ("decay", optax.add_decayed_weights(self.weight_decay, mask=matrices)),
            ("rate", scale_by_rates(rates, self.schedule, steps)),
        )


def where_role(tree: Any, wanted: Role, *, inside: bool = True) -> Any:
    """A tree like `tree` that says of each weight whether its role is the wanted one (not `inside`: is another)."""
    mark = lambda param: param.replace((role(param.letters) == wanted) == inside)
    return jax.tree.map(mark, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


def clip(norm: float | None) -> optax.GradientTransformation:
    """Scale all gradients down together when their global norm exceeds `norm`."""
    return optax.identity() if norm is None else optax.clip_by_global_norm(norm)


def scale_by_rates(rates: dict[Role, float], schedule: Schedule, steps: int) -> Optimizer:
    """Multiply each update by minus its group's learning rate at the training step, given to `update` as `step`."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        multiplier = schedule(extra["step"], steps=steps)
        scaled = lambda param: jax.tree.map(lambda u: -rates[role(param.letters)] * multiplier * u, param)
        return jax.tree.map(scaled, updates, is_leaf=lambda node: isinstance(node, nnx.Variable)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def learning_rate(optimizer: AdamW | Muon, step: Any, *, steps: int) -> Scalar:
    """The learning rate of the matrices at a step, for the log."""
    return jnp.float32(optimizer.learning_rate) * optimizer.schedule(step, steps=steps)


def _check(
    optimizer: Any, *, positive: tuple[str, ...], shares: tuple[str, ...], not_negative: tuple[str, ...]
) -> None:
    for name in positive:
        if not (value := getattr(optimizer, name)) > 0:
            raise UserError(f"optimizer.{name} is {value}; it must be above 0.")
    for name in shares:
        if not 0 <= (value := getattr(optimizer, name)) < 1:
            raise UserError(f"optimizer.{name} is {value}; it must be in [0, 1).")
    for name in not_negative:
        if not (value := getattr(optimizer, name)) >= 0:
            raise UserError(f"optimizer.{name} is {value}; it must be at least 0.")
    if optimizer.clip_norm is not None and not optimizer.clip_norm > 0:
        raise UserError(f"optimizer.clip_norm is {optimizer.clip_norm}; it must be above 0, or None for no clipping.")
