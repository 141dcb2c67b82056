"""Flash attention is asked for the formula: what its kernels receive, and the programs that call them."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from test_attention import numpy_attention

from gptjax.core.errors import UserError
from gptjax.model import flash_attention, kernels
from gptjax.model.attention import attend
from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.flash_attention import (
    cudnn_bias_attention,
    cudnn_packed_attention,
    pack_documents,
    splash_attention,
    why_not_packed,
)
from gptjax.model.kernels import Kernel, select_kernel, why_not_flash
from gptjax.model.xla_attention import causal_attention
from gptjax.sharding.mesh import MeshConfig

SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
"""Rows of 8 tokens: three documents and padding, and one document."""


def make_inputs(
    length: int = 8, *, rows: int = 2, heads: int = 4, kv_heads: int = 2, width: int = 8
) -> AttentionInputs:
    shapes = ((rows, length, heads, width), *[(rows, length, kv_heads, width)] * 2)
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    return AttentionInputs(q, k, v)


def attend_packed(
    q: Array,
    k: Array,
    v: Array,
    *,
    q_seqlen: Array,
    kv_seqlen: Array,
    q_offsets: Array,
    kv_offsets: Array,
    **options: Any,
) -> Array:
    """What JAX's internal function documents, with the numbers of documents known: a sequence at a time."""
    assert options["mask_type"] is cudnn.MaskType.PADDING_CAUSAL
    np.testing.assert_array_equal(q_seqlen, kv_seqlen)
    np.testing.assert_array_equal(q_offsets, kv_offsets)
    assert q_offsets.shape == (len(q), q_seqlen.shape[1] + 1)
    assert q.shape == k.shape == v.shape
    arrays: Any = tuple(map(np.asarray, (q, k, v)))
    y, one = np.zeros(q.shape, np.float32), AttentionOptions(options["scale"], options["sliding_window_length"])
    for row, place in np.ndindex(*q_seqlen.shape):
        if (size := int(q_seqlen[row, place])) > 0:
            part = (slice(row, row + 1), slice(start := int(q_offsets[row, place]), start + size))
            y[part] = numpy_attention(AttentionInputs(*(x[part] for x in arrays)), one)
    return jnp.asarray(y)


@pytest.mark.parametrize("window", [None, 2])
def test_packed_documents_are_asked_for_the_formula(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    monkeypatch.setattr(cudnn, "dot_product_attention", attend_packed)
    monkeypatch.setattr(jax, "checkpoint", lambda function: function)  # so that numbers are known
    monkeypatch.setattr(jax.lax, "cond", lambda fits, yes, no: yes() if fits else no())
    inputs, options = make_inputs(), AttentionOptions(0.3, window)
    y = cudnn_packed_attention(inputs, options, segments=SEGMENTS, otherwise=lambda: pytest.fail("they do not fit"))
    np.testing.assert_allclose(y, numpy_attention(inputs, options, SEGMENTS), rtol=1e-5, atol=1e-5)


def test_documents_are_packed_with_their_lengths_and_places() -> None:
    packing = pack_documents(SEGMENTS, max_documents=5)
    assert packing.lengths.tolist() == [[2, 3, 1, 2, -1], [8, -1, -1, -1, -1]]
    assert packing.offsets.tolist() == [[0, 2, 5, 6, -1, -1], [0, -1, -1, -1, -1, -1]]
    assert bool(packing.fits)
    full = pack_documents(SEGMENTS, max_documents=4)
    assert (full.lengths[0].tolist(), full.offsets[0].tolist()) == ([2, 3, 1, 2], [0, 2, 5, 6, -1])
    assert bool(full.fits)
    assert not bool(pack_documents(SEGMENTS, max_documents=3).fits)


def test_rows_with_too_many_documents_take_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "dot_product_attention", lambda q, k, v, **options: jnp.full_like(q, jnp.nan))
    monkeypatch.setattr(flash_attention, "MIN_PACKED_DOCUMENTS", 3)
    inputs, options = make_inputs(), AttentionOptions(0.3)
    formula = lambda inputs: causal_attention(inputs, options, segments=SEGMENTS)

    def sum_packed(inputs: AttentionInputs) -> Array:
        otherwise = partial(formula, inputs)
        return jnp.sin(cudnn_packed_attention(inputs, options, segments=SEGMENTS, otherwise=otherwise)).sum()

    found = jax.jit(jax.value_and_grad(sum_packed))(inputs)
    wanted = jax.jit(jax.value_and_grad(lambda inputs: jnp.sin(formula(inputs)).sum()))(inputs)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 2])
