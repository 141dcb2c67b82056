"""A kill at any moment leaves only complete checkpoints, and loses at most the one being written."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_states import CONFIG, list_names, make_abstract_state

from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.training.state import TrainState

SAVE_UNTIL_KILLED = """
import os, sys
from dataclasses import replace
from pathlib import Path
import jax, numpy as np
from checkpoint_states import CONFIG, make_abstract_state
from gptjax.checkpoints.checkpoint import CheckpointConfig, CheckpointManager

def save_forever(directory, embed_dim):
    abstract = make_abstract_state(config=replace(CONFIG, embed_dim=embed_dim))
    with CheckpointManager(directory, CheckpointConfig(keep=2)) as checkpoints:
        checkpoints.clear()
        first = checkpoints.latest or 0
        for step in range(first + 1, first + 10_000):
            fill = lambda leaf: jax.device_put(np.full(leaf.shape, step, leaf.dtype), leaf.sharding)
            checkpoints.save(step, jax.tree.map(fill, abstract), metadata={}, best_value=1 + 1 / step)
            print("saved", step, flush=True)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        save_forever(Path(sys.argv[1]), int(sys.argv[2]))
    print("child", pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", 0, flush=True)
"""
"""Forks a child for each line that it reads, because importing JAX for every kill would take most of the time."""


def kill_repeatedly(directory: Path, kills: int, *, embed_dim: int, max_delay: float) -> int:
    """Let a process save without pause in one directory, kill it and go on; return the last step.

    After each kill, every step restores completely, and at most the save being written is lost.
    """
    draw, latest = random.Random(0), 0
    abstract = make_abstract_state(config=replace(CONFIG, embed_dim=embed_dim))
    command = [sys.executable, "-W", "ignore", "-c", SAVE_UNTIL_KILLED, str(directory), str(embed_dim)]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(kills):
            print("start", file=parent.stdin)
            pid = saved = 0
            wanted = latest + draw.randrange(1, 4)
            while not pid or saved < wanted:
                word, number = parent.stdout.readline().split()
                pid, saved = (int(number), saved) if word == "child" else (pid, int(number))
            time.sleep(draw.uniform(0, max_delay))
            os.kill(pid, signal.SIGKILL)
            while (line := parent.stdout.readline().split())[0] != "ended":
                saved = int(line[1])
            latest = check_directory(directory, abstract)
            assert latest >= saved - 1
        parent.stdin.close()
    return latest


def check_directory(directory: Path, abstract: TrainState) -> int:
    """Assert that every step restores completely and that nothing else is left; return the latest step."""
    with CheckpointManager(directory, CheckpointConfig()) as checkpoints:
        checkpoints.clear()
        for step in checkpoints.steps:
            for name, array in flatten_by_name(checkpoints.restore(abstract, step)).items():
                assert (np.asarray(array) == step).all(), (step, name)
        assert list_names(directory) == set(map(str, checkpoints.steps))
        return checkpoints.latest or 0


def test_kill_during_small_saves_leaves_complete_checkpoints(tmp_path: Path):
    assert kill_repeatedly(tmp_path, 6, embed_dim=64, max_delay=0.1) >= 6


@pytest.mark.slow
def test_kill_during_large_saves_leaves_complete_checkpoints(tmp_path: Path):
    assert kill_repeatedly(tmp_path, 20, embed_dim=512, max_delay=0.3) >= 20
