"""Law: imports go downstairs, every config loads and checks, every module says what it is for, and every door opens."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from gptjax.core.settings import available_configs, load_config
from tiny import door

from gptjax.config import TrainConfig
from gptjax.model.gpt import count_parameters
from gptjax.sharding.mesh import MeshConfig
from gptjax.training import state

ROOT = Path(__file__).parents[2]
MODULES = [path for folder in ("gptjax", "configs", "data_pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_imports_go_downstairs(monkeypatch):
    """The contract stands in pyproject.toml; a file without a floor breaks it too."""
    pytest.importorskip("importlinter", reason="import-linter is in the extra `dev`")
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0, "run lint-imports to see the imports that go upstairs"


@pytest.mark.parametrize("name", available_configs())
def test_every_config_loads_and_can_be_built(name):
    """Model, optimizer and state in the abstract; a vocabulary that the tokenizer decides is taken to be GPT-2's."""
    config = load_config(name, TrainConfig)
    assert config.name == name
    model = replace(config.model, vocab_size=config.model.vocab_size or 50257)
    replace(config, model=model).check_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    optimizer = config.optimizer.build(steps=config.steps, mesh=MeshConfig())
    abstract = state.abstract_state(model, optimizer, mesh=MeshConfig())
    stored = sum(leaf.size for leaf in jax.tree.leaves(abstract.model))
    assert 0 <= stored - count_parameters(model) < 2 * 128 * model.embed_dim


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_module_says_what_it_is_for(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or (ast.get_docstring(tree) or "").strip(), "an empty file or a docstring"


def test_the_package_imports_no_door_and_wakes_no_device():
    """In a process of its own, for in this one everything is awake."""
    program = (
        "import sys, gptjax; from jax._src import xla_bridge; assert not xla_bridge._backends; "
        "assert not {f'gptjax.{door}' for door in ('train', 'evaluate', 'sample', 'convert')} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------- the README

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:.* && )?python -m (\S+) *(.*)$", README, re.M)


def helped(module, words, capsys):
    """What `python -m module words --help` prints; in this process where the module has a `main`."""
    door = importlib.import_module(module)
    if hasattr(door, "main"):
        with pytest.raises(SystemExit) as done:
            door.main([*words, "--help"])
        assert done.value.code == 0
        return capsys.readouterr().out
    command = [sys.executable, "-m", module, *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_the_commands_of_the_readme_are_understood(module, arguments, capsys):
    """Each option is one that the door's own help names; a config that is named is there."""
    words = shlex.split(arguments)
    options = [word.partition("=") for word in words if word.startswith("--")]
    configs = [value for name, _, value in options if name == "--config"]
    assert all((ROOT / value).is_file() for value in configs)
    parts = [word for word in words if not word.startswith("--")]
    exit_on_user_error = helped(module, [*parts, *(f"--config={value}" for value in configs)], capsys)
    for name, _, value in options:
        if name != "--config":
            wanted = f"{{{value}" if name == "--mesh" else name
            assert wanted in exit_on_user_error.replace(",", "{"), f"{module} has no {name}"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_what_the_readme_links_to_is_there(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize(("words", "said"), [([], "quickstart"), (["--config=smoke"], "--optimizer.momentum")])
def test_the_door_explains_itself(words, said):
    process = door("train", *words, "--help")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert said in output
    assert "Traceback" not in output
