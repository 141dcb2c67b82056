"""No objective keeps anything of size batch × time × vocabulary, counted in its program, forward and backward."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny import MODEL

from gptjax.model.gpt import GPT
from gptjax.objectives.distillation import Distillation
from gptjax.objectives.objective import SFT, Objective, compute_sums
from gptjax.objectives.preference import DPO, SimPO

ROWS, LENGTH, VOCABULARY, CHUNK = 4, 16, 1024, 16
# The embedding is as large as the logits of a chunk.
CONFIG = replace(MODEL, embed_dim=CHUNK, vocab_size=1000, intra_document_mask=True, num_layers=1)


def iter_sizes(jaxpr: Any) -> Iterator[int]:
    """The number of elements of every array that a program makes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size"))
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from iter_sizes(inner)


@pytest.mark.parametrize(
    "objective",
    [
        SFT(chunk_tokens=CHUNK),
        DPO(chunk_tokens=CHUNK, store_reference=False),
        SimPO(chunk_tokens=CHUNK),
        Distillation(chunk_tokens=CHUNK),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_objective_makes_no_array_of_all_logits(objective: Objective) -> None:
    rows = jnp.ones((ROWS, LENGTH), jnp.int32)
    batch = {"tokens": rows, "targets": rows, "segments": rows, "positions": rows}

    def loss(model: GPT, frozen: GPT) -> jax.Array:
        return compute_sums(objective, model, batch, frozen=frozen).loss

    model = jax.eval_shape(lambda: GPT(CONFIG, key=jax.random.key(0)))
    program = jax.make_jaxpr(jax.value_and_grad(loss))(model, model)
    largest = max(iter_sizes(program.jaxpr))
    assert CHUNK * VOCABULARY <= largest < 2 * CHUNK * VOCABULARY
