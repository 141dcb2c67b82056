"""The training state: everything that the next step depends on besides the config and the data."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.sharding.axes import Count
from gptjax.sharding.mesh import MeshConfig

Counter = Count | Any
"""A count; or what stands for one while JAX lowers a program or a checkpoint is restored."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Step number, weights and optimizer moments; and the count of updates that were not finite and so not made."""

    step: Counter
    """Steps completed: the one clock of data, randomness and learning rate."""
    model: GPT
    optimizer: Any
    skipped: Counter
    """Skipped updates in all."""
    consecutive_skips: Counter
    """Skipped updates in a row, up to now."""
    ema: GPT | None = None
    """The average of the weights, if the run keeps one."""

    @property
    def eval_model(self) -> GPT:
        """The weights that count: the average of a run that keeps one."""
        return self.model if self.ema is None else self.ema


def create_state(
    config: GPTConfig, optimizer: optax.GradientTransformation, *, seed: int, mesh: MeshConfig, has_ema: bool = False
) -> TrainState:
    """A new state, drawn from `seed` and born sharded. Call it under `mesh.active()`."""
    return jax.jit(lambda: _new(config, optimizer, seed=seed, mesh=mesh, has_ema=has_ema))()


def abstract_state(
    config: GPTConfig, optimizer: optax.GradientTransformation, *, mesh: MeshConfig, has_ema: bool = False
) -> TrainState:
    """The state with shapes, types and shardings in place of arrays: what restore aims at, and what a plan reads."""
    shapes = jax.eval_shape(lambda: _new(config, optimizer, seed=0, mesh=mesh, has_ema=has_ema))
    return jax.tree.map(with_sharding, shapes)


def with_sharding(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A leaf of an abstract tree with a concrete sharding: the one in its type, on the mesh that is active."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    else:
        sharding = NamedSharding(mesh, leaf.sharding.spec if leaf.sharding is not None else PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def init_state(model: GPT, optimizer: optax.GradientTransformation, *, has_ema: bool = False) -> TrainState:
    """A state at step 0 that starts from given weights, with an average of them if it is `averaged`."""
    zero = jnp.zeros([], jnp.int32)
    return TrainState(
        step=zero,
        model=model,
        optimizer=optimizer.init(model),  # pyright: ignore[reportArgumentType]
        skipped=zero,
        consecutive_skips=zero,
        ema=copy_arrays(model) if has_ema else None,
    )


def copy_arrays(model: GPT) -> GPT:
    """The same weights in memory of their own: a step gives back what it was given, and no array twice."""
    return jax.tree.map(jnp.copy, model)


def _new(
    config: GPTConfig, optimizer: optax.GradientTransformation, *, seed: int, mesh: MeshConfig, has_ema: bool
) -> TrainState:
    return init_state(GPT(config, key=jax.random.key(seed), mesh=mesh), optimizer, has_ema=has_ema)
