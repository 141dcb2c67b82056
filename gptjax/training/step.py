"""The training step: rows → gradients → update. Pure functions of the state, compiled once, with donated memory.

A scan sums the micro-batches, and the sum is divided by the number of scored tokens of the whole batch. So 1 × N and
N × 1 rows give the same gradient. Under plain data parallelism each device sums its own rows, and the sums are reduced
exactly once (see `_compute_gradients`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from gptjax.core.constants import IGNORE_INDEX
from gptjax.data.loader import Batch
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, with_static
from gptjax.optim import EMA, Optimizer
from gptjax.sharding.axes import Count, DropoutKeys, Scalar
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.loss_scale import LossScale
from gptjax.training.objective import MicroBatch, Objective
from gptjax.training.state import TrainState

StepMetrics = dict[str, jax.Array]
SumLoss = Callable[[GPT, MicroBatch, DropoutKeys | None], tuple[Scalar, Count]]
"""(model, micro-batch, dropout keys) → (summed loss, number of scored tokens)."""


@dataclass(frozen=True)
class StepConfig:
    """The parts of a run's config that a training step needs besides the objective, the optimizer and the mesh."""

    steps: int
    """Length of the run, for the schedules."""
    seed: int
    """Seed of the dropout keys."""
    ema: EMA = EMA()
    model: GPTConfig | None = None
    """The config that the loss is computed with, such as a stage's attention windows. None: the state's own."""
    lr_scales: tuple[tuple[int, float], ...] = ()
    """(first step, factor on all learning rates from it on), ascending; the factor is 1 before the first."""


def make_train_step(
    objective: Objective, optimizer: Optimizer, *, config: StepConfig, mesh: MeshConfig
) -> jax.stages.Wrapped:
    """Return the jitted step (state, batch) → (next state, metrics). It donates the state.

    Metrics: `loss` (nats per scored token), `grad_norm` (before clipping), `learning_rate`, and the state's `skipped`
    and `consecutive_skips`. An update is skipped if its norm, the loss or the gradient is not finite: weights, moments
    and average stay as they are, and the step number goes on. Models in float16 have a `loss_scale`: that of this step.
    """
    transformation = optax.with_extra_args_support(optimizer.build(steps=config.steps, mesh=mesh))
    in_optimizer = jax.named_scope("optimizer")  # names the operations in profiles
    update, apply_updates = in_optimizer(transformation.update), in_optimizer(optax.apply_updates)

    def sum_loss(model: GPT, batch: MicroBatch, dropout_keys: DropoutKeys | None) -> tuple[Scalar, Count]:
        return objective.sum_loss(with_static(model, config=config.model), batch, dropout_keys)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        model_config = config.model or state.model.config
        dropout_keys = None
        if model_config.dropout > 0:
            dropout_keys = make_dropout_keys(config.seed, state.step, batch=batch, mesh=mesh)
        loss, gradients = _compute_gradients(
            sum_loss, state.model, batch=batch, dropout_keys=dropout_keys, loss_scale=state.loss_scale, mesh=mesh
        )
        norm = in_optimizer(optax.tree.norm)(gradients)
        updates, moments = update(gradients, state.optimizer, state.model, step=state.step)  # pyright: ignore[reportArgumentType]
        factor = lr_scale_at(state.step, config.lr_scales)
        updates = jax.tree.map(lambda update: factor * update, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(in_optimizer(optax.tree.norm)(updates))
        select = in_optimizer(partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old)))
        model = select(apply_updates(state.model, updates), state.model)  # pyright: ignore[reportArgumentType]
        ema = config.ema.update(state.ema, model, step=state.step, steps=config.steps) if config.ema.enabled else None
        next_state = TrainState(
            step=state.step + 1,
            model=model,
            optimizer=select(moments, state.optimizer),
            skipped=state.skipped + ~finite,
            consecutive_skips=jnp.where(finite, 0, state.consecutive_skips + 1),
            ema=select(ema, state.ema),
            loss_scale=None if state.loss_scale is None else state.loss_scale.update(finite),
        )
        learning_rate = factor * optimizer.learning_rate_at(state.step, steps=config.steps)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": learning_rate}
        metrics |= {} if state.loss_scale is None else {"loss_scale": state.loss_scale.scale}
        return next_state, metrics | {
            "skipped": next_state.skipped,
            "consecutive_skips": next_state.consecutive_skips,
        }

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(objective: Objective) -> Callable[[GPT, Batch], tuple[Scalar, Count]]:
    """Return the jitted evaluation (model, batch) → (summed loss, number of scored tokens), without dropout."""

    def eval_step(model: GPT, batch: Batch) -> tuple[Scalar, Count]:
        def add(total: tuple[Scalar, Count], micro_batch: MicroBatch) -> tuple[tuple[Scalar, Count], None]:
            loss, count = objective.sum_loss(model, micro_batch)
            return (total[0] + loss, total[1] + count), None

        return jax.lax.scan(add, (jnp.float32(0), jnp.int32(0)), batch)[0]

    return jax.jit(eval_step)


