"""Training states with known numbers, for tests of checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jaxtyping
import numpy as np

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT
from gptjax.optim import AdamW, Muon
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import TrainState, abstract_state

CONFIG = GPTConfig(
    num_layers=2, embed_dim=16, num_heads=2, context_length=8, vocab_size=64, compute=ComputeConfig(dtype="float32")
)
SINGLE, FSDP, FSDP_TENSOR = MeshConfig(), MeshConfig(fsdp=8), MeshConfig(fsdp=2, tensor=2)
OPTIMIZERS = {"adamw": AdamW(), "muon": Muon()}


@contextmanager
def disable_jaxtyping() -> Iterator[None]:
    """Abstract arrays are not arrays, as the annotations of a state require."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@cache
def make_abstract_state(
    optimizer: str = "adamw", mesh: MeshConfig = SINGLE, *, config: GPTConfig = CONFIG, has_ema: bool = False
) -> TrainState:
    with mesh.activate(), disable_jaxtyping():
        transformation = OPTIMIZERS[optimizer].build(steps=10, mesh=mesh)
        return abstract_state(config, transformation, mesh=mesh, has_ema=has_ema)


def make_state(
    optimizer: str = "adamw",
    mesh: MeshConfig = SINGLE,
    *,
    seed: int = 0,
    config: GPTConfig = CONFIG,
    has_ema: bool = False,
) -> TrainState:
    """A state whose arrays all hold different numbers, as after many steps."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        values = rng.standard_normal(leaf.shape) * (1 if leaf.dtype == np.float32 else 100)
        return jax.device_put(np.asarray(values, leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, make_abstract_state(optimizer, mesh, config=config, has_ema=has_ema))


def assert_same(got: TrainState | GPT, wanted: TrainState | GPT) -> None:
    """Assert that two trees have the same structure, types and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (name, a), b in zip(flatten_by_name(got).items(), flatten_by_name(wanted).values(), strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


def save_steps(
    directory: Path,
    *steps: int,
    config: CheckpointConfig = CheckpointConfig(keep=10),  # noqa: B008 (frozen)
    losses: dict[int, float] | None = None,
) -> TrainState:
    """Save one and the same state under several steps, and return it."""
    state = make_state()
    with CheckpointManager(directory, config) as checkpoints:
        checkpoints.clear()
        for step in steps:
            checkpoints.save(step, state, metadata={"seen": step * 8}, best_value=(losses or {}).get(step))
    return state


def list_names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}
