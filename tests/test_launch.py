"""Each script in launch/, run with an interpreter that prints its arguments and environment."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tiny import read_lines

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
LAUNCHERS = [path for path in SCRIPTS if path.name != "chat_cpu.sh"]
"""Those that train once, with the arguments that they are given."""
ARGUMENTS = ["--config=configs/quickstart.py", "--name=two words", "--steps=2", "*"]
Launch = Callable[..., tuple[list[str], dict[str, str]]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Runs a script; returns the arguments and the environment that its interpreter got."""
    python = tmp_path / "python"
    program = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    python.write_text(f"#!{sys.executable} -Ss\n{program}\n")
    python.chmod(0o755)

    def run(name: str, **environment: str) -> tuple[list[str], dict[str, str]]:
        clean = {"PATH": os.environ["PATH"], "HOME": "/home/one", "PYTHON": str(python)}
        command = [LAUNCH / name, *ARGUMENTS]
        done = subprocess.run(
            command, env=clean | environment, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        arguments, seen = json.loads(done.stdout)
        return arguments, seen

    return run


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda path: path.name)
def test_script_passes_arguments_to_train(launch: Launch, script: Path):
    arguments, _ = launch(script.name)
    assert arguments == ["-m", "gptjax.train", *ARGUMENTS]


def test_local_leaves_the_platform_to_jax(launch: Launch):
    _, seen = launch("local.sh")
    assert "JAX_PLATFORMS" not in seen


def test_gpu_node_requires_a_gpu(launch: Launch):
    _, seen = launch("gpu_node.sh")
    assert seen["JAX_PLATFORMS"] == "cuda"
    assert 0.75 < float(seen["XLA_PYTHON_CLIENT_MEM_FRACTION"]) < 1
    assert seen["JAX_OPTIMIZATION_LEVEL"] == "O1"


def test_gpu_node_keeps_variables_that_are_set(launch: Launch):
    mine = {"JAX_PLATFORMS": "cpu", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    _, seen = launch("gpu_node.sh", **mine)
    assert mine.items() <= seen.items()


@pytest.mark.slow
def test_chat_cpu_makes_a_chat_model(tmp_path: Path):
    """All stages, three steps each, on a smaller world."""
    (tmp_path / "configs").symlink_to(LAUNCH.parent / "configs")
    paths = os.pathsep.join([str(LAUNCH.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": paths}
    run = partial(subprocess.run, cwd=tmp_path, check=True, env=environment)
    sizes = ("--people=40", "--words=20", "--copies=8")
    run([sys.executable, "-m", "data_pipelines.small_world", "--output=data/small_world", *sizes])
    run(["bash", LAUNCH / "chat_cpu.sh", "--steps=3"])
    for stage, metric in (("chat_cpu", "val_bpb"), ("chat_cpu_sft", "exact_match"), ("chat_cpu_dpo", "exact_match")):
        directory = tmp_path / "runs" / stage
        assert [step for step, _ in read_lines(directory, metric)] == [0, 3]
        [(_, before), (_, after)] = read_lines(directory, "val_loss")
        assert after < before
        assert (directory / "loss.png").is_file()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_launch_scripts_pass_shellcheck():
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