def lr_scale_at(step: Count, lr_scales: tuple[tuple[int, float], ...]) -> Scalar:
    """Return the factor of the last (first step, factor) pair that has begun; 1 before the first."""
    factor = jnp.float32(1.0)
    for first_step, scale in lr_scales:
        factor = jnp.where(step >= first_step, scale, factor)
    return factor


@jax.named_scope("dropout")
def make_dropout_keys(seed: int, step: Count, *, batch: Batch, mesh: MeshConfig) -> jax.Array:
    """Return a dropout key for each row (G, B), derived only from the seed, the step and the row's number."""
    micro_batches, rows, _ = batch["tokens"].shape
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(micro_batches * rows))
    keys = keys.reshape(micro_batches, rows)
    spec = mesh.activation_spec("GB")
    return keys if spec is None else jax.sharding.reshard(keys, spec)


def _compute_gradients(
    sum_loss: SumLoss,
    model: GPT,
    *,
    batch: Batch,
    dropout_keys: jax.Array | None,
    loss_scale: LossScale | None,
    mesh: MeshConfig,
) -> tuple[Scalar, GPT]:
    """Mean loss over all scored tokens, and its gradient, computed times the scale if there is one."""
    divisor = jnp.maximum(jnp.sum(batch["targets"] != IGNORE_INDEX), 1)
    if loss_scale is None:
        return _sum_gradients(sum_loss, model, batch=batch, dropout_keys=dropout_keys, divisor=divisor, mesh=mesh)
    divisor = divisor / loss_scale.scale
    scaled = _sum_gradients(sum_loss, model, batch=batch, dropout_keys=dropout_keys, divisor=divisor, mesh=mesh)
    return loss_scale.unscale(scaled)


def _sum_gradients(
    sum_loss: SumLoss,
    model: GPT,
    *,
    batch: Batch,
    dropout_keys: jax.Array | None,
    divisor: Scalar | Count,
    mesh: MeshConfig,
) -> tuple[Scalar, GPT]:
    """The loss of all scored tokens over `divisor`, and its gradient.

    Where devices share the bytes of a weight, the compiler reduces gradients in every micro-batch, because no device
    has memory for a whole gradient. Where each device has whole weights, it sums the gradients of its own rows in a
    shard_map, and the sums are reduced once, in float32.
    """
    if not mesh.is_data_parallel_only:
        return _accumulate_gradients(sum_loss, model, batch=batch, dropout_keys=dropout_keys, divisor=divisor)

    local_mesh = replace(mesh, data=1)

    def sum_local_rows(
        model: GPT, batch: Batch, dropout_keys: jax.Array | None, divisor: Scalar | Count
    ) -> tuple[Scalar, GPT]:
        local_model = with_static(model, mesh=local_mesh)
        loss, gradients = _accumulate_gradients(
            sum_loss, local_model, batch=batch, dropout_keys=dropout_keys, divisor=divisor
        )
        return jax.lax.psum((loss, with_static(gradients, mesh=mesh)), "data")

    sharded, replicated = PartitionSpec(None, "data"), PartitionSpec()
    in_specs = (replicated, sharded, None if dropout_keys is None else sharded, replicated)
    return mesh.shard_map(sum_local_rows, in_specs, replicated)(model, batch, dropout_keys, divisor)


def _accumulate_gradients(
    sum_loss: SumLoss, model: GPT, *, batch: Batch, dropout_keys: jax.Array | None, divisor: Scalar | Count
) -> tuple[Scalar, GPT]:
    """Scan over the micro-batches, and sum their losses over `divisor` and the gradients of these."""

    def compute_share(model: GPT, micro_batch: MicroBatch, dropout_keys: Any) -> Scalar:
        loss, _ = sum_loss(model, micro_batch, dropout_keys)
        return loss / divisor

    def add(total: tuple[Scalar, GPT], inputs: tuple[MicroBatch, Any]) -> tuple[tuple[Scalar, GPT], None]:
        share = jax.value_and_grad(compute_share)(model, *inputs)
        with jax.named_scope("accumulate"):
            return jax.tree.map(jnp.add, total, share), None

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, model))
    return jax.lax.scan(add, zero, (batch, dropout_keys))[0]
