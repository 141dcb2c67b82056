"""Checks that need a GPU: `pytest -m gpu -n 1`. Without one they are skipped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from tiny import MODEL, read_lines, tiny_config, write_text_shards

from gptjax.model.attention import attend
from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions, Sinks
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT
from gptjax.model.kernels import KERNELS, Kernel, why_not, why_not_flash
from gptjax.runs.trainer import train
from gptjax.sharding.devices import DType
from gptjax.sharding.mesh import MeshConfig

pytestmark = pytest.mark.gpu


def compute_attention(
    kernel: Kernel, dtype: str, *, kv_heads: int, num_sinks: int, window: int | None, documents: int, width: int
) -> list[np.ndarray]:
    """Attention of 2 × 256 positions and 4 heads, and the gradients of a weighted sum of it.

    The first row has `documents` documents, unless that is 0; the second one has two.
    """
    shapes = {"q": (2, 256, 4, width), "k": (2, 256, kv_heads, width), "v": (2, 256, kv_heads, width)}
    shapes |= {name: (num_sinks, kv_heads, width) for name in ("sink_keys", "sink_values") if num_sinks}
    arrays = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(shapes.items())}
    weights = jax.random.normal(jax.random.key(9), shapes["q"])
    places = jnp.arange(256)
    segments = jnp.stack([places * documents // 256, places // 200]) if documents else None

    def sum_weighted(arrays: dict[str, Array]) -> tuple[Array, Array]:
        x = {name: array.astype(dtype) for name, array in arrays.items()}
        sinks = Sinks(x["q"], x["sink_keys"], x["sink_values"]) if num_sinks else None
        inputs = AttentionInputs(x["q"], x["k"], x["v"], sinks)
        options = AttentionOptions(width**-0.5, window, dtype=dtype)
        y = attend(inputs, options, kernel=kernel, segments=segments, mesh=MeshConfig())
        return jnp.sum(y.astype(jnp.float32) * weights), y

    with MeshConfig().activate():
        gradients, y = jax.jit(jax.grad(sum_weighted, has_aux=True))(arrays)
    return [np.asarray(x, np.float32) for x in (y, *gradients.values())]


@pytest.mark.parametrize(
    ("kv_heads", "num_sinks", "window", "documents", "width"),
    [
        (4, 0, None, 0, 64),
        (2, 0, None, 0, 64),
        (4, 0, 100, 0, 64),
        (2, 4, None, 0, 64),
        (4, 0, None, 0, 256),
        (4, 0, None, 5, 64),
        (2, 0, 100, 5, 128),
        (4, 0, None, 64, 64),
    ],
    ids=[
        "plain", "GQA", "window", "GQA with sinks", "wide heads", "documents", "GQA, documents, window",
        "too many documents to pack",
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_flash_kernels_equal_the_formula(
    dtype: DType, kv_heads: int, num_sinks: int, window: int | None, documents: int, width: int
) -> None:
    """Every kernel that this GPU has for the case."""
    options: dict[str, Any] = {"num_sinks": num_sinks, "window": window, "documents": documents, "width": width}
    config = GPTConfig(
        num_heads=4, embed_dim=4 * width, num_kv_heads=kv_heads, num_sinks=num_sinks, long_window=window,
        intra_document_mask=documents > 0, compute=ComputeConfig(dtype=dtype),
    )  # fmt: skip
    own: list[Kernel] = [kernel for kernel in KERNELS if why_not(kernel, config, length=256) is None]
    if not own:
        pytest.skip(f"no kernel of this GPU can: {why_not_flash(config)}")
    expected = compute_attention("xla", "float32", kv_heads=kv_heads, **options)
    for kernel in own:
        found = compute_attention(kernel, dtype, kv_heads=kv_heads, **options)
        for actual, exact in zip(found, expected, strict=True):
            assert np.abs(actual - exact).max() < 0.03 * np.abs(exact).max(), kernel


def test_float32_products_are_not_tf32() -> None:
    """Products agree with float64 to float32's own rounding."""
    x, y = (np.random.default_rng(i).normal(size=(256, 256)).astype(np.float32) for i in range(2))
    with MeshConfig().activate():
        product = jax.jit(jnp.matmul)(x, y)
    assert np.abs(np.asarray(product) - x.astype(np.float64) @ y).max() < 1e-4


def test_logits_equal_those_of_the_cpu() -> None:
    config = replace(MODEL, embed_dim=64)
    tokens = np.random.default_rng(0).integers(0, config.resolved_vocab_size, (2, config.context_length))
    logits = []
    for device in (jax.devices("cpu")[0], jax.devices()[0]):
        with jax.default_device(device), MeshConfig().activate():
            model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
            logits.append(np.asarray(jax.jit(GPT.__call__)(model, jnp.asarray(tokens))))
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-5)


def test_runs_of_16_bits_use_flash_and_learn_like_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_text_shards(tmp_path / "shards")
    model = {"embed_dim": 64, "num_heads": 4, "context_length": 64}
    losses = {}
    for dtype in ("bfloat16", "float16", "float32"):
        compute = ComputeConfig(dtype=dtype)
        own = model | {"compute": replace(compute, remat="none")}
        config = tiny_config(shards, name=dtype, steps=100, model=own, mesh=MeshConfig())
        assert train(config) == 0
        losses[dtype] = dict(read_lines(config.directory))[100]
    printed = capsys.readouterr().out
    assert "attention cudnn" in printed
    assert "Peak memory of a device" in printed
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.05)
    assert losses["float16"] == pytest.approx(losses["float32"], abs=0.05)


def test_deterministic_runs_have_the_same_bits(tmp_path: Path) -> None:
    """Long rows and many of them: that is where cuDNN's gradient adds in another order each time."""
    shards = write_text_shards(tmp_path / "shards", lines=2000)
    compute = ComputeConfig(dtype="bfloat16", remat="none", deterministic=True)
    model = {"embed_dim": 256, "num_heads": 4, "context_length": 1024, "compute": compute}
    losses = []
    for name in ("one", "two"):
        config = tiny_config(shards, name=name, steps=30, batch_size=16, model=model, mesh=MeshConfig())
        assert train(config) == 0
        losses.append(read_lines(config.directory))
    assert losses[0] == losses[1]
