"""One step: rows → gradients → update. Pure functions of the state, compiled once, the state's memory given back.

Micro-batches are summed by a scan and divided by the number of scored tokens of the whole batch, so that 1 × N and
N × 1 give the same gradient. Under data parallelism alone each device sums its own rows, and the sums are reduced
exactly once (`_summed`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from gptjax.optim.ema import EMA
from gptjax.optim.optimizers import AdamW, Muon, learning_rate
from gptjax.sharding.axes import Count, DropoutKeys, Scalar
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.objective import MicroBatch, NextToken
from gptjax.training.state import TrainState

Metrics = dict[str, jax.Array]
Objective = Callable[[GPT, MicroBatch, DropoutKeys | None], tuple[Scalar, Count]]


def make_train_step(
    objective: NextToken,
    optimizer: AdamW | Muon,
    *,
    steps: int,
    seed: int,
    dropout: bool,
    mesh: MeshConfig,
    ema: EMA = EMA(),  # noqa: B008 (frozen)
    computed: GPTConfig | None = None,
    lr_scales: Sequence[tuple[int, float]] = (),
) -> jax.stages.Wrapped:
    """The compiled step: (state, rows) → (next state, metrics). The state that goes in cannot be used again.

    An update whose norm, loss or gradient is not finite is not made: weights, moments and average stay, the
    step number goes on. `averaging` keeps the state's average, if it has one. The loss is that of the model `computed`
    as this config says (None: its own); `rates` are (step, factor on the learning rates from it on), ascending, and 1
    before.
    Metrics: `loss` (nats per scored token), `grad_norm` (before clipping), `learning_rate`, and `skipped` and `streak`
    as in the state.
    """
    transformation = optimizer.build(steps=steps, mesh=mesh)

    def nats(model: GPT, group: MicroBatch, keys: DropoutKeys | None) -> tuple[Scalar, Count]:
        return objective(with_static(model, config=computed), group, keys)

    def train_step(state: TrainState, rows: Batch) -> tuple[TrainState, Metrics]:
        keys = make_dropout_keys(seed, state.step, rows, mesh) if dropout else None
        loss, gradients = _summed(nats, state.model, rows, keys, mesh)
        norm = optax.tree.norm(gradients)
        updates, moments = transformation.update(gradients, state.optimizer, state.model, step=state.step)  # pyright: ignore[reportArgumentType]
        factor = lr_scale_at(state.step, lr_scales)
        updates = jax.tree.map(lambda update: factor * update, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
        model = keep(optax.apply_updates(state.model, updates), state.model)  # pyright: ignore[reportArgumentType]
        average = ema(state.ema, model, state.step, steps=steps) if ema.enabled else None
        following = TrainState(
            step=state.step + 1,
            model=model,
            optimizer=keep(moments, state.optimizer),
            skipped=state.skipped + ~finite,
            consecutive_skips=jnp.where(finite, 0, state.consecutive_skips + 1),
            ema=keep(average, state.ema),
        )
        rate = factor * learning_rate(optimizer, state.step, steps=steps)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        return following, metrics | {"skipped": following.skipped, "consecutive_skips": following.consecutive_skips}

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(objective: NextToken) -> Callable[[GPT, Batch], tuple[Scalar, Count]]:
    """The compiled judgement: (model, rows) → (summed nats, scored targets), without dropout."""

    def eval_step(model: GPT, rows: Batch) -> tuple[Scalar, Count]:
        def add(total: tuple[Scalar, Count], group: MicroBatch) -> tuple[tuple[Scalar, Count], None]:
            nats, count = objective(model, group)
            return (total[0] + nats, total[1] + count), None

        return jax.lax.scan(add, (jnp.float32(0), jnp.int32(0)), rows)[0]

    return jax.jit(eval_step)


def lr_scale_at(step: Count, lr_scales: Sequence[tuple[int, float]]) -> Scalar:
    """The factor of the last of these (step, factor) pairs that has begun; 1 before the first."""
    factor = jnp.float32(1.0)
    for begin, rate in lr_scales:
        factor = jnp.where(step >= begin, rate, factor)
    return factor


def make_dropout_keys(seed: int, step: Count, rows: Batch, mesh: MeshConfig) -> jax.Array:
    """A dropout key for each row (G, B), from the seed, the step and the row's number alone."""
    groups, sequences, _ = rows["tokens"].shape
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(groups * sequences)).reshape(groups, sequences)
    spec = mesh.activation_spec("GB")
    return keys if spec is None else jax.sharding.reshard(keys, spec)


def _summed(
    objective: Objective, model: GPT, rows: Batch, keys: jax.Array | None, mesh: MeshConfig
) -> tuple[Scalar, GPT]:
    """Mean loss and its gradient over all rows.

    The compiler reduces gradients in every micro-batch. That is as it must be where devices share a weight's bytes: no
    one has room for all of its gradient. Where all have whole weights, each sums its own rows as if it were alone, and
    the sums are added up once, in float32.
    """
    scored = jnp.sum(rows["targets"] != IGNORE_INDEX)
    if not mesh.is_data_parallel_only:
        return _accumulated(objective, model, rows, keys, scored)

    alone = replace(mesh, data=1)

    def local(model: GPT, rows: Batch, keys: jax.Array | None, scored: Count) -> tuple[Scalar, GPT]:
        loss, gradients = _accumulated(objective, with_static(model, mesh=alone), rows, keys, scored)
        return jax.lax.psum((loss, with_static(gradients, mesh=mesh)), "data")

    spread, whole = PartitionSpec(None, "data"), PartitionSpec()
    in_specs = (whole, spread, None if keys is None else spread, whole)
    return mesh.shard_map(local, in_specs, whole)(model, rows, keys, scored)


def _accumulated(
    objective: Objective, model: GPT, rows: Batch, keys: jax.Array | None, scored: Count
) -> tuple[Scalar, GPT]:
    """Summed over groups by a scan: each group's share of the mean loss, and its gradient."""

    def share(model: GPT, group: MicroBatch, keys: Any) -> Scalar:
        nats, _ = objective(model, group, keys)
        return nats / jnp.maximum(scored, 1)

    def add(total: tuple[Scalar, GPT], group: tuple[MicroBatch, Any]) -> tuple[tuple[Scalar, GPT], None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(share)(model, *group)), None

    nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, model))
    return jax.lax.scan(add, nothing, (rows, keys))[0]
