"""A saved state comes back bit for bit, on any mesh, whether saves succeed or fail."""

import errno
import resource
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from checkpoint_states import (
    CONFIG,
    FSDP,
    FSDP_TENSOR,
    SINGLE,
    assert_same,
    list_names,
    make_abstract_state,
    make_state,
    save_steps,
)
from jax.sharding import NamedSharding

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.checkpoints.checkpoint_format import EMA_ITEM, find_step, flatten_by_name
from gptjax.checkpoints.integrity import complete_steps
from gptjax.checkpoints.joint_save import JointCheckpointer
from gptjax.checkpoints.weights import restore_model, save_model
from gptjax.core.errors import UserError
from gptjax.model.gpt import abstract_model
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import TrainState

# Saving and restoring


@pytest.mark.parametrize(
    ("optimizer", "mesh", "has_ema"), [("adamw", SINGLE, True), ("adamw", FSDP_TENSOR, False), ("muon", FSDP, True)]
)
def test_restored_state_is_the_same_to_the_bit(tmp_path: Path, optimizer: str, mesh: MeshConfig, has_ema: bool):
    state = make_state(optimizer, mesh, has_ema=has_ema)
    abstract = make_abstract_state(optimizer, mesh, has_ema=has_ema)
    with mesh.activate(), CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(7, state, metadata={"config": {"a": [1, None]}}, best_value=2.5)
        checkpoints.wait()
        restored = checkpoints.restore(abstract, 7)
        metadata = checkpoints.read_metadata(7)
        assert checkpoints.has_ema_item(7) == has_ema
    assert_same(restored, state)
    assert all(a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (restored, abstract)), strict=True))
    own = {"step": 7, "best_value": 2.5, "format_version": 4, "checksums": True}
    assert metadata == {"config": {"a": [1, None]}, **own}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_moves_between_meshes(tmp_path: Path, optimizer: str):
    wanted = state = make_state(optimizer, FSDP)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        for step, mesh in enumerate((FSDP_TENSOR, SINGLE, FSDP)):
            checkpoints.save(step, state, metadata={}, best_value=None)
            checkpoints.wait()
            abstract = make_abstract_state(optimizer, mesh)
            with mesh.activate():
                state = checkpoints.restore(abstract, step)
            for (name, array), leaf in zip(
                flatten_by_name(state).items(), flatten_by_name(abstract).values(), strict=True
            ):
                assert array.sharding == leaf.sharding, name
            for array, original in zip(*map(jax.tree.leaves, (state, wanted)), strict=True):
                np.testing.assert_array_equal(np.asarray(array), np.asarray(original))
    moments = [array for name, array in flatten_by_name(state.optimizer).items() if name.endswith("mlp.up")]
    assert moments
    assert all("fsdp" in array.sharding.spec for array in moments)  # as their weights


