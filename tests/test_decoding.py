"""Weights in their form for decoding: what they hold, and what their products are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import make_model, make_tokens
from tiny import MODEL

from gptjax.core.errors import UserError
from gptjax.generation.decoding import prepare_for_decoding, round_weights
from gptjax.model.gpt import GPT, abstract_model
from gptjax.model.stored_matrix import (
    Quantize,
    multiply_head,
    multiply_stored,
    store_head,
    store_matrix,
    take_layer,
)
from gptjax.sharding.mesh import MeshConfig


def test_int8_has_a_scale_for_each_output_and_errs_by_half_a_step() -> None:
    w = jnp.asarray(np.random.default_rng(0).normal(size=(24, 2, 5)).astype(np.float32)).at[:, 1, 2].set(0.0)
    stored = store_matrix(w, (0,), dtype="float32", quantize="int8")
    assert stored.values.dtype == jnp.int8
    assert stored.scale is not None
    np.testing.assert_allclose(stored.scale[0], np.where(np.abs(w).max(0) == 0, 1, np.abs(w).max(0) / 127), rtol=1e-6)
    assert (np.abs(stored.dequantize() - w) <= 0.5001 * stored.scale).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_head_in_chunks_equals_the_whole_product(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptjax.model.stored_matrix.HEAD_COLUMNS", 7)
    rng = np.random.default_rng(0)
    x, head = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((3, 16), (16, 24)))
    logits = multiply_head(x.astype(jnp.float32), store_head(head, dtype=dtype), dtype=dtype)
    expected = np.asarray(x, np.float64) @ np.asarray(head, np.float64)
    np.testing.assert_allclose(logits[:, :24], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_prepared_int8_model_equals_one_with_rounded_weights(tied: bool) -> None:
    config = replace(MODEL, num_kv_heads=2, tie_embeddings=tied, gated_mlp=True)
    model, tokens = make_model(config), make_tokens(2, 16, vocab_size=49)
    forward = jax.jit(GPT.__call__)
    prepared = forward(prepare_for_decoding(model, quantize="int8"), tokens)
    rounded = forward(round_weights(model, "int8"), tokens)
    np.testing.assert_allclose(prepared, rounded, atol=1e-3)
    assert np.abs(rounded - forward(model, tokens)).max() > 1e-2


def test_int8_over_a_mesh_or_after_another_form_is_refused() -> None:
    mesh = MeshConfig(data=1, fsdp=1, tensor=2)
    with mesh.activate(), pytest.raises(UserError, match="--mesh=single"):
        prepare_for_decoding(abstract_model(MODEL, mesh), quantize="int8")
    with pytest.raises(UserError, match="Prepare the original"):
        prepare_for_decoding(prepare_for_decoding(make_model(MODEL)), quantize="int8")


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("width", [32, 24, 7])  # summed in groups of 16 and of 12, and not in groups
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_rows_times_a_weight_of_a_stack_equal_the_product_of_rounded_operands(
    rows: int, width: int, quantize: Quantize | None
) -> None:
    rng = np.random.default_rng(0)
    x, stack = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((rows, width), (3, width, 10)))
    stored = store_matrix(stack, (1,), dtype="bfloat16", quantize=quantize)
    product = jax.jit(lambda x, layer: multiply_stored(x, take_layer(stored, layer), dtype="bfloat16"))(x, 2)
    rounded = (lambda a: a) if quantize else (lambda a: a.astype(jnp.bfloat16))
    weight = stored.dequantize() if quantize else rounded(stack)
    expected = np.asarray(rounded(x), np.float64) @ np.asarray(weight[2], np.float64)
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)
