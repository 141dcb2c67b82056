"""The environment of a run: versions, and a git commit only where it describes the source."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax.core.provenance import collect_environment, describe_environment_change, read_git_state


def test_environment_is_json_with_versions():
    environment = collect_environment()
    json.dumps(environment)
    assert environment["packages"]["jax"]
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))


def test_variables_that_change_numbers_are_kept_and_their_change_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    (file := tmp_path / "environment.json").write_text(json.dumps(collect_environment()))
    assert describe_environment_change(file, []) is None
    monkeypatch.delenv("JAX_DEFAULT_PRNG_IMPL")
    monkeypatch.setenv("JAX_THREEFRY_PARTITIONABLE", "0")
    changes = "JAX_DEFAULT_PRNG_IMPL rbg → unset, JAX_THREEFRY_PARTITIONABLE unset → 0"
    assert describe_environment_change(file, []) == changes


def test_git_state_is_of_tracked_files_only(tmp_path: Path):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    tracked, untracked = tmp_path / "a.py", tmp_path / "b.py"
    tracked.write_text("1")
    git("init", "-q")
    git("add", "a.py")
    git("commit", "-q", "-m", "one")
    untracked.write_text("2")
    assert read_git_state(tracked) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    tracked.write_text("3")
    assert read_git_state(tracked) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    assert read_git_state(untracked) is None


def test_environment_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert collect_environment()["git"] is None
