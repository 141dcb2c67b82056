"""The training state: everything besides the config and the data that the next step depends on."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from gptjax.finetuning.adapters import add_adapters, get_trainable
from gptjax.finetuning.lora import LoRA
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.sharding.axes import Count
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.loss_scale import LossScale, create_loss_scale

NO_ADAPTERS = LoRA()

Counter = Count | Any
"""A count, or a stand-in for one while JAX lowers a program or a checkpoint is restored."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The step number, the weights, the optimizer's moments and the counts of skipped updates."""

    step: Counter
    """Completed steps. Data, randomness and learning rates depend on this number only."""
    model: GPT
    optimizer: Any
    """The state of the optax transformation."""
    skipped: Counter
    """Updates skipped so far, because they were not finite."""
    consecutive_skips: Counter
    """Updates skipped in a row, up to now."""
    ema: GPT | None = None
    """The average of the weights, if the run keeps one."""
    loss_scale: LossScale | None = None
    """The factor on the loss, if the model computes in float16."""

    @property
    def eval_model(self) -> GPT:
        """The weights to evaluate, sample and export: the average if the run keeps one."""
        return self.model if self.ema is None else self.ema


def create_state(
    config: GPTConfig,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: MeshConfig,
    has_ema: bool = False,
) -> TrainState:
    """Draw a new state from `seed`, already sharded. Call it under `mesh.activate()`."""
    return jax.jit(lambda: _draw_state(config, optimizer, seed=seed, mesh=mesh, has_ema=has_ema))()


def abstract_state(
    config: GPTConfig,
    optimizer: optax.GradientTransformation,
    *,
    mesh: MeshConfig,
    has_ema: bool = False,
    lora: LoRA = NO_ADAPTERS,
) -> TrainState:
    """Return the state with shapes, types and shardings in place of arrays. Call it under `mesh.activate()`."""
    draw = lambda: _draw_state(config, optimizer, seed=0, mesh=mesh, has_ema=has_ema, lora=lora)
    shapes = jax.eval_shape(draw)
    return jax.tree.map(with_sharding, shapes)


def init_state(model: GPT, optimizer: optax.GradientTransformation, *, has_ema: bool = False) -> TrainState:
    """Return a state at step 0 with the given weights."""
    zero = jnp.zeros([], jnp.int32)
    return TrainState(
        step=zero,
        model=model,
        optimizer=optimizer.init(get_trainable(model)),  # pyright: ignore[reportArgumentType]
        skipped=zero,
        consecutive_skips=zero,
        ema=copy_arrays(model) if has_ema else None,
        loss_scale=create_loss_scale(model.config),
    )


def copy_arrays(model: GPT) -> GPT:
    """Copy the weights. The training step donates its state, and an array cannot be donated twice."""
    return jax.tree.map(jnp.copy, model)


def with_sharding(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Replace the sharding in the type of an abstract leaf by a concrete one on the active mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    else:
        sharding = NamedSharding(mesh, leaf.sharding.spec if leaf.sharding is not None else PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _draw_state(
    config: GPTConfig,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: MeshConfig,
    has_ema: bool,
    lora: LoRA = NO_ADAPTERS,
) -> TrainState:
    key = jax.random.key(seed)
    return init_state(add_adapters(GPT(config, key=key, mesh=mesh), lora, key=key), optimizer, has_ema=has_ema)
