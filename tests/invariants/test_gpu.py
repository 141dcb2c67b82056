"""Checks that need a GPU: `pytest -m gpu -n 1`. Without one they are skipped."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from tiny import MODEL, read_lines, tiny_config, write_text_shards

from gptjax.model.attention import AttentionInputs, AttentionOptions, Sinks, attend
from gptjax.model.config import ComputeConfig
from gptjax.model.gpt import GPT
from gptjax.model.kernels import Kernel
from gptjax.sharding.mesh import MeshConfig
from gptjax.trainer import train

pytestmark = pytest.mark.gpu


def compute_attention(
    kernel: Kernel, dtype: str, *, kv_heads: int, num_sinks: int, window: int | None
) -> list[np.ndarray]:
    """Attention of 2 × 256 positions and 4 heads of 64 channels, and the gradients of a weighted sum of it."""
    shapes = {"q": (2, 256, 4, 64), "k": (2, 256, kv_heads, 64), "v": (2, 256, kv_heads, 64)}
    shapes |= {name: (num_sinks, kv_heads, 64) for name in ("sink_keys", "sink_values") if num_sinks}
    arrays = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(shapes.items())}
    weights = jax.random.normal(jax.random.key(9), shapes["q"])

    def sum_weighted(arrays: dict[str, Array]) -> tuple[Array, Array]:
        x = {name: array.astype(dtype) for name, array in arrays.items()}
        sinks = Sinks(x["q"], x["sink_keys"], x["sink_values"]) if num_sinks else None
        inputs, options = AttentionInputs(x["q"], x["k"], x["v"], sinks), AttentionOptions(64**-0.5, window)
        y = attend(inputs, options, kernel=kernel, mesh=MeshConfig())
        return jnp.sum(y.astype(jnp.float32) * weights), y

    with MeshConfig().activate():
        gradients, y = jax.jit(jax.grad(sum_weighted, has_aux=True))(arrays)
    return [np.asarray(x, np.float32) for x in (y, *gradients.values())]


@pytest.mark.parametrize(
    ("kv_heads", "num_sinks", "window"),
    [(4, 0, None), (2, 0, None), (4, 0, 100), (2, 4, None)],
    ids=["plain", "GQA", "window", "GQA with sinks"],
)
def test_flash_kernel_equals_the_formula_within_bfloat16(kv_heads: int, num_sinks: int, window: int | None) -> None:
    options = {"kv_heads": kv_heads, "num_sinks": num_sinks, "window": window}
    expected = compute_attention("xla", "float32", **options)
    for actual, exact in zip(compute_attention("cudnn", "bfloat16", **options), expected, strict=True):
        assert np.abs(actual - exact).max() < 0.03 * np.abs(exact).max()


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


def test_bfloat16_run_uses_flash_and_learns_like_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_text_shards(tmp_path / "shards")
    model = {"embed_dim": 64, "num_heads": 4, "context_length": 64}
    losses = {}
    for dtype, compute in (("bfloat16", ComputeConfig()), ("float32", ComputeConfig(dtype="float32"))):
        own = model | {"compute": replace(compute, remat="none")}
        config = tiny_config(shards, name=dtype, steps=100, model=own, mesh=MeshConfig())
        assert train(config) == 0
        losses[dtype] = dict(read_lines(config.directory))[100]
    printed = capsys.readouterr().out
    assert "attention cudnn" in printed
    assert "Peak memory of a device" in printed
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.05)
