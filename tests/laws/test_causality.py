"""Law: what a model says at a position does not depend on the future, exactly, and does depend on all of the past."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from gptjax.model.gpt import GPT, with_static
from gptjax.sharding.mesh import MeshConfig

VARIANTS = {
    "plain": ({}, MeshConfig()),
    "dropout": ({"dropout": 0.2}, MeshConfig()),
    "bfloat16, rematerialised, unrolled": ({"dtype": "bfloat16", "remat": "light", "layers": "unroll"}, MeshConfig()),
    "sharded": ({}, MeshConfig(data=2, fsdp=2, tensor=2)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_gradient_of_a_logit_reaches_back_and_never_forward(name):
    """The position table stands for the inputs: row s is added to the embedding of the token at s, and nowhere else."""
    changes, mesh = VARIANTS[name]
    config = replace(MODEL, **changes)
    time = config.context_length
    tokens = np.random.RandomState(0).randint(0, config.resolved_vocab_size, (8, time))

    @jax.jit
    def influences(direction):
        """(T, T): how far the logits at t, taken along one direction, lean on the input at s."""
        model = GPT(config, key=jax.random.key(0), mesh=mesh)
        keys = None
        if config.dropout:
            keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(1), row))(jnp.arange(8))

        def at_each_time(positions):
            moved = with_static(model)
            moved.positions = model.positions.replace(positions)
            return jnp.einsum("BTV,V->T", moved(jnp.asarray(tokens), keys), direction)

        _, pull = jax.vjp(at_each_time, model.positions[...])
        return jax.lax.map(lambda row: jnp.abs(pull(row)[0]).max(axis=1), jnp.eye(time))

    with mesh.activate():
        table = np.asarray(influences(jax.random.normal(jax.random.key(2), (config.resolved_vocab_size,))))
    past = np.tril(np.ones((time, time), bool))
    assert (table[~past] == 0).all()
    assert (table[past] > 0).all()


def test_another_future_changes_no_bit_of_what_came_before():
    model = jax.jit(lambda: GPT(MODEL, key=jax.random.key(0)))()
    forward = jax.jit(GPT.__call__)
    tokens = np.random.RandomState(0).randint(0, MODEL.resolved_vocab_size, (4, MODEL.context_length))
    changed = tokens.copy()
    changed[:, 9:] = (changed[:, 9:] + 1) % MODEL.resolved_vocab_size
    before, after = (np.asarray(forward(model, jnp.asarray(ids))) for ids in (tokens, changed))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(axis=(0, 2)).all()
