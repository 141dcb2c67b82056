"""Attention against numpy, one query at a time, and the choice of its kernel."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import AbstractMesh, AxisType

from gptjax.core.errors import UserError
from gptjax.model.attention import attend
from gptjax.model.attention_inputs import AttentionInputs, AttentionOptions, Sinks
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.flash_attention import cudnn_attention
from gptjax.model.kernels import select_kernel, why_not_flash
from gptjax.model.xla_attention import causal_attention
from gptjax.sharding.devices import target_device
from gptjax.sharding.mesh import MeshConfig


def draw(*shape: int, seed: int = 0) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


def make_inputs(sinks: Sinks | None = None) -> AttentionInputs:
    """Two rows of 6 tokens, 4 query heads and 2 key heads of 8 channels."""
    return AttentionInputs(draw(2, 6, 4, 8), draw(2, 6, 2, 8, seed=1), draw(2, 6, 2, 8, seed=2), sinks)


@partial(jax.jit, static_argnames="options")  # one program: its operations would be compiled one by one
def compute(inputs: AttentionInputs, options: AttentionOptions, **optional: Any) -> Array:
    return attend(inputs, options, kernel="xla", mesh=MeshConfig(), **optional)


def numpy_attention(inputs: AttentionInputs, options: AttentionOptions, segments: Any = None) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in inputs[:3])
    segments = None if segments is None else np.asarray(segments)
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        j = h // (q.shape[2] // k.shape[2])
        visible = [s for s in range(t + 1) if options.window is None or t - s < options.window]
        visible = [s for s in visible if segments is None or segments[b, s] == segments[b, t]]
        scores, values = [q[b, t, h] @ k[b, s, j] for s in visible], [v[b, s, j] for s in visible]
        if inputs.sinks is not None:
            queries, sink_keys, sink_values = (np.asarray(x, np.float64) for x in inputs.sinks)
            scores += [queries[b, t, h] @ key[j] for key in sink_keys]
            values += [value[j] for value in sink_values]
        weights = np.exp(options.scale * np.array(scores))
        out[b, t, h] = weights / weights.sum() @ np.array(values)
    return out


SINKS = Sinks(draw(2, 6, 4, 8, seed=7), draw(3, 2, 8, seed=8), draw(3, 2, 8, seed=9))
SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 1, 1]])
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window of 1": {"window": 1},
    "window of 3": {"window": 3},
    "documents": {"segments": SEGMENTS},
    "sinks": {"sinks": SINKS},
    "all": {"window": 2, "segments": SEGMENTS, "sinks": SINKS},
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "whole rows": {"query_block": 99},
    "blocks": {"query_block": 4},
    "recomputed blocks": {"query_block": 4, "max_kept": 0},
    "mapped blocks": {"query_block": 4, "max_unrolled": 1},
}
"""Blocks of 4 leave a last block of 2 queries of the rows of 6."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["whole rows", "blocks", "mapped blocks"])
def test_attention_equals_numpy_formula(name: str, form: str) -> None:
    window, segments, sinks = (CASES[name].get(key) for key in ("window", "segments", "sinks"))
    options = AttentionOptions(0.3, window, **ARCHITECTURES[form])
    y = compute(make_inputs(sinks), options, segments=segments)
    np.testing.assert_allclose(y, numpy_attention(make_inputs(sinks), options, segments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["window of 3", "all"])
@pytest.mark.parametrize("form", ["blocks", "recomputed blocks", "mapped blocks"])
def test_blocks_have_the_gradients_of_whole_rows(name: str, form: str) -> None:
    window, segments, sinks = (CASES[name].get(key) for key in ("window", "segments", "sinks"))

    def loss(inputs: AttentionInputs, form: str) -> Array:
        options = AttentionOptions(0.3, window, **ARCHITECTURES[form])
        return jnp.sum(jnp.sin(attend(inputs, options, kernel="xla", segments=segments, mesh=MeshConfig())))

    whole, blocks = (jax.jit(jax.grad(partial(loss, form=one)))(make_inputs(sinks)) for one in ("whole rows", form))
    for actual, expected in zip(*map(jax.tree.leaves, (blocks, whole)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_blocks_read_only_keys_within_the_window() -> None:
    x = jax.ShapeDtypeStruct((1, 32, 2, 8), jnp.float32)

    def count_flops(window: int | None) -> float:
        run = partial(causal_attention, options=AttentionOptions(1.0, window, **ARCHITECTURES["blocks"]))
        return jax.jit(run).lower(AttentionInputs(x, x, x)).compile().cost_analysis()["flops"]  # pyright: ignore

    assert count_flops(4) < 0.5 * count_flops(None)


@pytest.mark.parametrize("form", ARCHITECTURES)
def test_dropout_of_probabilities_keeps_their_mean(form: str) -> None:
    """Values are ones, so an output is the sum of the kept probabilities."""
    inputs = AttentionInputs(draw(1, 64, 2, 8), draw(1, 64, 2, 8, seed=1), jnp.ones((1, 64, 2, 8)))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(1))
    blocks: dict[str, Any] = ARCHITECTURES[form] | ({} if form == "whole rows" else {"query_block": 16})
    options = AttentionOptions(0.35, dropout=0.4, **blocks)
    dropped = compute(inputs, options, dropout_keys=keys)
    np.testing.assert_array_equal(dropped, compute(inputs, options, dropout_keys=keys))
    assert abs(float(dropped.mean()) - 1.0) < 0.1
    assert float(dropped.std()) > 0.1
    assert not np.allclose(dropped[:, :, 0], dropped[:, :, 1]), "each head has its own mask"
    alone = AttentionOptions(0.35, 1, dropout=0.4, **blocks)  # each token sees itself only
    kept = compute(inputs, alone, dropout_keys=keys)
    assert not np.allclose(kept[:, 16:32], kept[:, 32:48]), "each block has its own mask"


@pytest.mark.parametrize(("window", "sinks"), [(3, None), (None, SINKS)], ids=["window", "sinks"])
def test_cudnn_is_asked_for_the_same_formula(
    monkeypatch: pytest.MonkeyPatch, window: int | None, sinks: Sinks | None
) -> None:
    """XLA computes what the kernel is asked for."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **k: plain(*a, **k | {"implementation": "xla"}))
    inputs, options = make_inputs(sinks), AttentionOptions(0.3, window)
    np.testing.assert_allclose(cudnn_attention(inputs, options), numpy_attention(inputs, options), rtol=1e-5, atol=1e-5)


GPU = SimpleNamespace(platform="gpu", compute_capability="9.0")


@pytest.mark.parametrize(
    ("kernel", "changes"),
    [
        ("cudnn", {}),
        ("xla", {"dropout": 0.1}),
        ("xla", {"num_heads": 64}),
        ("xla", {"num_sinks": 4, "long_window": 128}),
        ("cudnn", {"num_sinks": 4, "num_heads": 6}),  # twice 128 channels
        ("xla", {"num_sinks": 4, "num_heads": 3}),
        ("cudnn", {"num_sinks": 4, "num_kv_heads": 4}),
        ("cudnn", {"window_pattern": "SL", "short_window": 128}),
        ("xla", {"compute": ComputeConfig(dtype="float32")}),
        ("xla", {"compute": ComputeConfig(attention_impl="xla")}),
    ],
    ids=str,
)
def test_auto_selects_cudnn_where_it_can_run(kernel: str, changes: dict[str, Any]) -> None:
    assert select_kernel(GPTConfig(**changes), device=GPU) == kernel


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (SimpleNamespace(platform="cpu"), "the device is a cpu"),
        (SimpleNamespace(platform="gpu", compute_capability="7.5"), "has compute capability 7.5 and .* 8"),
        (SimpleNamespace(platform="gpu", compute_capability="gfx90a"), "is not NVIDIA's"),
        (SimpleNamespace(platform="gpu", compute_capability="8.0"), None),
        (SimpleNamespace(platform="gpu"), None),  # compiled for from afar: its capability is not known
    ],
    ids=str,
)
def test_cudnn_is_refused_on_other_devices(device: Any, reason: str | None) -> None:
    config = GPTConfig(compute=ComputeConfig(attention_impl="cudnn"))
    if reason is None:
        assert select_kernel(config, device=device) == "cudnn"
        return
    assert select_kernel(GPTConfig(), device=device) == "xla"
    with pytest.raises(UserError, match=f"cudnn cannot run: .*{reason}"):
        select_kernel(config, device=device)


def test_kernel_is_selected_for_the_mesh_that_is_compiled_for() -> None:
    """A mesh of GPUs that are not here, as ahead-of-time compilation has it."""
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA A100-SXM4-80GB", num_cores=108, platform="gpu")
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Explicit,), abstract_device=gpu)
    assert target_device() == jax.devices()[0]
    assert why_not_flash(GPTConfig()) == "the device is a cpu, neither an NVIDIA GPU nor a TPU"
    with jax.sharding.use_abstract_mesh(mesh):
        assert target_device() == gpu
        assert select_kernel(GPTConfig()) == "cudnn"
