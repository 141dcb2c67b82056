"""Every launcher ends in the same command, passes its words on as they are, and leaves alone what is set."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
WORDS = ["--config=configs/quickstart.py", "--name=two words", "--steps=2", "*"]


@pytest.fixture
def launched(tmp_path):
    """Runs a launcher with a Python that tells what it was given."""
    python = tmp_path / "python"
    tell = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    python.write_text(f"#!{sys.executable} -Ss\n{tell}\n")
    python.chmod(0o755)

    def run(name: str, **environment: str) -> tuple[list[str], dict[str, str]]:
        clean = {"PATH": os.environ["PATH"], "HOME": "/home/one", "PYTHON": str(python)}
        done = subprocess.run(
            [LAUNCH / name, *WORDS], env=clean | environment, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        words, seen = json.loads(done.stdout)
        return words, seen

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_ends_in_the_command_that_one_would_type(launched, script):
    words, _ = launched(script.name)
    assert words == ["-m", "gptjax.train", *WORDS]


def test_one_machine(launched):
    _, seen = launched("local.sh")
    assert seen["JAX_COMPILATION_CACHE_DIR"] == "/home/one/.cache/gptjax/compiled"
    assert "JAX_PLATFORMS" not in seen
    assert "MALLOC_MMAP_MAX_" not in seen
    _, seen = launched("local.sh", GPTJAX_KEEP_MEMORY="1", GPTJAX_CACHE="/fast")
    assert seen["MALLOC_MMAP_MAX_"] == "0"
    assert seen["JAX_COMPILATION_CACHE_DIR"] == "/fast/compiled"


def test_a_node_of_gpus_does_not_fall_back_to_its_cpu(launched):
    _, seen = launched("gpu_node.sh")
    assert seen["JAX_PLATFORMS"] == "cuda"
    assert 0.75 < float(seen["XLA_PYTHON_CLIENT_MEM_FRACTION"]) < 1
    assert seen["JAX_OPTIMIZATION_LEVEL"] == "O1"


def test_what_is_set_is_kept(launched):
    mine = {"JAX_PLATFORMS": "cpu", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", "JAX_COMPILATION_CACHE_DIR": "/mine"}
    _, seen = launched("gpu_node.sh", **mine)
    assert mine.items() <= seen.items()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    subprocess.run(["shellcheck", *SCRIPTS], check=True)
