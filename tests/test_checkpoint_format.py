"""Names and versions on disk, and the messages for checkpoints that do not fit."""

import errno
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_states import CONFIG, assert_same, make_abstract_state, make_state, save_steps

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.checkpoints.checkpoint_format import (
    describe_cause,
    find_step,
    read_shapes,
    report_read_errors,
    report_write_errors,
)
from gptjax.checkpoints.weights import restore_model
from gptjax.core.errors import UserError
from gptjax.model.gpt import abstract_model
from gptjax.process import process_end
from gptjax.process.diagnosis import explain_error, is_lost_peer


def test_arrays_are_stored_by_name(tmp_path: Path):
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(3, make_state("muon", has_ema=True), metadata={}, best_value=None)
    names = {item: set(read_shapes(tmp_path / "3" / item)) for item in ("model", "optimizer", "counters", "ema")}
    assert {"blocks.attention.qkv", "blocks.mlp_norm.scale", "token_embedding", "norm.bias"} <= names["model"]
    assert {"muon.inner_state.momentum.blocks.mlp.up", "adam.inner_state.mu.token_embedding"} <= names["optimizer"]
    assert names["counters"] == {"step", "skipped", "consecutive_skips"}
    assert names["ema"] == names["model"]


class Peers:
    """Other processes of the run."""

    def announce_end(self, status: int, message: str) -> None:
        pass

    def wait_for_failure_report(self, seconds: float) -> None:
        pass


@pytest.mark.parametrize("several", [False, True])
def test_lost_process_is_no_damage_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool):
    """Its message, with status 2, would end a run that a scheduler should start again."""
    monkeypatch.setattr(process_end, "_peers", Peers() if several else None)
    said = "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:54452."
    for report in (report_read_errors(tmp_path, 3), report_write_errors(tmp_path)):
        with pytest.raises(ValueError if several else UserError, match="Connection closed by peer") as raised, report:
            raise ValueError(said)
        assert is_lost_peer(raised.value) == several
    assert ("another process of this run has ended" in (explain_error(ValueError(said), alone=not several) or "")) == (
        several
    )


def test_find_step_lists_the_steps_that_exist(tmp_path: Path):
    with pytest.raises(UserError, match="no complete checkpoint"):
        find_step(tmp_path / "nowhere", "latest")
    save_steps(tmp_path, 5, 10)
    for which in (6, "6", "-5", "newest"):
        with pytest.raises(UserError, match="5, 10"):
            find_step(tmp_path, which)
    with pytest.raises(UserError, match=r"^No checkpoint in .* validation loss \(steps: 5, 10\)\. Use `latest`"):
        find_step(tmp_path, "best")
    (tmp_path / "12").mkdir()
    with pytest.raises(UserError, match=r"^No undamaged .* \(steps: 5, 10\)\. Found: .*12.*\. Use `latest`\.$"):
        find_step(tmp_path, "best")
    save_steps(tmp_path, 15, 20, losses={15: 1.0, 20: 2.0})
    assert (find_step(tmp_path, "best"), find_step(tmp_path, "latest")) == (15, 20)
    assert find_step(tmp_path, "5") == find_step(tmp_path, 5) == 5


def test_restore_names_arrays_that_do_not_fit(tmp_path: Path):
    save_steps(tmp_path, 1)
    with CheckpointManager(tmp_path, CheckpointConfig()) as checkpoints:
        with pytest.raises(UserError, match=r"missing: muon\.inner_state.*unexpected: adam\.count"):
            checkpoints.restore(make_abstract_state("muon"), 1)
        with pytest.raises(UserError, match=r"position_embedding float32\[8, 16\] \(wanted float32\[32, 16\]\)"):
            checkpoints.restore(make_abstract_state(config=replace(CONFIG, context_length=32)), 1)
    with pytest.raises(UserError, match=r"missing: head float32\[16, 128\]"):
        restore_model(tmp_path, abstract_model(replace(CONFIG, tie_embeddings=False)), step=1)
    with pytest.raises(UserError, match=r"unexpected: .*norm\.bias"):
        restore_model(tmp_path, abstract_model(replace(CONFIG, bias=False)), step=1)


@pytest.mark.parametrize("version", [3, 5])
def test_other_format_version_is_refused_in_one_line(tmp_path: Path, version: int):
    save_steps(tmp_path, 1)
    file = tmp_path / "1/metadata/metadata"
    content = json.loads(file.read_text()) | {"format_version": version}
    del content["best_value"]  # which format 2 has by another name
    file.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=rf"^\S+/1 has checkpoint format {version}, .* reads format 4 only\. .*again\.$"
    ):
        restore_model(tmp_path, abstract_model(CONFIG), step=1)


def test_checkpoints_need_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for function in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.delattr(pickle, function)
    state = save_steps(tmp_path, 1)
    assert_same(restore_model(tmp_path, abstract_model(CONFIG), step=1), state.model)


def test_cause_of_another_process_is_told_in_its_words():
    own = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert describe_cause(own) == "File too large (ulimit -f unlimited raises the limit)"
    assert describe_cause(OSError(errno.EIO, "File too large (process 1 of 2)")) == "File too large (process 1 of 2)"
