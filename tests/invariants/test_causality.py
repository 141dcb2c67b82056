"""A logit depends on all of the past and, exactly, on nothing of the future."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from tiny import MODEL

from gptjax.model.config import ComputeConfig
from gptjax.model.gpt import GPT, with_static
from gptjax.sharding.mesh import MeshConfig

BFLOAT16 = ComputeConfig(dtype="bfloat16", remat="light", scan_layers="off")
VARIANTS: dict[str, tuple[dict[str, Any], MeshConfig]] = {
    "plain": ({}, MeshConfig()),
    "dropout, in blocks of queries": (
        {"dropout": 0.2, "compute": replace(MODEL.compute, query_block=5)},
        MeshConfig(),
    ),
    "bfloat16, light remat, unrolled": ({"compute": BFLOAT16}, MeshConfig()),
    "sharded": ({}, MeshConfig(data=2, fsdp=2, tensor=2)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_of_a_logit_reaches_the_past_and_never_the_future(name: str) -> None:
    """Position embeddings stand for the inputs: row s is added to the token at s, and nowhere else."""
    changes, mesh = VARIANTS[name]
    config = replace(MODEL, **changes)
    length = config.context_length
    tokens = np.random.RandomState(0).randint(0, config.resolved_vocab_size, (8, length))

    @jax.jit
    def compute_influence(direction: Array) -> Array:
        """(T, T): how far the logits at t, in one direction, depend on the input at s."""
        model = GPT(config, key=jax.random.key(0), mesh=mesh)
        assert model.position_embedding is not None
        param: Any = model.position_embedding
        keys = None
        if config.dropout:
            keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(1), row))(jnp.arange(8))

        def compute_logits(positions: Array) -> Array:
            moved = with_static(model)
            moved.position_embedding = param.replace(positions)
            return jnp.einsum("BTV,V->T", moved(jnp.asarray(tokens), keys), direction)

        _, vjp = jax.vjp(compute_logits, param[...])
        return jax.lax.map(lambda row: jnp.abs(vjp(row)[0]).max(axis=1), jnp.eye(length))

    with mesh.activate():
        direction = jax.random.normal(jax.random.key(2), (config.resolved_vocab_size,))
        influence = np.asarray(compute_influence(direction))
    past = np.tril(np.ones((length, length), bool))
    assert (influence[~past] == 0).all()
    assert (influence[past] > 0).all()


def test_another_future_changes_no_bit_of_earlier_logits() -> None:
    model = jax.jit(lambda: GPT(MODEL, key=jax.random.key(0)))()
    forward = jax.jit(GPT.__call__)
    tokens = np.random.RandomState(0).randint(0, MODEL.resolved_vocab_size, (4, MODEL.context_length))
    changed = tokens.copy()
    changed[:, 9:] = (changed[:, 9:] + 1) % MODEL.resolved_vocab_size
    before, after = (np.asarray(forward(model, jnp.asarray(ids))) for ids in (tokens, changed))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(axis=(0, 2)).all()