def test_state_may_be_donated_once_save_returns(tmp_path: Path):
    """The next step writes into the state's memory while the save is still going on."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        state = make_state()
        checkpoints.save(1, state, metadata={}, best_value=None)
        for _ in range(3):
            state = jax.block_until_ready(overwrite(state))
        checkpoints.wait()
        assert_same(checkpoints.restore(make_abstract_state(), 1), make_state())


def test_weights_are_restored_without_the_optimizer(tmp_path: Path):
    state = make_state(has_ema=True)
    assert state.ema is not None
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state, metadata={}, best_value=None)
    for item in ("optimizer", "counters"):
        (tmp_path / "1" / item).rename(tmp_path / item)
    assert_same(restore_model(tmp_path, abstract_model(CONFIG), step=1), state.model)
    assert_same(restore_model(tmp_path, abstract_model(CONFIG), step=1, item=EMA_ITEM), state.ema)
    with FSDP.activate():
        model = restore_model(tmp_path, abstract_model(CONFIG, FSDP), step=1)
    sharding = model.token_embedding[...].sharding
    assert isinstance(sharding, NamedSharding)
    assert sharding.spec == FSDP.weight_spec("VD")
    np.testing.assert_array_equal(np.asarray(model.token_embedding[...]), np.asarray(state.model.token_embedding[...]))


def test_saved_model_restores_as_weights_only(tmp_path: Path):
    model = make_state().model
    save_model(tmp_path, model, step=0, metadata={"from": "elsewhere"})
    assert_same(restore_model(tmp_path, abstract_model(CONFIG), step=find_step(tmp_path, "latest")), model)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.read_metadata(0)["from"] == "elsewhere"
        with pytest.raises(UserError, match="weights alone"):
            checkpoints.restore(make_abstract_state(), 0)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (ValueError("UNAVAILABLE: ... [os_error_code='28']"), OSError, "No space left on device"),
        (ValueError('NOT_FOUND: Error writing "a/c/0" in OCDBT database at local file "x"'), OSError, "No such file"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), OSError, "Disk quota exceeded"),
        (ValueError("an array of no shape"), ValueError, "an array of no shape"),
    ],
)
def test_model_that_cannot_be_saved_for_a_bug_is_not_blamed_on_the_disk(
    error: Exception, raised: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(JointCheckpointer, "save", Mock(side_effect=error))
    with pytest.raises(raised, match=said):
        save_model(tmp_path, make_state().model, step=0, metadata={})


# Which checkpoints there are


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (CheckpointConfig(keep=2), {"3", "6", "7"}),
        (CheckpointConfig(keep=1, keep_best=False), {"7"}),
        (CheckpointConfig(keep=1, keep_best=False, keep_every=2), {"2", "4", "6", "7"}),
    ],
)
def test_prune_keeps_the_newest_and_the_best(tmp_path: Path, config: CheckpointConfig, left: set[str]):
    """Also across processes, and if losses are missing or not finite."""
    losses = {1: 3.0, 3: 2.0, 4: float("nan"), 5: 2.5, 6: float("-inf")}
    save_steps(tmp_path, 1, 2, 3, 4, config=config, losses=losses)
    save_steps(tmp_path, 5, 6, 7, config=config, losses=losses)
    assert list_names(tmp_path) == left


def test_best_has_the_lowest_finite_loss(tmp_path: Path):
    save_steps(tmp_path, 1, 2, 3, losses={1: 2.0, 2: 1.5, 3: 1.5})
    save_steps(tmp_path, 4, losses={4: float("nan")})
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        assert (checkpoints.steps, checkpoints.latest, checkpoints.best) == ([1, 2, 3, 4], 4, 2)


def test_saved_step_is_kept_and_an_earlier_one_refused(tmp_path: Path):
    state = save_steps(tmp_path, 5)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(5, make_state(seed=1), metadata={}, best_value=None)
        checkpoints.wait()
        assert_same(checkpoints.restore(make_abstract_state(), 5), state)
        with pytest.raises(UserError, match="later than step 4"):
            checkpoints.save(4, state, metadata={}, best_value=None)


def test_incomplete_steps_are_ignored_and_cleared(tmp_path: Path):
    save_steps(tmp_path, 1, 2, 3)
    (tmp_path / "2/checksums.json").unlink()
    (tmp_path / "3/metadata/metadata").unlink()
    for rest in ("4.orbax-checkpoint-tmp", "4.unfinished", "0.deleted"):
        (tmp_path / rest / "model").mkdir(parents=True)
    assert complete_steps(tmp_path) == [1]
    assert find_step(tmp_path, "latest") == 1
    state = save_steps(tmp_path, 2)
    assert list_names(tmp_path) == {"1", "2", "2.incomplete", "3.incomplete"}
    assert_same(restore_model(tmp_path, abstract_model(CONFIG), step=2), state.model)


def test_config_decides_when_to_save():
    for field in ({"every": 0}, {"keep": 0}, {"keep_every": 0}):
        with pytest.raises(UserError, match=r"at least 1"):
            replace(CheckpointConfig(), **field)
    due_steps = lambda config: [step for step in range(1, 26) if config.should_save(step, steps=25)]
    assert due_steps(CheckpointConfig(every=10)) == [10, 20, 25]
    assert due_steps(CheckpointConfig(every=None)) == [25]
    assert due_steps(CheckpointConfig(every=10, keep_every=15)) == [10, 15, 20, 25]


# Saves that fail


def test_save_that_cannot_start_can_be_repeated(tmp_path: Path):
    directory = tmp_path / "checkpoints"
    state = save_steps(directory, 1)
    with CheckpointManager(directory, CheckpointConfig()) as checkpoints:
        directory.rename(tmp_path / "elsewhere")
        directory.write_text("in the way")
        with pytest.raises(UserError, match="could not be written"):
            checkpoints.save(2, state, metadata={}, best_value=None)
        directory.unlink()
        (tmp_path / "elsewhere").rename(directory)
        checkpoints.save(2, state, metadata={}, best_value=None)
    assert find_step(directory, "latest") == 2


def save_when_possible(checkpoints: CheckpointManager, step: int, state: TrainState, *, attempts: int = 3000) -> None:
    """Threads of a failed save may still be writing into the directory that the next save clears."""
    for _ in range(attempts):
        with suppress(UserError):
            checkpoints.save(step, state, metadata={}, best_value=None)
            return
        time.sleep(0.1)
    raise AssertionError("the directory was never free")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_save_that_fails_in_background_can_be_repeated(tmp_path: Path):
    """As on a full disk: files may not grow beyond a megabyte."""
    large = replace(CONFIG, embed_dim=256)
    state = make_state(config=large)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointManager(tmp_path, CheckpointConfig(keep=1)) as checkpoints:
        checkpoints.save(1, state, metadata={}, best_value=None)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        try:
            checkpoints.save(2, state, metadata={}, best_value=None)
            with pytest.raises(UserError, match="could not be written"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.steps == [1]
        save_when_possible(checkpoints, 2, state)
    assert complete_steps(tmp_path) == [2]
    assert_same(restore_model(tmp_path, abstract_model(large), step=2), state.model)
