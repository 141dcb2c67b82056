"""Invariant: no sum over tokens is in 16 bits, so 16-bit products give float32's gradients, on every backend."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from tiny import text_of

from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.model import products, projection, xla_attention
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT, DocumentIds, with_static
from gptjax.model.loss import IGNORE_INDEX
from gptjax.objectives.objective import MicroBatch, NextToken
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.loss_scale import INITIAL_SCALE

ROWS, LENGTH = 16, 128
BASE = GPTConfig(num_layers=2, embed_dim=64, num_heads=4, context_length=LENGTH, vocab_size=128)
CONFIGS = {
    "gpt2": BASE,
    "documents": replace(BASE, intra_document_mask=True, short_window=48, window_pattern="SL", bias=False),
    "llama": replace(
        BASE, positions="rotary", norm="rms", qk_norm=True, num_kv_heads=2, gated_mlp=True, activation="silu",
        tie_embeddings=False, head_bias=True, num_sinks=2, logit_softcap=15.0,
    ),
    "speedrun": replace(
        BASE, num_layers=4, positions="rotary", unet_skips="learned", x0_mix=True, value_embeddings="01..",
        value_residual=True, embedding_norm=True,
    ),
    "nanochat": replace(BASE, positions="rotary", x0_mix=True, value_embeddings="01", value_gate=True),
}  # fmt: skip
SLOW = ("documents", "llama", "speedrun")
SUMS = ("reduce_sum", "scatter-add", "scatter_add", "cumsum", "psum", "reduce_window_sum", "segment_sum")
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(params=["cpu", "tpu"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Compute on CPUs as each backend does: with its activations and its forms of products.

    Operands of the other backend's products are rounded, then widened: CPUs do not multiply 16 bits in all its forms.
    """
    device = SimpleNamespace(platform=request.param)
    for module in (products, projection, xla_attention):
        monkeypatch.setattr(module, "target_device", lambda: device)
    if request.param != "cpu":
        dot, wide = products._dot, lambda x: x.astype(jnp.float32)
        monkeypatch.setattr(projection, "_round_operand", lambda x, dtype: wide(x.astype(dtype)))
        monkeypatch.setattr(products, "_dot", lambda x, y, transposed: dot(wide(x), wide(y), transposed))
    jax.clear_caches()  # of functions that were traced for the other device
    yield request.param
    jax.clear_caches()


def make_batch() -> MicroBatch:
    """Characters of a real text, in documents of 40 tokens."""
    ids = np.frombuffer(text_of(200).encode(), np.uint8)[: ROWS * LENGTH + 1].astype(np.int32)
    segments, positions = np.divmod(np.arange(LENGTH, dtype=np.int32), 40)
    rows = lambda x: jnp.asarray(np.broadcast_to(x, (ROWS, LENGTH)))
    return {
        "tokens": jnp.asarray(ids[:-1].reshape(ROWS, LENGTH)),
        "targets": jnp.asarray(ids[1:].reshape(ROWS, LENGTH)),
        "segments": rows(segments),
        "positions": rows(positions),
    }


def make_model(config: GPTConfig, mesh: MeshConfig | None = None) -> GPT:
    """A model in which every weight acts: nothing is zero, and gains and mixes are not all alike."""
    model = GPT(config, key=jax.random.key(0), mesh=mesh)
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


@cache
def draw_model(name: str) -> GPT:
    return jax.jit(lambda: make_model(with_dtype(CONFIGS[name], "float32")))()


def cast_model(name: str, dtype: str) -> GPT:
    """The same weights, which are float32 in storage, for products of another type."""
    return with_static(draw_model(name), config=with_dtype(CONFIGS[name], dtype))


def compute_gradients(model: GPT, batch: MicroBatch) -> GPT:
    """Gradients of the mean loss, of which float16 needs a multiple on the way."""
    scale = INITIAL_SCALE if model.config.compute.dtype == "float16" else 1.0
    mean = lambda model: scale * NextToken(chunk_tokens=256).sum_loss(model, batch)[0] / (ROWS * LENGTH)
    return jax.tree.map(lambda gradient: gradient / scale, jax.grad(mean)(model))


