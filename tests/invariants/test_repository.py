"""Layers, configs and documentation: imports go down, every config can be built, and the documents name what exists."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from pipelines import run_pipeline
from tiny import tiny_config, tokenizer

from gptjax.cli.config_files import list_configs
from gptjax.config import load_config
from gptjax.model.gpt import GPT, count_parameters
from gptjax.runs.run_dir import write_imported_run
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.state import abstract_state

ROOT = Path(__file__).parents[2]
MODULES = [path for folder in ("gptjax", "configs", "data_pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:.* && )?python -m (\S+) *(.*)$", README, re.MULTILINE)
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "RESULTS.md"]


def test_imports_go_down_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contracts are in pyproject.toml. A module without a layer breaks them too."""
    pytest.importorskip("importlinter", reason="import-linter is in the extra `dev`")
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0, "run lint-imports to see the imports that go up"


@pytest.mark.parametrize("name", list_configs())
def test_config_loads_and_can_be_built(name: str) -> None:
    """Model, optimizer and state are built in the abstract; an open vocabulary is taken to be GPT-2's."""
    config = load_config(name)
    assert config.name == name
    model = replace(config.model, vocab_size=config.model.vocab_size or 50257)
    replace(config, model=model).check_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    optimizer = config.optimizer.build(steps=config.steps, mesh=MeshConfig())
    state = abstract_state(model, optimizer, mesh=MeshConfig())
    stored = sum(leaf.size for leaf in jax.tree.leaves(state.model))
    assert 0 <= stored - count_parameters(model) < 2 * 128 * model.embed_dim


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or (ast.get_docstring(tree) or "").strip()


def test_every_annotated_array_is_checked(pytestconfig: pytest.Config) -> None:
    """jaxtyping checks the packages that pyproject.toml names: those whose modules annotate the shapes of arrays."""
    annotates = re.compile(r"^(?:from|import) (?:jaxtyping|gptjax\.sharding\.axes)\b", re.MULTILINE)
    parents = (path.parent for path in MODULES if annotates.search(path.read_text(encoding="utf-8")))
    *checked, _ = pytestconfig.getoption("--jaxtyping-packages").split(",")
    assert sorted({".".join(path.relative_to(ROOT).parts) for path in parents}) == checked


def count_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    [first, *_] = function.body
    docstring = ast.get_docstring(function) is not None
    return len(range(function.lineno, (function.end_lineno or 0) + 1)) - docstring * len(
        range(first.lineno, (first.end_lineno or 0) + 1)
    )


def test_files_and_functions_keep_the_limits_of_contributing() -> None:
    """CONTRIBUTING.md gives the limits; the median keeps most functions short."""
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in [*MODULES, *BENCHMARKS]}
    assert {path: size for path, text in texts.items() if (size := len(text.splitlines())) > 350} == {}
    nodes = [(path, node) for path, text in texts.items() for node in ast.walk(ast.parse(text))]
    functions = [(str(path), node.name, count_lines(node)) for path, node in nodes if isinstance(node, ast.FunctionDef)]
    assert [row for row in functions if row[-1] > 45] == []
    sizes = sorted(size for *_, size in functions)
    assert sizes[len(sizes) // 2] <= 8
    assert sizes[len(sizes) * 9 // 10] <= 22


# ------------------------------------------------------------------------------------------------------ documents


def print_help(module: str, words: list[str], capsys: pytest.CaptureFixture) -> str:
    """The text that `python -m module words --help` prints."""
    if module.startswith("data_pipelines."):
        assert run_pipeline(module.removeprefix("data_pipelines."), *words, "--help") == 0
    else:
        with pytest.raises(SystemExit) as done:
            importlib.import_module(module).main([*words, "--help"])
        assert done.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "arguments"), re.findall(r"^(?:.* && )?python -m (\S+) *(.*)$", README, re.MULTILINE)
)
def test_readme_command_is_understood(module: str, arguments: str, capsys: pytest.CaptureFixture) -> None:
    """The entry point's help names each option, and a config that is named exists."""
    words = shlex.split(arguments)
    options = [word.partition("=") for word in words if word.startswith("--")]
    configs = [value for name, _, value in options if name == "--config"]
    assert all((ROOT / value).is_file() for value in configs)
    commands = [word for word in words if not word.startswith("--")]
    text = print_help(module, [*commands, *(f"--config={value}" for value in configs)], capsys).replace(",", "{")
    for name, _, value in options:
        if name != "--config":
            wanted = f"{{{value}" if name == "--mesh" else name
            assert wanted in text, f"{module} has no {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|(?<=src=\")([^\":]+)(?=\")", text))
    missing = [target for pair in targets if (target := "".join(pair)) and not (document.parent / target).exists()]
    assert missing == []
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", text):
        page = document.parent / target if target else document
        assert page.suffix != ".md" or anchor in list_anchors(page), f"{target}#{anchor}"


