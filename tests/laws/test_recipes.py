"""Law: every recipe, made small, computes its formula, learns the same on eight devices as on one, and goes on exactly
where it stopped.

The recipes are found by looking at configs/; what is made small are sizes, never an option.
"""

import functools
from dataclasses import replace
from pathlib import Path

import formula
import jax
import numpy as np
import pytest
from tiny import ALPHABET, write_text_shards

import configs
from configs.nanochat_d12 import nanochat
from gptjax import attention
from gptjax.config import load_config
from gptjax.data.batch_size import BatchSize
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.model.gpt import GPT, count_parameters, with_static
from gptjax.sharding.mesh import MeshConfig
from gptjax.startup import compile_steps, create_state, open_loader
from gptjax.training.checkpoint import CheckpointConfig, CheckpointManager

NAMES = sorted(path.stem for path in Path(configs.__path__[0]).glob("*.py") if path.stem != "__init__")
SAME = {"gpt2_355m", "gpt2_774m", "gpt2_1558m", "owt_30m", "finetune_shakespeare", "smoke", "own_text_cpu"}
SAME |= {"gpt2_124m", "shakespeare_char", "shakespeare_char_cpu", "quickstart", "gpt2_cpu"}
SAME |= {"shakespeare_modern", "shakespeare_modern_cpu"}
"""Recipes whose options are another's, or those of the other laws: sizes apart, nothing new."""
SMALL = [name for name in NAMES if name not in SAME]
LOUD = 0.2
SINGLE, DATA, FSDP, ALL_THREE = (
    MeshConfig("single"),
    MeshConfig(data=8),
    MeshConfig(fsdp=8),
    MeshConfig(data=2, fsdp=2, tensor=2),
)
EVERY = (DATA, FSDP, ALL_THREE)
MESHES = {"speedrun_windows": EVERY, "speedrun_unet": EVERY, "nanochat_d12": EVERY, "modern_253m": EVERY}
MESHES |= {"speedrun_162m": (DATA,), "speedrun_track3": (FSDP,), "modern_cpu": (FSDP,), "ml_by_hand_124m": (ALL_THREE,)}
"""On which a recipe is tried: those with something of their own (documents, stages, value tables, gates, values of the
first layer, sinks) on every one."""
IN_BLOCKS = FSDP
"""Where attention goes in blocks of a few queries, as it does in long rows."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_text_shards(tmp_path_factory.mktemp("recipes") / "shards")


def small(name, shards):
    """The recipe with few, narrow layers, a short context, at most one more stage, float32 and a text of ours."""
    config = load_config(name)
    model, optimizer = config.model, config.optimizer
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
    data = TokenShards(path=str(shards))
    if isinstance(config.data, Mixture):
        data = Mixture(
            tuple(MixtureComponent(data, part.weight) for part in config.data.components),
            validation=config.data.validation,
        )
    else:
        data = replace(data, packing=config.data.packing)
    batch = BatchSize(size=16, grad_accum=2)
    stages = tuple(
        replace(
            stage,
            begin=1,
            batch_size=stage.sequences and 16,
            grad_accum=stage.accumulate and 2,
            long_window=stage.long_window and 7,
            short_window=stage.short_window and 3,
        )
        for stage in config.stages[:1]
    )
    config = replace(config, model=model, batch=batch, stages=stages)
    return replace(config, optimizer=optimizer, data=data, init_from=None, evaluators=())


def loud(config, mesh):
    """A state whose weights are so large, whatever the recipe's initial ones, that every part of the model is heard."""
    state, rng = create_state(config, mesh), np.random.default_rng(0)

    def add_noise(leaf):
        noise = rng.normal(0.0, LOUD, leaf.shape).astype(np.float32)
        return jax.device_put(np.asarray(leaf) + noise, leaf.sharding)

    return replace(state, model=jax.tree.map(add_noise, state.model))


def opened(config, mesh):
    state = loud(config, mesh)
    batches = open_loader(config, mesh)
    train_step = compile_steps(config, mesh, state, batches, start=0)
    return state, functools.partial(advance, train_step, batches)


def advance(train_step, batches, state, count):
    """The losses of the next steps, and the state after them."""
    rows, losses = batches.iterate_from(int(state.step)), []
    for _ in range(count):
        state, metrics = train_step(int(state.step))(state, next(rows))
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.parametrize("name", SMALL)
def test_it_is_its_formula_the_same_on_eight_devices_and_after_a_stop(shards, tmp_path, monkeypatch, name):
    config = small(name, shards)
    with SINGLE.activate():
        state, run = opened(config, SINGLE)
        alone, state = run(state, 2)
        with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
            checkpoints.save(2, state, metadata={}, val_loss=None)
        more, _ = run(state, 2)
        with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
            restored = checkpoints.restore(create_state(config, SINGLE), 2)
        rows = next(open_loader(config, SINGLE).iterate_from(2))
        wanted = formula.loss(with_static(restored.model, config=config.phases[-1].model), rows)
        assert run(restored, 2)[0] == more
    assert more[0] == pytest.approx(wanted, abs=1e-5)
    assert np.ptp(alone + more) > 1e-3, "losses that do not move would prove little"
    for mesh in MESHES[name]:
        monkeypatch.setattr(attention, "BLOCK", 4 if mesh == IN_BLOCKS else 512)
        with mesh.activate():
            state, run = opened(config, mesh)
            spread, _ = run(state, 4)
        np.testing.assert_allclose(spread, alone + more, atol=1e-5, rtol=0, err_msg=mesh.describe())


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
def test_its_size_is_that_of_the_recipe(name, parameters):
    assert count_parameters(load_config(name).model) == parameters


def test_the_single_gpu_speedrun_starts_near_a_uniform_guess():
    """ln 50,304 = 10.83, at its own width and vocabulary; two layers and a shorter text change nothing here."""
    config = replace(
        load_config("speedrun_162m").model,
        num_layers=2,
        compute=replace(load_config("speedrun_162m").model.compute, dtype="float32"),
    )
    model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
    tokens = jax.random.randint(jax.random.key(1), (1, 33), 0, config.resolved_vocab_size)
    logits = jax.jit(GPT.__call__)(model, tokens[:, :-1])
    picked = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(tokens)[:, 1:, None], axis=2)
    assert -picked.mean() == pytest.approx(10.83, abs=0.05)


@pytest.mark.parametrize(
    ("depth", "embed_dim", "parameters", "batch_size", "steps"),
    [
        (6, 384, 73.5e6, 128, 1062),
        (12, 768, 286e6, 256, 2520),
        (20, 1280, 897e6, 512, 4980),
        (24, 1536, 1384e6, 512, 8352),
    ],
)
def test_depth_is_the_one_number_of_nanochat(depth, width, parameters, sequences, steps):
    config = nanochat(depth)
    assert config.model.embed_dim == width
    assert count_parameters(config.model) == pytest.approx(parameters, rel=2e-3)
    assert (config.batch.size, config.steps) == (sequences, steps)
    assert config.model.value_table_index(depth - 1) is not None
    assert config.model.window(depth - 1) is None
