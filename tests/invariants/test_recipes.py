"""Every recipe, made small, equals the numpy formula, trains alike on eight devices, and resumes exactly.

Recipes are found in configs/. Sizes are made small, but never an option.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from formula import compute_loss
from models import open_loader
from tiny import ALPHABET, write_text_shards

import configs
from configs.nanochat_d12 import nanochat
from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.config import TrainConfig, load_config
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.model.gpt import GPT, count_parameters, with_static
from gptjax.runs.startup import compile_steps, initialize_state
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import TrainState

NAMES = sorted(path.stem for path in Path(configs.__path__[0]).glob("*.py") if path.stem != "__init__")
COVERED = {"gpt2_124m", "gpt2_355m", "gpt2_774m", "gpt2_1558m", "gpt2_cpu", "owt_30m", "finetune_shakespeare", "smoke"}
COVERED |= {"own_text_cpu", "quickstart", "shakespeare_char", "shakespeare_char_cpu", "shakespeare_modern"}
COVERED |= {"shakespeare_modern_cpu", "modern_cpu"}
"""Recipes that differ only in size from others, or from what other tests train.

`modern_cpu` is `speedrun_162m` without its U-Net and its softcap, tied and unrolled.
"""
COVERED |= {"chat_cpu_sft", "chat_cpu_dpo", "modern_253m_sft", "modern_253m_dpo", "nanochat_d12_sft", "distil_gpt2"}
COVERED |= {"own_finetune_cpu", "own_chats_cpu", "own_pairs_cpu"}
"""Other objectives, trained from weights (`test_post_training_recipes.py`)."""
RECIPES = [name for name in NAMES if name not in COVERED]
SINGLE, DATA, FSDP, ALL_AXES = (
    MeshConfig("single"),
    MeshConfig(data=8),
    MeshConfig(fsdp=8),
    MeshConfig(data=2, fsdp=2, tensor=2),
)
MESHES = {"speedrun_162m": DATA, "speedrun_track3": FSDP, "modern_253m": FSDP}
"""The mesh of eight devices on which a recipe is trained; ALL_AXES for the others."""
NOISE = 0.2
"""Standard deviation of noise on initial weights: every part of the model then matters."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("recipes") / "shards")


def shrink_config(name: str, shards: Path) -> TrainConfig:
    """The recipe with few, narrow layers, a short context, at most one more stage, in float32, on a made text."""
    config = load_config(name)
    model, optimizer, source = config.model, config.optimizer, config.data
    data: Any = TokenShards(path=str(shards))
    model = replace(
        model,
        num_layers=4,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=model.num_kv_heads and 2,
        mlp_dim=model.mlp_dim and 64,
        context_length=16,
        vocab_size=len(ALPHABET),
        short_window=model.short_window and 5,
        long_window=model.long_window and 11,
        compute=replace(model.compute, dtype="float32", head_dtype=None),
    )
    if hasattr(optimizer, "ns_dtype"):
        optimizer = replace(optimizer, ns_dtype="float32")
    if isinstance(source, Mixture):
        components = tuple(MixtureComponent(data, part.weight) for part in source.components)
        data = Mixture(components, validation=source.validation)
    elif isinstance(source, TokenShards):
        data = replace(data, packing=source.packing)
    stages = tuple(
        replace(
            stage,
            begin=1,
            batch_size=stage.batch_size and 16,
            grad_accum=stage.grad_accum and 2,
            long_window=stage.long_window and 7,
            short_window=stage.short_window and 3,
        )
        for stage in config.stages[:1]
    )
    config = replace(config, model=model, optimizer=optimizer, data=data, stages=stages)
    return replace(config, batch_size=16, grad_accum=2, init_from=None, evaluators=())


def create_noisy_state(config: TrainConfig, mesh: MeshConfig) -> TrainState:
    state, rng = initialize_state(config, mesh), np.random.default_rng(0)

    def add_noise(leaf: jax.Array) -> jax.Array:
        noise = rng.normal(0.0, NOISE, leaf.shape).astype(np.float32)
        return jax.device_put(np.asarray(leaf) + noise, leaf.sharding)

    return replace(state, model=jax.tree.map(add_noise, state.model))


