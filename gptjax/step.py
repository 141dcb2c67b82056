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

from gptjax.averaging import Average
from gptjax.batches import Rows
from gptjax.gpt_config import GPTConfig
from gptjax.layout import Layout
from gptjax.loss import IGNORED
from gptjax.model import GPT, rebound
from gptjax.objective import Group, NextToken
from gptjax.optim import AdamW, Muon, learning_rate
from gptjax.shapes import Count, RowKeys, Scalar
from gptjax.state import TrainState

Metrics = dict[str, jax.Array]
Objective = Callable[[GPT, Group, RowKeys | None], tuple[Scalar, Count]]


def make_train_step(
    objective: NextToken,
    optimizer: AdamW | Muon,
    *,
    steps: int,
    seed: int,
    dropout: bool,
    layout: Layout,
    averaging: Average = Average(),  # noqa: B008 (frozen)
    computed: GPTConfig | None = None,
    rates: Sequence[tuple[int, float]] = (),
) -> jax.stages.Wrapped:
    """The compiled step: (state, rows) → (next state, metrics). The state that goes in cannot be used again.

    An update whose norm, loss or gradient is not finite is not made: weights, moments and average stay, the
    step number goes on. `averaging` keeps the state's average, if it has one. The loss is that of the model `computed`
    as this config says (None: its own); `rates` are (step, factor on the learning rates from it on), ascending, and 1
    before.
    Metrics: `loss` (nats per scored token), `grad_norm` (before clipping), `learning_rate`, and `skipped` and `streak`
    as in the state.
    """
    transformation = optimizer.build(steps=steps, layout=layout)

    def nats(model: GPT, group: Group, keys: RowKeys | None) -> tuple[Scalar, Count]:
        return objective(rebound(model, config=computed), group, keys)

    def train_step(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        keys = row_keys(seed, state.step, rows, layout) if dropout else None
        loss, gradients = _summed(nats, state.model, rows, keys, layout)
        norm = optax.tree.norm(gradients)
        updates, moments = transformation.update(gradients, state.optimizer, state.model, step=state.step)  # pyright: ignore[reportArgumentType]
        factor = factor_at(state.step, rates)
        updates = jax.tree.map(lambda update: factor * update, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        keep = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
        model = keep(optax.apply_updates(state.model, updates), state.model)  # pyright: ignore[reportArgumentType]
        average = averaging(state.average, model, state.step, steps=steps) if averaging.kept else None
        following = TrainState(
            step=state.step + 1,
            model=model,
            optimizer=keep(moments, state.optimizer),
            skipped=state.skipped + ~finite,
            streak=jnp.where(finite, 0, state.streak + 1),
            average=keep(average, state.average),
        )
        rate = factor * learning_rate(optimizer, state.step, steps=steps)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        return following, metrics | {"skipped": following.skipped, "streak": following.streak}

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(objective: NextToken) -> Callable[[GPT, Rows], tuple[Scalar, Count]]:
    """The compiled judgement: (model, rows) → (summed nats, scored targets), without dropout."""

    def eval_step(model: GPT, rows: Rows) -> tuple[Scalar, Count]:
        def add(total: tuple[Scalar, Count], group: Group) -> tuple[tuple[Scalar, Count], None]:
            nats, count = objective(model, group)
            return (total[0] + nats, total[1] + count), None

        return jax.lax.scan(add, (jnp.float32(0), jnp.int32(0)), rows)[0]

    return jax.jit(eval_step)


def factor_at(step: Count, rates: Sequence[tuple[int, float]]) -> Scalar:
    """The factor of the last of these (step, factor) pairs that has begun; 1 before the first."""
    factor = jnp.float32(1.0)
    for begin, rate in rates:
        factor = jnp.where(step >= begin, rate, factor)
    return factor


def row_keys(seed: int, step: Count, rows: Rows, layout: Layout) -> jax.Array:
    """A dropout key for each row (G, B), from the seed, the step and the row's number alone."""
    groups, sequences, _ = rows["tokens"].shape
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(groups * sequences)).reshape(groups, sequences)
    spec = layout.acts("GB")
    return keys if spec is None else jax.sharding.reshard(keys, spec)


def _summed(objective: Objective, model: GPT, rows: Rows, keys: jax.Array | None, layout: Layout) -> tuple[Scalar, GPT]:
    """Mean loss and its gradient over all rows.

    The compiler reduces gradients in every micro-batch. That is as it must be where devices share a weight's bytes: no
    one has room for all of its gradient. Where all have whole weights, each sums its own rows as if it were alone, and
    the sums are added up once, in float32.
    """
    scored = jnp.sum(rows["targets"] != IGNORED)
    if not layout.replicated:
        return _accumulated(objective, model, rows, keys, scored)

    alone = replace(layout, data=1)

    def local(model: GPT, rows: Rows, keys: jax.Array | None, scored: Count) -> tuple[Scalar, GPT]:
        loss, gradients = _accumulated(objective, rebound(model, layout=alone), rows, keys, scored)
        return jax.lax.psum((loss, rebound(gradients, layout=layout)), "data")

    spread, whole = PartitionSpec(None, "data"), PartitionSpec()
    in_specs = (whole, spread, None if keys is None else spread, whole)
    return layout.island(local, in_specs, whole)(model, rows, keys, scored)


def _accumulated(
    objective: Objective, model: GPT, rows: Rows, keys: jax.Array | None, scored: Count
) -> tuple[Scalar, GPT]:
    """Summed over groups by a scan: each group's share of the mean loss, and its gradient."""

    def share(model: GPT, group: Group, keys: Any) -> Scalar:
        nats, _ = objective(model, group, keys)
        return nats / jnp.maximum(scored, 1)

    def add(total: tuple[Scalar, GPT], group: tuple[Group, Any]) -> tuple[tuple[Scalar, GPT], None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(share)(model, *group)), None

    nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, model))
    return jax.lax.scan(add, nothing, (rows, keys))[0]
