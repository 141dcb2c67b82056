"""What was saved comes back bit for bit, onto any layout, or a message says why not; a kill costs one save at most."""

import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest

from gptjax import state
from gptjax.core.errors import UserError
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT, abstract_model
from gptjax.optim import AdamW, Muon
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.checkpoint import (
    CheckpointConfig,
    CheckpointManager,
    complete_steps,
    find_step,
    flatten_by_name,
    restore_model,
    save_model,
    stored_shapes,
)
from gptjax.training.state import TrainState

CONFIG = GPTConfig(
    num_layers=2, embed_dim=16, num_heads=2, context_length=8, vocab_size=64, compute=ComputeConfig(dtype="float32")
)
SINGLE, FSDP, BOTH = MeshConfig(), MeshConfig(fsdp=8), MeshConfig(fsdp=2, tensor=2)
OPTIMIZERS = {"adamw": AdamW(), "muon": Muon()}


@contextmanager
def unchecked() -> Iterator[None]:
    """Stand-ins are not arrays, whatever the annotations of a state say."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@cache
def target(optimizer: str, mesh: MeshConfig, config: GPTConfig = CONFIG) -> TrainState:
    """What restore aims at; a mesh is a value, so it may be used under another `active()`."""
    with mesh.activate(), unchecked():
        return state.abstract_state(config, OPTIMIZERS[optimizer].build(steps=10, mesh=mesh), mesh=mesh)


def filled(
    optimizer: str = "adamw", mesh: MeshConfig = SINGLE, *, seed: int = 0, config: GPTConfig = CONFIG
) -> TrainState:
    """A state whose every array holds numbers of its own, as after many steps."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        values = rng.standard_normal(leaf.shape) * (1 if leaf.dtype == np.float32 else 100)
        return jax.device_put(np.asarray(values, leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, target(optimizer, mesh, config))


def assert_same(got: TrainState | GPT, want: TrainState | GPT) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (name, a), b in zip(flatten_by_name(got).items(), flatten_by_name(want).values(), strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


def saved(
    directory: Path, *steps: int, config: CheckpointConfig | None = None, losses: dict | None = None
) -> TrainState:
    """Save one and the same state under several steps, in one session; returns it."""
    values = filled()
    with CheckpointManager(directory, config or CheckpointConfig(keep=10)) as checkpoints:
        for step in steps:
            checkpoints.save(step, values, metadata={"seen": step * 8}, val_loss=(losses or {}).get(step))
    return values


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(("optimizer", "mesh"), [("adamw", SINGLE), ("muon", SINGLE), ("adamw", BOTH), ("muon", FSDP)])
def test_a_state_comes_back_bit_for_bit(tmp_path, optimizer, mesh):
    values, aim = filled(optimizer, mesh), target(optimizer, mesh)
    with mesh.activate(), CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(7, values, metadata={"config": {"a": [1, None]}}, val_loss=2.5)
        checkpoints.wait()
        restored = checkpoints.restore(aim, 7)
        assert checkpoints.metadata(7) == {"config": {"a": [1, None]}, "step": 7, "val_loss": 2.5, "format_version": 1}
    assert_same(restored, values)
    assert all(a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (restored, aim)), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_moves_between_layouts(tmp_path, optimizer):
    want = current = filled(optimizer, FSDP)
    for step, mesh in enumerate((BOTH, SINGLE, FSDP)):
        with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
            checkpoints.save(step, current, metadata={}, val_loss=None)
            checkpoints.wait()
            aim = target(optimizer, mesh)
            with mesh.activate():
                current = checkpoints.restore(aim, step)
        for (name, array), stand_in in zip(
            flatten_by_name(current).items(), flatten_by_name(aim).values(), strict=True
        ):
            assert array.sharding == stand_in.sharding, name
        for array, original in zip(*map(jax.tree.leaves, (current, want)), strict=True):
            np.testing.assert_array_equal(np.asarray(array), np.asarray(original))
    sharded = [
        array.sharding.spec for name, array in flatten_by_name(current.optimizer).items() if name.endswith("mlp.up")
    ]
    assert sharded
    assert all("fsdp" in spec for spec in sharded)  # moments are sharded as their weights


def test_a_state_may_be_given_away_once_save_returns(tmp_path):
    """The next step writes into the state's memory while the save is still going on."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        given = filled()
        checkpoints.save(1, given, metadata={}, val_loss=None)
        for _ in range(3):
            given = jax.block_until_ready(overwrite(given))
        checkpoints.wait()
        assert_same(checkpoints.restore(target("adamw", SINGLE), 1), filled())


def test_arrays_lie_under_their_names(tmp_path):
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(3, filled("muon"), metadata={}, val_loss=None)
    lie = {item: set(stored_shapes(tmp_path / "3" / item)) for item in ("model", "optimizer", "counters")}
    assert {"blocks.attention.qkv", "blocks.mlp_norm.scale", "tokens", "norm.bias"} <= lie["model"]
    assert {"muon.inner_state.momentum.blocks.mlp.up", "adam.inner_state.mu.tokens"} <= lie["optimizer"]
    assert lie["counters"] == {"step", "skipped", "consecutive_skips"}


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (CheckpointConfig(keep=2), [3, 6, 7]),
        (CheckpointConfig(keep=1, keep_best=False), [7]),
        (CheckpointConfig(keep=3, keep_best=False), [5, 6, 7]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, config, left):
    """Also when the process is another one half-way, and when losses are absent or not numbers."""
    losses = {1: 3.0, 3: 2.0, 4: float("nan"), 5: 2.5, 6: float("-inf")}
    saved(tmp_path, 1, 2, 3, 4, config=config, losses=losses)
    saved(tmp_path, 5, 6, 7, config=config, losses=losses)
    assert names(tmp_path) == set(map(str, left))


def test_the_best_is_the_one_with_the_lowest_loss_and_survives_a_restart(tmp_path):
    saved(tmp_path, 1, 2, 3, losses={1: 2.0, 2: 1.5, 3: 1.5})
    saved(tmp_path, 4, losses={4: float("nan")})
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        assert (checkpoints.steps, checkpoints.latest, checkpoints.best) == ([1, 2, 3, 4], 4, 2)
    assert find_step(tmp_path, "best") == 2
    assert find_step(tmp_path, "latest") == 4
    assert find_step(tmp_path, "3") == find_step(tmp_path, 3) == 3


def test_a_step_that_does_not_exist_is_answered_with_those_that_do(tmp_path):
    with pytest.raises(UserError, match="no whole checkpoint"):
        find_step(tmp_path / "nowhere", "latest")
    saved(tmp_path, 5, 10)
    for which in (6, "6", "-5", "newest"):
        with pytest.raises(UserError, match="5, 10"):
            find_step(tmp_path, which)
    with pytest.raises(UserError, match="validation loss"):
        find_step(tmp_path, "best")


def test_a_saved_step_stays_as_it_is_and_an_earlier_one_is_refused(tmp_path):
    values = saved(tmp_path, 5)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(5, filled(seed=1), metadata={}, val_loss=None)
        checkpoints.wait()
        assert_same(checkpoints.restore(target("adamw", SINGLE), 5), values)
        with pytest.raises(UserError, match="later than step 4"):
            checkpoints.save(4, values, metadata={}, val_loss=None)


def test_a_save_that_cannot_begin_is_reported_and_can_be_made_again(tmp_path):
    directory = tmp_path / "checkpoints"
    values = saved(directory, 1)
    with CheckpointManager(directory, CheckpointConfig()) as checkpoints:
        directory.rename(tmp_path / "elsewhere")
        directory.write_text("in the way")
        with pytest.raises(UserError, match="could not be written"):
            checkpoints.save(2, values, metadata={}, val_loss=None)
        directory.unlink()
        (tmp_path / "elsewhere").rename(directory)
        checkpoints.save(2, values, metadata={}, val_loss=None)
    assert find_step(directory, "latest") == 2


def save_when_free(checkpoints, step, values, *, tries=100):
    """The threads of a save that failed may still be writing into the directory that the next one clears."""
    for _ in range(tries):
        with suppress(UserError):
            checkpoints.save(step, values, metadata={}, val_loss=None)
            return
        time.sleep(0.1)
    raise AssertionError("the directory was never free")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_in_the_background_is_reported_and_can_be_made_again(tmp_path):
    """As when the disk is full: here files may not grow beyond a megabyte."""
    large = replace(CONFIG, embed_dim=256)
    values = filled(config=large)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointManager(tmp_path, CheckpointConfig(keep=1)) as checkpoints:
        checkpoints.save(1, values, metadata={}, val_loss=None)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        try:
            checkpoints.save(2, values, metadata={}, val_loss=None)
            with pytest.raises(UserError, match="could not be written"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.steps == [1]
        save_when_free(checkpoints, 2, values)
    assert complete_steps(tmp_path) == [2]
    assert_same(restore_model(tmp_path, abstract_model(large), 2), values.model)


def test_another_model_or_optimizer_is_refused_by_name(tmp_path):
    saved(tmp_path, 1)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        with pytest.raises(UserError, match=r"has no muon\.inner_state.*besides adam\.count"):
            checkpoints.restore(target("muon", SINGLE), 1)
        with pytest.raises(UserError, match=r"positions float32\[8, 16\] \(wanted float32\[32, 16\]\)"):
            checkpoints.restore(target("adamw", SINGLE, replace(CONFIG, context_length=32)), 1)
    with pytest.raises(UserError, match=r"has no head float32\[16, 128\]"):
        restore_model(tmp_path, abstract_model(replace(CONFIG, tie_embeddings=False)), 1)
    with pytest.raises(UserError, match=r"besides.*norm\.bias"):
        restore_model(tmp_path, abstract_model(replace(CONFIG, bias=False)), 1)


def test_weights_alone_are_read_without_the_optimizer(tmp_path):
    values = saved(tmp_path, 1)
    for item in ("optimizer", "counters"):
        (tmp_path / "1" / item).rename(tmp_path / item)
    assert_same(restore_model(tmp_path, abstract_model(CONFIG), 1), values.model)
    with FSDP.activate():
        model = restore_model(tmp_path, abstract_model(CONFIG, FSDP), 1)
    assert model.tokens[...].sharding.spec == FSDP.weights("VD")
    np.testing.assert_array_equal(np.asarray(model.tokens[...]), np.asarray(values.model.tokens[...]))


def test_weights_alone_can_be_saved(tmp_path):
    model = filled().model
    save_model(tmp_path / "checkpoints", 0, model, {"from": "elsewhere"})
    step = find_step(tmp_path / "checkpoints", "latest")
    assert_same(restore_model(tmp_path / "checkpoints", abstract_model(CONFIG), step), model)
    with CheckpointManager(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        assert checkpoints.metadata(0)["from"] == "elsewhere"
        with pytest.raises(UserError, match="weights alone"):
            checkpoints.restore(target("adamw", SINGLE), 0)


def test_what_is_not_whole_is_never_chosen(tmp_path):
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "2/commit_success.txt").unlink()
    (tmp_path / "3/metadata/metadata").unlink()
    (tmp_path / "4.orbax-checkpoint-tmp/model").mkdir(parents=True)
    (tmp_path / "0.deleted/model").mkdir(parents=True)
    assert complete_steps(tmp_path) == [1]
    assert find_step(tmp_path, "latest") == 1
    values = saved(tmp_path, 2)  # opening clears the way
    assert names(tmp_path) == {"1", "2", "2.incomplete", "3.incomplete"}
    assert_same(restore_model(tmp_path, abstract_model(CONFIG), 2), values.model)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damaged", ["model/ocdbt.process_0/d/*", "optimizer/d/*", "model/_METADATA", "counters/manifest*"]
)
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, file.stat().st_size // 2)])
def test_a_damaged_checkpoint_names_the_whole_one_before(tmp_path, damaged, damage):
    saved(tmp_path, 10, 20)
    damage(max((tmp_path / "20").glob(damaged), key=lambda file: file.stat().st_size))
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        with pytest.raises(UserError, match=rf"{tmp_path}/20 cannot be read: .*go on from step 10"):
            checkpoints.restore(target("adamw", SINGLE), 20)
        assert int(checkpoints.restore(target("adamw", SINGLE), 10).step) == int(filled().step)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    saved(tmp_path, 1)
    file = tmp_path / "1/metadata/metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        restore_model(tmp_path, abstract_model(CONFIG), 1)


def test_nothing_is_pickled(tmp_path, monkeypatch):
    for function in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.delattr(pickle, function)
    values = saved(tmp_path, 1)
    assert_same(restore_model(tmp_path, abstract_model(CONFIG), 1), values.model)


def test_settings_are_checked_and_say_when_to_save():
    for field in ({"every": 0}, {"keep": 0}):
        with pytest.raises(UserError, match=r"at least 1"):
            CheckpointConfig(**field)
    due = lambda config: [step for step in range(1, 26) if config.should_run(step, steps=25)]
    assert due(CheckpointConfig(every=10)) == [10, 20, 25]
    assert due(CheckpointConfig(every=None)) == [25]


SAVES_UNTIL_KILLED = """
import os, sys
from pathlib import Path
import jax, numpy as np
from gptjax import state
from gptjax.training.checkpoint import Checkpoint, Checkpoints
from gptjax.sharding.mesh import Layout
from gptjax.model.config import GPTConfig
from gptjax.optim import AdamW

def child(directory, width):
    config = GPTConfig(num_layers=2, width=width, num_heads=2, context=8, vocab_size=64, dtype="float32")
    aim = state.abstract(config, AdamW().build(steps=10, mesh=Layout()), mesh=Layout())
    with Checkpoints(directory, Checkpoint(keep=2)) as checkpoints:
        first = checkpoints.latest or 0
        for step in range(first + 1, first + 10_000):
            fill = lambda leaf: jax.device_put(np.full(leaf.shape, step, leaf.dtype), leaf.sharding)
            checkpoints.save(step, jax.tree.map(fill, aim), metadata={}, val_loss=1 + 1 / step)
            print("saved", step, flush=True)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        child(Path(sys.argv[1]), int(sys.argv[2]))
    print("child", pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", 0, flush=True)
"""
"""Forks a child for each line that it reads: starting JAX anew for every kill would take most of the time."""


def kill_repeatedly(directory: Path, times: int, *, width: int, patience: float) -> int:
    """Let a process save without pause and kill it: `times`, going on in the same directory; returns the last step.

    After each kill every step that is there restores whole, and at most the save in flight is lost.
    """
    draw, latest = random.Random(0), 0
    aim = target("adamw", SINGLE, replace(CONFIG, embed_dim=width))
    words = [sys.executable, "-W", "ignore", "-c", SAVES_UNTIL_KILLED, str(directory), str(width)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1
    ) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for _ in range(times):
            print("go", file=nursery.stdin)
            pid = said = 0
            wanted = latest + draw.randrange(1, 4)
            while not pid or said < wanted:
                word, number = nursery.stdout.readline().split()
                pid, said = (int(number), said) if word == "child" else (pid, int(number))
            time.sleep(draw.uniform(0, patience))
            os.kill(pid, signal.SIGKILL)
            while (line := nursery.stdout.readline().split())[0] != "gone":
                said = int(line[1])
            latest = check_after_kill(directory, aim)
            assert latest >= said - 1
        nursery.stdin.close()
    return latest


def check_after_kill(directory: Path, aim: TrainState) -> int:
    """Every step restores whole and nothing else is left behind; returns the latest."""
    with CheckpointManager(directory, CheckpointConfig()) as checkpoints:
        for step in checkpoints.steps:
            for name, array in flatten_by_name(checkpoints.restore(aim, step)).items():
                assert (np.asarray(array) == step).all(), (step, name)
        assert names(directory) == set(map(str, checkpoints.steps))
        return checkpoints.latest or 0


def test_killed_at_any_moment_the_latest_checkpoint_is_whole(tmp_path):
    assert kill_repeatedly(tmp_path, 6, embed_dim=64, patience=0.1) >= 6


@pytest.mark.slow
def test_killed_while_writing_much_the_latest_checkpoint_is_whole(tmp_path):
    assert kill_repeatedly(tmp_path, 20, embed_dim=1024, patience=1.0) >= 20