def start(config: TrainConfig, mesh: MeshConfig) -> tuple[TrainState, Callable[..., tuple[list[float], TrainState]]]:
    """A state at step 0, and a function that trains it for some steps: (losses, state)."""
    state, batches = create_noisy_state(config, mesh), open_loader(config, mesh)
    train_step = compile_steps(config, mesh, state, batches, start=0)

    def advance(state: TrainState, count: int) -> tuple[list[float], TrainState]:
        rows, losses = batches.iterate_from(int(state.step)), []
        for _ in range(count):
            state, metrics = train_step(int(state.step))(state, next(rows))
            losses.append(float(metrics["loss"]))
        return losses, state

    return state, advance


SLOW = {"speedrun_windows", "speedrun_track3", "speedrun_unet", "chat_cpu", "ml_by_hand_124m", "modern_253m"}
"""Recipes whose parts others have, too: those of `speedrun_162m` and `nanochat_d12`, and AdamW in other tests."""


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in RECIPES])
def test_recipe_equals_formula_on_devices_and_after_a_stop(shards: Path, tmp_path: Path, name: str) -> None:
    config = shrink_config(name, shards)
    with SINGLE.activate():
        state, advance = start(config, SINGLE)
        first, state = advance(state, 2)
        with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
            checkpoints.save(2, state, metadata={}, best_value=None)
        second, later = advance(state, 2)
        with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
            restored = checkpoints.restore(later, 2)
        batch = next(open_loader(config, SINGLE).iterate_from(2))
        expected = compute_loss(with_static(restored.model, config=config.phases[-1].model_config), batch)
        assert advance(restored, 2)[0] == second
    assert second[0] == pytest.approx(expected, abs=1e-5)
    assert np.ptp(first + second) > 1e-3, "losses that hardly move would prove little"
    mesh = MESHES.get(name, ALL_AXES)
    compute = replace(config.model.compute, query_block=4)  # attention in blocks of queries, as in long rows
    with mesh.activate():
        state, advance = start(replace(config, model=replace(config.model, compute=compute)), mesh)
        losses, _ = advance(state, 4)
    np.testing.assert_allclose(losses, first + second, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("speedrun_162m", 162_201_600),
        ("speedrun_track3", 162_354_048),
        ("modern_253m", 252_913_664),
        ("nanochat_d12", 286_262_136),
        ("ml_by_hand_124m", 124_439_808),
    ],
)
def test_recipe_has_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert count_parameters(load_config(name).model) == parameters


def test_speedrun_starts_near_a_uniform_guess() -> None:
    """Two layers, a shorter text and a smaller vocabulary change nothing here."""
    model_config = load_config("speedrun_162m").model
    compute = replace(model_config.compute, dtype="float32")
    config = replace(model_config, num_layers=2, vocab_size=4096, compute=compute)
    model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
    tokens = jax.random.randint(jax.random.key(1), (1, 33), 0, 4096)
    logits = jax.jit(GPT.__call__)(model, tokens[:, :-1])
    picked = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(tokens)[:, 1:, None], axis=2)
    assert -picked.mean() == pytest.approx(np.log(4096), abs=0.05)


@pytest.mark.parametrize(
    ("depth", "embed_dim", "parameters", "batch_size", "steps"),
    [
        (6, 384, 73.5e6, 128, 1062),
        (12, 768, 286e6, 256, 2520),
        (20, 1280, 897e6, 512, 4980),
        (24, 1536, 1384e6, 512, 8352),
    ],
)
def test_depth_decides_all_of_nanochat(
    depth: int, embed_dim: int, parameters: float, batch_size: int, steps: int
) -> None:
    config: Any = nanochat(depth)
    assert config.model.embed_dim == embed_dim
    assert count_parameters(config.model) == pytest.approx(parameters, rel=2e-3)
    assert (config.batch.size, config.steps) == (batch_size, steps)
    assert config.model.value_table_index(depth - 1) is not None
    assert config.model.window(depth - 1) is None