def with_dtype(config: GPTConfig, dtype: Any) -> GPTConfig:
    return replace(config, compute=ComputeConfig(dtype=dtype, query_block=64))


def iterate_equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr)):
            if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
                yield from iterate_equations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "bfloat16") for name in CONFIGS), ("gpt2", "float16"), ("llama", "float16")]
)
def test_no_sum_of_the_step_is_in_16_bits(name: str, dtype: str, platform: str) -> None:
    model = jax.eval_shape(lambda: make_model(with_dtype(CONFIGS[name], dtype)))
    program = jax.make_jaxpr(compute_gradients)(model, make_batch()).jaxpr
    equations = list(iterate_equations(program))
    assert len([one for one in equations if one.primitive.name == "dot_general"]) > 8
    assert any(one.primitive.name in SUMS for one in equations)
    found = [one for one in equations if one.primitive.name in SUMS and one.outvars[0].aval.dtype.itemsize < 4]
    assert not found


@cache
def compute_float32_gradients(name: str) -> dict[str, Any]:
    return flatten_by_name(jax.jit(compute_gradients)(draw_model(name), make_batch()))


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        *(pytest.param(name, "bfloat16", 0.02, marks=[pytest.mark.slow] * (name in SLOW)) for name in CONFIGS),
        ("gpt2", "float16", 0.005),
        pytest.param("llama", "float16", 0.005, marks=pytest.mark.slow),
    ],
)
def test_gradients_of_16_bits_equal_those_of_float32(name: str, dtype: str, bound: float, platform: str) -> None:
    wanted = compute_float32_gradients(name)
    found = flatten_by_name(jax.jit(compute_gradients)(cast_model(name, dtype), make_batch()))
    errors = {path: relative_error(found[path], wanted[path]) for path in wanted}
    if platform != "cpu":
        # A sum over all tokens of products of 16-bit numbers, which nearly cancel: the numbers' rounding remains.
        assert all(errors.pop(path) < 0.25 for path in [*errors] if path.startswith(("blocks.mix.", "unet.")))
    assert max(errors.values()) <= bound, errors


@pytest.mark.parametrize("name", [pytest.param("gpt2", marks=pytest.mark.slow), "nanochat"])
def test_bfloat16_gradients_over_a_mesh_equal_those_of_one_device(name: str) -> None:
    batch, config = make_batch(), with_dtype(CONFIGS[name], "bfloat16")
    wanted = compute_float32_gradients(name)
    with MESH.activate():
        model = jax.jit(lambda: make_model(config, MESH))()
        sharded = {key: jax.device_put(rows, MESH.activation_spec("BT")) for key, rows in batch.items()}
        found = flatten_by_name(jax.jit(compute_gradients)(model, sharded))
    errors = {path: relative_error(found[path], wanted[path]) for path in wanted}
    assert max(errors.values()) <= 0.02, errors


def relative_error(found: Any, wanted: Any) -> float:
    """‖found − wanted‖ / ‖wanted‖ over all entries."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_gradient_of_an_embedding_counts_every_occurrence() -> None:
    config = with_dtype(replace(BASE, num_layers=1), "bfloat16")
    model, tokens = jax.jit(lambda: make_model(config))(), jnp.zeros((ROWS, LENGTH), jnp.int32)
    embed = lambda model: model.embed(tokens, jnp.arange(LENGTH)).astype(jnp.float32).sum()
    gradients = jax.jit(jax.grad(embed))(model)
    assert gradients.token_embedding[...][0].tolist() == [ROWS * LENGTH] * config.embed_dim


def test_documents_and_targets_of_the_batch_are_used() -> None:
    batch = make_batch()
    assert DocumentIds(batch["segments"], batch["positions"]).segments.max() == 3
    assert int((batch["targets"] == IGNORE_INDEX).sum()) == 0
