"""Programs for few calls: what XLA is told, and when it is told nothing."""

import jax
import jax.numpy as jnp
import pytest

from gptjax.sharding import compilation
from gptjax.sharding.compilation import jit_for_few_calls


@pytest.fixture
def all_optimizations():
    """As users run; tests have XLA optimise nothing."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("all_optimizations")
def test_a_program_for_few_calls_computes_the_same():
    x = jnp.linspace(-2, 2, 64).reshape(8, 8)
    score = lambda x, *, scale: jax.nn.logsumexp(jax.nn.gelu(x @ x) * scale, axis=-1)
    assert jnp.allclose(jit_for_few_calls(score)(x, scale=0.5), score(x, scale=0.5), rtol=1e-6)


@pytest.mark.usefixtures("all_optimizations")
def test_its_options_reach_xla(monkeypatch):
    monkeypatch.setattr(compilation, "FEW_CALLS_OPTIONS", {"xla_no_such_option": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_no_such_option'"):
        jit_for_few_calls(jnp.sin)(1.0)


def test_where_nothing_is_optimised_there_are_no_options(monkeypatch):
    monkeypatch.setattr(compilation, "FEW_CALLS_OPTIONS", {"xla_no_such_option": 1})
    assert jit_for_few_calls(jnp.sin)(0.0) == 0.0