def test_bias_is_asked_for_the_formula(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """XLA computes what the kernel is asked for."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **k: plain(*a, **k | {"implementation": "xla"}))
    inputs, options = make_inputs(), AttentionOptions(0.3, window)
    y = jax.jit(partial(cudnn_bias_attention, options=options, segments=SEGMENTS))(inputs)
    np.testing.assert_allclose(y, numpy_attention(inputs, options, SEGMENTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "has_documents"), [(None, False), (40, True)], ids=["plain", "window and documents"]
)
def test_splash_has_the_values_and_gradients_of_the_formula(window: int | None, has_documents: bool) -> None:
    inputs, options = make_inputs(256, rows=1, heads=2, kv_heads=1), AttentionOptions(0.3, window)
    segments = jnp.arange(256)[None] // 90 if has_documents else None

    def sum_sines(function: Any, inputs: AttentionInputs) -> Array:
        return jnp.sin(function(inputs, options, segments=segments)).sum()

    functions = (partial(splash_attention, interpret=True), causal_attention)
    found, wanted = (jax.jit(jax.value_and_grad(partial(sum_sines, function)))(inputs) for function in functions)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "platform", "calls"),
    [
        ("cudnn", "cuda", ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]),
        ("cudnn_packed", "cuda", ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward", "PADDING_CAUSAL"]),
        ("cudnn_bias", "cuda", ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]),
        ("splash", "tpu", ["tpu_custom_call", "splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"]),
    ],
)
def test_program_of_an_absent_device_calls_the_kernel(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel, platform: str, calls: list[str]
) -> None:
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    inputs = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_inputs(128, width=64))
    segments = None if kernel == "cudnn" else jnp.zeros((2, 128), jnp.int32)

    def sum_attention(inputs: AttentionInputs) -> Array:
        options = AttentionOptions(0.1, 100, dtype="bfloat16")
        return attend(inputs, options, kernel=kernel, segments=segments, mesh=MeshConfig()).astype(jnp.float32).sum()

    with MeshConfig().activate():  # float32 products are asked for there
        program = jax.jit(jax.grad(sum_attention)).trace(inputs)
    if kernel == "splash":  # such a product of 16-bit operands would not compile
        assert "HIGHEST" not in str(program.jaxpr)
    text = program.lower(lowering_platforms=(platform,)).as_text()
    assert [call for call in calls if call not in text] == []


def test_installed_jax_has_the_packed_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is internal to JAX. If this fails, adapt `cudnn_packed_attention` to the new signature."""
    assert why_not_packed() is None
    monkeypatch.setattr(cudnn, "dot_product_attention", lambda query, key, value, *, scale, mask_type: query)
    why_not_packed.cache_clear()
    assert "does not take kv_offsets, kv_seqlen, q_offsets, q_seqlen, sliding_window_length" in str(why_not_packed())
    monkeypatch.delattr(cudnn, "dot_product_attention")
    why_not_packed.cache_clear()
    assert "has no jax._src.cudnn.fused_attention_stablehlo.dot_product_attention" in str(why_not_packed())
    monkeypatch.undo()
    why_not_packed.cache_clear()


HOPPER, AMPERE, BLACKWELL, TURING = (
    SimpleNamespace(platform="gpu", compute_capability=capability) for capability in ("9.0", "8.0", "10.0", "7.5")
)
TPU, UNKNOWN_GPU = SimpleNamespace(platform="tpu"), SimpleNamespace(platform="gpu")
DOCUMENTS = GPTConfig(intra_document_mask=True)
WIDE = GPTConfig(num_heads=3)
"""Heads of 256 channels."""
LONG = replace(DOCUMENTS, context_length=4096)


@pytest.mark.parametrize(
    ("device", "config", "kernel"),
    [
        (HOPPER, DOCUMENTS, "cudnn_packed"),
        (HOPPER, LONG, "cudnn_packed"),
        (HOPPER, replace(DOCUMENTS, long_window=128), "cudnn_packed"),
        (HOPPER, replace(DOCUMENTS, num_sinks=2), "xla"),
        (HOPPER, WIDE, "cudnn"),
        (BLACKWELL, DOCUMENTS, "cudnn_packed"),
        (BLACKWELL, WIDE, "xla"),
        (AMPERE, DOCUMENTS, "cudnn_bias"),
        (AMPERE, replace(DOCUMENTS, context_length=2049), "xla"),
        (AMPERE, replace(DOCUMENTS, context_length=1023), "xla"),
        (AMPERE, LONG, "xla"),
        (AMPERE, WIDE, "xla"),
        (AMPERE, GPTConfig(compute=ComputeConfig(dtype="float16")), "cudnn"),
        (UNKNOWN_GPU, DOCUMENTS, "cudnn_bias"),
        (TURING, DOCUMENTS, "xla"),
        (HOPPER, GPTConfig(compute=ComputeConfig(deterministic=True)), "cudnn"),
        (BLACKWELL, GPTConfig(compute=ComputeConfig(deterministic=True)), "xla"),
        (AMPERE, replace(DOCUMENTS, compute=ComputeConfig(deterministic=True)), "xla"),
        (TPU, GPTConfig(), "splash"),
        (TPU, replace(DOCUMENTS, window_pattern="SL", short_window=128), "splash"),
        (TPU, GPTConfig(context_length=1000), "xla"),
        (TPU, GPTConfig(num_sinks=2), "xla"),
        (TPU, GPTConfig(dropout=0.1), "xla"),
        (TPU, GPTConfig(compute=ComputeConfig(dtype="float32")), "xla"),
        (TPU, GPTConfig(compute=ComputeConfig(attention_impl="xla")), "xla"),
    ],
)
def test_kernel_of_a_device_and_a_config(device: Any, config: GPTConfig, kernel: str) -> None:
    assert select_kernel(config, device=device) == kernel
    reason = why_not_flash(config, device=device)
    assert config.compute.attention_impl == "xla" or (reason is None) == (kernel != "xla")


def test_kernel_depends_on_the_length_of_the_rows_at_hand() -> None:
    assert select_kernel(GPTConfig(), length=1000, device=TPU) == "xla"
    assert select_kernel(DOCUMENTS, length=1001, device=AMPERE) == "xla"


def test_packed_layout_that_jax_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(kernels.KERNELS["cudnn_packed"], why_not_installed=lambda: "jax 9 has no such thing")
    monkeypatch.setitem(kernels.KERNELS, "cudnn_packed", limits)
    assert select_kernel(DOCUMENTS, device=HOPPER) == "cudnn_bias"
    assert select_kernel(LONG, device=HOPPER) == "xla"
    assert why_not_flash(LONG, device=HOPPER) == (
        "cudnn_packed: jax 9 has no such thing; cudnn_bias: rows have 4096 tokens and the kernel takes multiples of 2 "
        "up to 2048"
    )
    with pytest.raises(UserError, match="attention_impl=cudnn cannot run: cudnn_packed: jax 9 has no such thing"):
        select_kernel(replace(LONG, compute=ComputeConfig(attention_impl="cudnn")), device=HOPPER)


def test_splash_is_refused_elsewhere() -> None:
    with pytest.raises(UserError, match="attention_impl=splash cannot run: the device is a gpu, not a TPU"):
        select_kernel(GPTConfig(compute=ComputeConfig(attention_impl="splash")), device=HOPPER)
