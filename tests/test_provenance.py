"""A run's surroundings: versions, and a commit only where it says something about the source."""

import json
import os
import subprocess
import sys

from gptjax.core import provenance


def test_environment_names_versions_and_is_json():
    found = provenance.environment()
    json.dumps(found)
    assert found["packages"]["jax"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_commit_is_that_of_the_file_and_knows_of_changes(tmp_path):
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file, stranger = tmp_path / "a.py", tmp_path / "b.py"
    file.write_text("1")
    git("init", "-q")
    git("add", "a.py")
    git("commit", "-q", "-m", "one")
    stranger.write_text("2")
    assert provenance._git_state(file) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    file.write_text("3")
    assert provenance._git_state(file) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    assert provenance._git_state(stranger) is None


def test_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert provenance.environment()["git"] is None
