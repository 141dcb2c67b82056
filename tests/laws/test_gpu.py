"""What only a GPU can show: `pytest -m gpu -n 1`. Without one, these are skipped and say so."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, read_lines, tiny_config, write_text_shards

from gptjax.model.attention import Sinks, attend
from gptjax.model.gpt import GPT
from gptjax.sharding.mesh import MeshConfig
from gptjax.train import train

pytestmark = pytest.mark.gpu


def attention_and_gradients(kernel, dtype, *, shared, sinks, window):
    """The output and the gradients of a weighted sum of it, for 2 × 256 positions and 4 heads of 64.

    `shared` heads have the same keys; `sinks` of them are learned.
    """
    shapes = {"q": (2, 256, 4, 64), "k": (2, 256, 4 // shared, 64), "v": (2, 256, 4 // shared, 64)}
    shapes |= {name: (sinks, 4 // shared, 64) for name in ("sink_keys", "sink_values") if sinks}
    arrays = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(shapes.items())}
    weights = jax.random.normal(jax.random.key(9), shapes["q"])

    def weighted(arrays):
        x = {name: array.astype(dtype) for name, array in arrays.items()}
        learned = Sinks(x["q"], x["sink_keys"], x["sink_values"]) if sinks else None
        settings = {"kernel": kernel, "num_sinks": learned, "window": window, "mesh": MeshConfig()}
        out = attend(x["q"], x["k"], x["v"], **settings)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    with MeshConfig().activate():
        gradients, out = jax.jit(jax.grad(weighted, has_aux=True))(arrays)
    return [np.asarray(x, np.float32) for x in (out, *gradients.values())]


@pytest.mark.parametrize(
    "options",
    [
        {"shared": 1, "num_sinks": 0, "window": None},
        {"shared": 2, "num_sinks": 0, "window": None},
        {"shared": 1, "num_sinks": 0, "window": 100},
        {"shared": 2, "num_sinks": 4, "window": None},
    ],
    ids=str,
)
def test_the_flash_kernel_is_the_textbook_formula(options):
    """To the precision of bfloat16, forward and backward, with all that the kernel is given to do."""
    wanted = attention_and_gradients("xla", "float32", **options)
    for got, exact in zip(attention_and_gradients("cudnn", "bfloat16", **options), wanted, strict=True):
        assert np.abs(got - exact).max() < 0.03 * np.abs(exact).max()


def test_float32_is_float32():
    """Not TF32: products agree with float64 to float32's own rounding."""
    x, y = (np.random.default_rng(i).normal(size=(256, 256)).astype(np.float32) for i in range(2))
    with MeshConfig().activate():
        got = jax.jit(jnp.matmul)(x, y)
    assert np.abs(np.asarray(got) - x.astype(np.float64) @ y).max() < 1e-4


def test_logits_equal_those_of_the_cpu():
    config = replace(MODEL, embed_dim=64)
    tokens = np.random.default_rng(0).integers(0, config.resolved_vocab_size, (2, config.context_length))
    found = []
    for device in (jax.devices("cpu")[0], jax.devices()[0]):
        with jax.default_device(device), MeshConfig().activate():
            model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
            found.append(np.asarray(jax.jit(GPT.__call__)(model, jnp.asarray(tokens))))
    np.testing.assert_allclose(found[1], found[0], atol=2e-5)


def test_a_run_in_bfloat16_uses_the_flash_kernel_and_learns_what_float32_learns(tmp_path, capsys):
    shards = write_text_shards(tmp_path / "shards")
    model = {"embed_dim": 64, "num_heads": 4, "context_length": 64}
    losses = {}
    for dtype in ("bfloat16", "float32"):
        config = tiny_config(shards, name=dtype, steps=100, model=model | {"dtype": dtype}, mesh=MeshConfig())
        assert train(config) == 0
        losses[dtype] = dict(read_lines(config.directory))[100]
    printed = capsys.readouterr().out
    assert "attention cudnn" in printed
    assert "Peak memory of a device" in printed
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.05)
