"""The training step: rows → gradients → update. Pure functions of the state, compiled once, with donated memory.

A scan sums the micro-batches, and the sums are divided by the number of scored tokens of the whole batch. So 1 × N and
N × 1 rows give the same gradient, and rows without a scored token change nothing. Under plain data parallelism each
device sums its own rows, and the sums are reduced exactly once (see `_compute_gradients`).
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
from gptjax.finetuning.adapters import get_trainable, replace_trainable
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, with_static, without_gradient
from gptjax.objectives.objective import LossSums, MicroBatch, Objective, compute_sums, get_row_kind
from gptjax.optim import EMA, Optimizer
from gptjax.sharding.axes import Count, DropoutKeys, Scalar
from gptjax.sharding.compilation import jit_for_few_calls
from gptjax.sharding.devices import target_device
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.loss_scale import LossScale
from gptjax.training.state import TrainState

StepMetrics = dict[str, jax.Array]
SumLoss = Callable[[GPT, MicroBatch, DropoutKeys | None, GPT | None], LossSums]
"""(model, micro-batch, dropout keys, frozen model) → sums over the micro-batch."""


@dataclass(frozen=True)
class StepConfig:
    """The parts of a run's config that a training step needs besides the objective, the optimizer and the mesh."""

    steps: int
    """Length of the run, for the schedules."""
    seed: int
    """Seed of the dropout keys."""
    ema: EMA = EMA()
    model_config: GPTConfig | None = None
    """The config that the loss is computed with, such as a stage's attention windows. None: the state's own."""
    lr_scales: tuple[tuple[int, float], ...] = ()
    """(first step, factor on all learning rates from it on), ascending; the factor is 1 before the first."""


def make_train_step(
    objective: Objective, optimizer: Optimizer, *, config: StepConfig, mesh: MeshConfig
) -> jax.stages.Wrapped:
    """Return the jitted step (state, batch, frozen model or None) → (next state, metrics). It donates the state.

    Metrics: `loss` and the objective's others, each the mean over scored tokens (or pairs), whose number is `scored`
    where it varies; `grad_norm` (before clipping), `learning_rate`, and the state's `skipped` and `consecutive_skips`.
    An update is skipped if its norm, the loss or the gradient is not finite: weights, moments and average stay as they
    are, and the step number goes on. Models in float16 have a `loss_scale`: that of this step.
    """
    transformation = optax.with_extra_args_support(optimizer.build(steps=config.steps, mesh=mesh))
    in_optimizer = jax.named_scope("optimizer")  # names the operations in profiles
    update = in_optimizer(transformation.update)

    def sum_loss(model: GPT, batch: MicroBatch, dropout_keys: DropoutKeys | None, frozen: GPT | None) -> LossSums:
        return compute_sums(
            objective, with_static(model, config=config.model_config), batch, dropout_keys, frozen=frozen
        )

    def train_step(state: TrainState, batch: Batch, frozen: GPT | None = None) -> tuple[TrainState, StepMetrics]:
        model_config = config.model_config or state.model.config
        keys = None
        if model_config.dropout > 0:
            keys = make_dropout_keys(config.seed, state.step, batch=batch, mesh=mesh)
        sums, gradients = _compute_gradients(
            sum_loss, state.model, batch=batch, dropout_keys=keys, frozen=frozen, loss_scale=state.loss_scale, mesh=mesh
        )
        loss = sums.loss / jnp.maximum(sums.scored, 1)
        norm = in_optimizer(optax.tree.norm)(gradients)
        trainable = get_trainable(state.model)
        updates, moments = update(gradients, state.optimizer, trainable, step=state.step)  # pyright: ignore[reportArgumentType]
        factor = lr_scale_at(state.step, config.lr_scales)
        updates = jax.tree.map(lambda update: factor * update, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(in_optimizer(optax.tree.norm)(updates))
        select = in_optimizer(partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old)))
        trainable = in_optimizer(_apply_if_finite)(finite, trainable, updates)
        model = replace_trainable(state.model, trainable)
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
        return next_state, metrics | _collect_metrics(objective, sums, before=state, after=next_state)

    return jax.jit(train_step, donate_argnums=0)


def _apply_if_finite(finite: jax.Array, trainable: Any, updates: Any) -> Any:
    """The weights with the updates, or as they were.

    CPUs take a branch, for XLA moves nothing into it. Otherwise it would hold the updates, and what it computes them
    from.
    """
    if target_device().platform == "cpu":
        return jax.lax.cond(finite, optax.apply_updates, lambda old, _: old, trainable, updates)
    updated = optax.apply_updates(trainable, updates)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, trainable)


