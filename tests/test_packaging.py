"""What `import gptjax` gives and costs, and that pyproject.toml names what the code imports."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gptjax

ROOT = Path(__file__).parent.parent
PACKAGES = ("gptjax", "configs", "data_pipelines")
DISTRIBUTIONS = {"yaml": "pyyaml", "orbax": "orbax-checkpoint"}
"""Distributions whose name differs from their module's."""


def run_python(code: str, **environment: str) -> str:
    """The output of a new Python."""
    words = [sys.executable, "-c", code]
    return subprocess.run(words, check=True, capture_output=True, text=True, env={"PATH": "", **environment}).stdout


@pytest.mark.parametrize(
    "modules",
    [
        ("gptjax", "gptjax.tokenization.tokenizer", "gptjax.data.shards", "data_pipelines.encode.encoder"),
        tuple(f"data_pipelines.{name}" for name in ("prepare", "prepare_chat", "train_tokenizer", "index_shards")),
    ],
)
def test_tokenising_modules_do_not_import_jax(modules: tuple[str, ...]) -> None:
    """It would take longer than a small preparation, in each of its processes."""
    imported = run_python(f"import sys, {', '.join(modules)}; print(*sys.modules)").split()
    assert set(modules) <= set(imported)
    assert not {"jax", "flax", "optax", "orbax", "grain"} & set(imported)


def test_public_names_start_no_device_and_no_entry_point() -> None:
    code = "import sys, gptjax; [getattr(gptjax, name) for name in gptjax.__all__]; print(*sys.modules)"
    imported = set(run_python(code, JAX_PLATFORMS="none such").split())
    assert not {f"gptjax.{name}" for name in ("train", "evaluate", "sample", "convert")} & imported


def test_public_names_hide_no_module_of_their_name() -> None:
    code = "import gptjax.sample, gptjax; print(*(type(getattr(gptjax, name)).__name__ for name in gptjax.__all__))"
    kinds = dict(zip(gptjax.__all__, run_python(code, JAX_PLATFORMS="cpu").split(), strict=True))
    functions = {"from_hf", "generate", "load_config", "to_hf"}
    assert {name for name, kind in kinds.items() if kind == "function"} == functions
    assert "module" not in kinds.values()


def test_all_lists_the_names_that_can_be_imported() -> None:
    assert sorted(gptjax.__all__) == sorted(gptjax._MODULES)
    assert set(gptjax.__all__) <= set(dir(gptjax))
    with pytest.raises(AttributeError, match="no attribute 'GTP'"):
        gptjax.GTP  # noqa: B018


LATE_MODULES = {"torch_models.py", "modeling_gptjax.py"}
"""Modules that are imported in a process of their own, or copied beside exported weights and imported there."""


def list_imports(path: Path) -> set[tuple[str, bool]]:
    """(third-party module, whether it is imported inside a function) for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name.partition(".")[0], id(node) in inside) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add((node.module.partition(".")[0], id(node) in inside))
    return {(name, lazy) for name, lazy in found if name not in {*sys.stdlib_module_names, *PACKAGES}}


def list_distributions(requirements: list[str]) -> set[str]:
    names = (re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements)
    return {name.lower().replace("_", "-") for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_declared_and_extras_are_imported_late(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = list_distributions(project["dependencies"])
    users = {name: wanted for name, wanted in project["optional-dependencies"].items() if name not in ("dev", "parity")}
    extra = list_distributions([requirement for wanted in users.values() for requirement in wanted])
    for path in (ROOT / package).rglob("*.py"):
        for name, lazy in list_imports(path):
            distribution = DISTRIBUTIONS.get(name, name.lower().replace("_", "-"))
            assert distribution in (plain | extra if lazy or path.name in LATE_MODULES else plain), f"{path}: {name}"


def test_constraints_pin_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        assert re.fullmatch(r"""[A-Za-z0-9._-]+==[^ ;/]+( ; python_version (<|>=) "3\.12")?""", line), line
    for version in ("<", ">="):
        pinned = list_distributions([line for line in lines if ";" not in line or f"{version} " in line])
        assert list_distributions([*project["dependencies"], *project["optional-dependencies"]["dev"]]) <= pinned


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert sorted(listed) == sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
    assert all((folder / "__init__.py").is_file() for folder in folders)


BUILD = """
import sys, zipfile
try:
    from importlib.metadata import version
    assert int(version("setuptools").split(".")[0]) >= 77
except Exception:
    sys.exit("too old")
from setuptools.build_meta import build_editable
site = sys.argv[1]  # setuptools replaces argv
zipfile.ZipFile(f"{site}/{build_editable(site)}").extractall(site)
"""


def test_an_editable_install_works_beside_a_clone_called_gptjax(tmp_path: Path) -> None:
    """The folder must not hide the package: a plain path is found where a finder of setuptools is not asked."""
    clone, site = tmp_path / "gptjax", tmp_path / "site"
    site.mkdir()
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run([sys.executable, "-c", BUILD, str(site)], cwd=clone, capture_output=True, text=True)
    if "too old" in built.stderr:
        pytest.skip("building needs setuptools 77 or newer")
    assert built.returncode == 0, built.stderr
    code = f"import site; site.addsitedir({str(site)!r}); import gptjax; print(gptjax.__file__)"
    alone = "sys.path[:] = ['', *(path for path in sys.path if not os.path.isdir(path + '/gptjax'))]"
    words = [sys.executable, "-P", "-c", f"import os, sys; {alone}; {code}"]  # without the install of who tests
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(clone / "gptjax" / "__init__.py")