def list_anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def list_map_files() -> Iterator[str]:
    """The files that the README's map names; a name without a folder is in the folder of the one before it."""
    section = README.partition("## Map of the files")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        folder = Path()
        for name in re.findall(r"`([^`]+)`", row):
            path = Path(name) if "/" in name else folder / name
            folder = path.parent
            yield str(path)


def test_readme_map_names_existing_files_of_every_package() -> None:
    files = list(list_map_files())
    assert len(files) > 50
    assert [file for file in files if not (ROOT / file).is_file()] == []
    packages = {path.parent for root in ("gptjax", "data_pipelines") for path in (ROOT / root).glob("*/__init__.py")}
    assert packages - {(ROOT / file).parents[i] for file in files for i in (0, 1)} == set()


def test_documents_name_existing_tests() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    known = {*re.findall(r"^def (test_\w+)", "\n".join(sources), re.MULTILINE)}
    known |= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    texts = (document.read_text(encoding="utf-8") for document in DOCUMENTS if document.name != "names.md")
    named = {name for text in texts for name in re.findall(r"(?<![\w-])test_\w+(?=\W)", text)}
    assert sorted(named - known) == []


def list_new_names() -> Iterator[str]:
    """The Python names in the column `new` of docs/names.md, such as `model.kernels.select_kernel` and `RunDir`."""
    column = 1
    for line in (ROOT / "docs" / "names.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "new" in cells:
            column = cells.index("new")
        elif line.startswith("| "):
            names = re.findall(r"`([^`]+)`", cells[column])
            yield from (name for name in names if "/" not in name and not re.search(r"\.py$|^-| ", name))


def resolve_name(name: str, words: dict[str, set[str]]) -> bool:
    """Whether the words of a dotted name are in the sources, and the one behind a module is in that module."""
    parts = name.strip(".").split(".")
    for end in range(len(parts), 0, -1):
        for module in (f"{top}.{'.'.join(parts[:end])}" for top in ("gptjax", "data_pipelines")):
            if module in words:
                return end == len(parts) or parts[end] in words[module]
    return all(part in words["everywhere"] for part in parts)


def test_new_names_of_the_names_page_resolve() -> None:
    words: dict[str, set[str]] = {"everywhere": set()}
    for path in MODULES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        words[module] = {*re.findall(r"\w+", path.read_text(encoding="utf-8"))}
        words["everywhere"] |= words[module]
    names = {name for written in list_new_names() for name in re.findall(r"[A-Za-z_][\w.]*", written)}
    assert len(names) > 300
    missing = sorted(name for name in names if not resolve_name(name, words))
    assert missing == [], "docs/names.md names what is no longer there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_prose_keeps_to_120_characters(document: Path) -> None:
    """Tables, commands, links and pictures may be longer."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if len(line) > 120 and not re.match(r"\s*[|!]|\s*\S*\]\(\S*$", line)]
    assert lines == []


def test_python_of_readme_and_models_runs_on_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    config = tiny_config(tmp_path / "shards", model={"context_length": 64}).model
    model = jax.jit(lambda: GPT(config, key=jax.random.key(0)))()
    write_imported_run(tmp_path / "runs" / "quickstart", model=model, tokenizer=tokenizer())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) == len("    def") + 50 + 1
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "models.md", "exec"), {})
    assert capsys.readouterr().out == f"(1, {len(tokenizer().encode('    def'))}, {config.vocab_size})\n"


@pytest.mark.parametrize(("words", "expected"), [([], "quickstart"), (["--config=smoke"], "--optimizer.momentum")])
def test_train_help_names_configs_and_fields(words: list[str], expected: str, capsys: pytest.CaptureFixture) -> None:
    assert expected in print_help("gptjax.train", words, capsys)


def test_readme_can_be_read_at_one_sitting() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 120