def _collect_metrics(objective: Objective, sums: LossSums, *, before: TrainState, after: TrainState) -> StepMetrics:
    """The objective's own metrics, and the state's."""
    metrics = {name: value / jnp.maximum(sums.scored, 1) for name, value in sums.metrics.items()}
    metrics |= {} if get_row_kind(objective) == "text" else {"scored": sums.scored}
    metrics |= {} if before.loss_scale is None else {"loss_scale": before.loss_scale.scale}
    return metrics | {"skipped": after.skipped, "consecutive_skips": after.consecutive_skips}


def make_eval_step(objective: Objective) -> Callable[..., LossSums]:
    """Return the jitted evaluation (model, batch, frozen model or None) → sums over the batch, without dropout."""

    def eval_step(model: GPT, batch: Batch, frozen: GPT | None = None) -> LossSums:
        model = without_gradient(model)
        compute = lambda micro_batch: compute_sums(objective, model, micro_batch, frozen=frozen)
        add = lambda total, micro_batch: (jax.tree.map(jnp.add, total, compute(micro_batch)), None)
        return jax.lax.scan(add, _zero_sums(compute, batch), batch)[0]

    return jit_for_few_calls(eval_step)


def _zero_sums(compute: Callable[[MicroBatch], LossSums], batch: Batch) -> LossSums:
    """Zeros in the shape of the sums of a micro-batch."""
    shapes = jax.eval_shape(lambda: compute(jax.tree.map(lambda rows: rows[0], batch)))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


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
    frozen: GPT | None,
    loss_scale: LossScale | None,
    mesh: MeshConfig,
) -> tuple[LossSums, Any]:
    """Sums over the whole batch, and the gradient of the mean loss for what is trained.

    The gradient is computed times the scale if there is one.

    Where devices share the bytes of a weight, the compiler reduces gradients in every micro-batch, because no device
    has memory for a whole gradient. Where each device has whole weights, it sums the gradients of its own rows in a
    shard_map, and the sums are reduced once, in float32.
    """
    factor = jnp.float32(1)
    if loss_scale is not None:  # about that of the mean: a sum over a batch would overflow float16
        factor = loss_scale.scale / jnp.maximum(jnp.sum(batch["targets"] != IGNORE_INDEX), 1)
    accumulate = partial(_accumulate_gradients, sum_loss)
    local_mesh = replace(mesh, data=1)

    def sum_local_rows(
        model: GPT, batch: Batch, dropout_keys: jax.Array | None, frozen: GPT | None, factor: Scalar
    ) -> tuple[LossSums, Any]:
        local_frozen = None if frozen is None else with_static(frozen, mesh=local_mesh)
        sums, gradients = accumulate(
            with_static(model, mesh=local_mesh), batch, dropout_keys=dropout_keys, frozen=local_frozen, factor=factor
        )
        return jax.lax.psum((sums, with_static(gradients, mesh=mesh)), "data")

    if mesh.is_data_parallel_only:
        rows, all_ = PartitionSpec(None, "data"), PartitionSpec()
        in_specs = (all_, rows, None if dropout_keys is None else rows, None if frozen is None else all_, all_)
        sum_rows = mesh.shard_map(sum_local_rows, in_specs, all_)
        sums, gradients = sum_rows(model, batch, dropout_keys, frozen, factor)
    else:
        sums, gradients = accumulate(model, batch, dropout_keys=dropout_keys, frozen=frozen, factor=factor)
    divisor = factor * jnp.maximum(sums.scored, 1)
    return sums, jax.tree.map(lambda gradient: gradient / divisor, gradients)


def _accumulate_gradients(
    sum_loss: SumLoss,
    model: GPT,
    batch: Batch,
    *,
    dropout_keys: jax.Array | None,
    frozen: GPT | None,
    factor: Scalar,
) -> tuple[LossSums, Any]:
    """Scan over the micro-batches, and add up their sums and the gradients of the loss times `factor`."""

    def compute(trainable: Any, micro_batch: MicroBatch, dropout_keys: Any) -> tuple[Scalar, LossSums]:
        sums = sum_loss(replace_trainable(model, trainable), micro_batch, dropout_keys, frozen)
        return factor * sums.loss, sums

    def add(total: tuple[LossSums, Any], inputs: tuple[MicroBatch, Any]) -> tuple[tuple[LossSums, Any], None]:
        (_, sums), gradients = jax.value_and_grad(compute, has_aux=True)(trainable, *inputs)
        with jax.named_scope("accumulate"):
            return jax.tree.map(jnp.add, total, (sums, gradients)), None

    trainable = get_trainable(model)
    first_keys = None if dropout_keys is None else dropout_keys[0]
    zero_sums = _zero_sums(lambda micro_batch: compute(trainable, micro_batch, first_keys)[1], batch)
    return jax.lax.scan(add, (zero_sums, jax.tree.map(jnp.zeros_like, trainable)), (batch, dropout_keys))[0]
