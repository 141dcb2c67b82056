"""Config files are found by name or path, run afresh and checked; modules of a user's own classes are imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from example_configs import Config, install_configs, write_config

from gptjax.cli.config_files import import_modules, list_configs, load_config_file, run_file
from gptjax.core.errors import UserError
from gptjax.core.serialization import class_name


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The directory of the installed configs, which is not the working directory."""
    before = {name for name in sys.modules if name.partition(".")[0] != "configs"}
    for name in sys.modules.keys() - before:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = install_configs(tmp_path / "site", monkeypatch)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield package
    for name in sys.modules.keys() - before:
        del sys.modules[name]


def test_list_configs_gives_first_docstring_lines_without_running(installed: Path):
    (installed / "faulty.py").write_text("config = (")
    (installed / "_private.py").write_text("raise SystemExit")
    (installed / "exits.py").write_text('"""Exits."""\nraise SystemExit')
    assert list_configs() == {
        "exits": "Exits.",
        "faulty": "(does not parse)",
        "large": "A larger run.",
        "quickstart": "The smallest run.",
    }


@pytest.mark.parametrize("spec", ["quickstart", "quickstart.py", "configs/quickstart.py", "configs/quickstart"])
def test_load_config_finds_installed_configs_by_name(spec: str):
    assert load_config_file(spec, Config)[0].name == "quick"


def test_load_config_prefers_the_working_directory(installed: Path):
    write_config("quickstart.py", "config = Config('mine')")
    assert load_config_file("quickstart", Config)[0].name == "mine"
    assert load_config_file(installed / "quickstart.py", Config)[0].name == "quick"


def test_a_configs_folder_elsewhere_hides_no_installed_config():
    Path("configs").mkdir()
    write_config("configs/mine.py", "config = Config('mine')")
    assert load_config_file("quickstart", Config)[0].name == "quick"
    assert load_config_file("configs/mine.py", Config)[0].name == "mine"


def test_a_config_may_derive_from_another():
    assert load_config_file("large", Config)[0] == Config("large")
    write_config("mine.py", "from configs.large import config as base\nconfig = replace(base, steps=3)")
    assert load_config_file("mine.py", Config)[0] == Config("large", steps=3)


def test_load_config_reads_an_edited_file_again():
    write_config("mine.py", "config = Config('first')")
    load_config_file("mine.py", Config)
    write_config("mine.py", "config = Config('other')")
    assert load_config_file("mine.py", Config)[0].name == "other"


def test_load_config_file_returns_the_module_with_its_classes():
    write_config("mine.py", "@dataclass(frozen=True)\nclass Lion(AdamW):\n    x: 'int' = 1\nconfig = Config('a')")
    config, module = load_config_file("mine.py", Config)
    assert config == Config("a")
    assert class_name(module.Lion) == "mine:Lion"
    assert module.__file__ == str(Path("mine.py").resolve())


def test_a_missing_config_suggests_one_or_lists_all(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"no config file quikstart .*\)\. Did you mean quickstart\? --help lists all\.$"
    ):
        load_config_file("quikstart", Config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.py").touch()
    with pytest.raises(UserError, match=r"run is a directory\. Did you mean --config=\S*run/config\.py\?$"):
        load_config_file(tmp_path / "run", Config)
    with pytest.raises(UserError, match=r"no config file absent .*Installed configs: .*large, quickstart"):
        load_config_file("absent", Config)


def test_without_installed_configs_a_missing_one_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("gptjax.cli.config_files.PACKAGES", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"No configs are installed\.$"):
        load_config_file("quickstart", Config)


def test_a_config_of_another_program_is_not_run(tmp_path: Path):
    (tmp_path / "train.yaml").write_text("batch_size: print(1)")
    with pytest.raises(UserError, match=r"train\.yaml: a config is a Python file. Choose an installed one"):
        load_config_file(tmp_path / "train.yaml", Config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("confg = Config()", r"mine\.py holds no `config`\. End it with `config = Config\(\.\.\.\)`"),
        ("config = AdamW()", r"`config` is example_configs:AdamW; wanted example_configs:Config"),
        (
            "x = 1\nconfig = Config(stepz=3)",
            r"line 4: Config has no field 'stepz'\. Did you mean steps\?$",
        ),
        ("config = Config(", r"mine\.py, line 3: SyntaxError: '\(' was never closed"),
        ("import nowhere_at_all", r"mine\.py, line 3: ModuleNotFoundError: .*nowhere_at_all"),
        ("config = Config(optimizer=AdamW(-1.0))", r"mine\.py, line 3: AdamW\.learning_rate is -1\.0: use 0 or more"),
    ],
)
def test_a_fault_names_file_and_line(text: str, message: str):
    write_config("mine.py", text)
    with pytest.raises(UserError, match=message):
        load_config_file("mine.py", Config)


def test_a_fault_in_a_base_config_names_the_base(installed: Path):
    write_config(installed / "faulty.py", "\nconfig = Config(oops=1)\n")
    write_config("mine.py", "from configs.faulty import config as base")
    with pytest.raises(UserError, match=r"faulty\.py, line 4: Config has no field 'oops'\. It has name"):
        load_config_file("mine.py", Config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("steps='many'", "mine.py: steps is 'many'; wanted int"),
        ("steps=True", "mine.py: steps is True; wanted int"),
        ("optimizer=3", "mine.py: optimizer is 3; wanted Optimizer"),
        ("warmup=Loss()", r"mine.py: warmup is Loss\(every=100\); wanted AdamW \| Muon \| None"),
        ("windows=(1, 'x')", r"mine.py: windows is \(1, 'x'\); wanted tuple\[int, \.\.\.\] \| None"),
        ("evaluators=(Stage(1),)", "mine.py: evaluators is Stage, which has no method is_due; wanted Evaluator"),
        ("evaluators=(Loss(every='x'),)", "mine.py: evaluators: every is 'x'; wanted int"),
        ("mesh=Mesh('tensor')", r"mine.py: mesh: preset is 'tensor'; wanted Literal\['data', 'fsdp'\]"),
        ("names=[1]", r"mine.py: names is \[1\]; wanted list\[str\]"),
        ("extra={'a': 'b'}", r"mine.py: extra is \{'a': 'b'\}; wanted dict\[str, float\]"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_field(fields: str, message: str):
    write_config("mine.py", f"config = Config('x', {fields})\n")
    with pytest.raises(UserError, match=message):
        load_config_file("mine.py", Config)


MISTAKES = {
    "optimizer=AdamW(schedule=Cosine)": "schedule is the class Cosine; write Cosine(…).",
    "evaluators=(Samples,)": "evaluators is the class Samples; write Samples(…).",
    "model=GPTConfig(n_layer=2)": "GPTConfig has no field 'n_layer'. Did you mean num_layers?",
    "optimizer=AdamW(schedule=Cosine(final_fraction=0.1))": "no field 'final_fraction'. Did you mean min_ratio?",
    "num_workers=4": "TrainConfig has no field 'num_workers'. It has name, ",
    "eval_interval=4": "TrainConfig has no field 'eval_interval'. It has name, ",
    "lr=0.1": "TrainConfig has no field 'lr'. In a config it is optimizer.learning_rate. It has name, ",
    "steps='40'": "mine.py, line 5: TrainConfig: steps is '40'; wanted int.",
    "optimizer=AdamW(schedule='cosine')": "schedule is 'cosine'; wanted Schedule, such as Constant(…) or Cosine(…)",
    "optimizer='adamw'": "optimizer is 'adamw'; wanted Optimizer.",
    "model=GPTConfig(activation=abs)": "or a name that your own file gives: ACTIVATIONS['abs'] = … in the config",
}


def test_mistakes_in_a_config_of_gptjax_are_answered_like_those_in_flags(tmp_path: Path):
    """In a process of its own: here the types of arguments are checked before anything else."""
    script = f"""
from pathlib import Path
from gptjax.config import load_config
from gptjax.core.errors import UserError
for fields in {list(MISTAKES)!r}:
    lines = [
        "from gptjax.config import TrainConfig",
        "from gptjax.model.config import GPTConfig",
        "from gptjax.optim import AdamW, Cosine",
        "from gptjax.evaluators.samples import Samples",
        f"config = TrainConfig(name='mine', {{fields}})",
    ]
    Path("mine.py").write_text("\\n".join(lines), encoding="utf-8")
    try:
        load_config("mine.py")
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    for message, wanted in zip(done.stdout.splitlines(), MISTAKES.values(), strict=True):
        assert wanted in message


def test_import_modules_takes_names_and_paths():
    Path("my_parts.py").write_text("x = 1")
    Path("folder").mkdir()
    Path("folder/more_parts.py").write_text("x = 2")
    modules = import_modules(["my_parts", "folder/more_parts.py", "json"])
    assert {name: getattr(module, "x", None) for name, module in modules.items()} == {
        "my_parts": 1,
        "more_parts": 2,
        "json": None,
    }
    Path("my_parts.py").write_text("x = 3")
    assert import_modules(["./my_parts.py"])["my_parts"].x == 3


def test_a_module_of_the_environment_hides_a_local_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The working directory may be a run of somebody else."""
    for folder in ("site", "work"):
        (tmp_path / folder / "their_parts.py").write_text(f"place = {folder!r}")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert import_modules(["their_parts"])["their_parts"].place == "site"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "gone_parts",
            None,
            "--import=gone_parts cannot be imported: ModuleNotFoundError: No module named 'gone_parts'",
        ),
        ("gone.py", None, r"--import=gone\.py names no file \(looked from .*work\)\."),
        ("", None, "--import= is empty; wanted a file or a module"),
        ("faulty_parts", "x = 1\ny = x.z", r"faulty_parts\.py, line 2: AttributeError: .*'z'"),
        ("unclosed_parts", "(", r"unclosed_parts\.py, line 1: SyntaxError: '\(' was never closed"),
        ("./faulty_parts.py", "x = 1\ny = x.z", r"faulty_parts\.py, line 2: AttributeError: .*'z'"),
    ],
)
def test_a_failed_import_is_one_line(name: str, text: str | None, message: str):
    if text is not None:
        Path(name).with_suffix(".py").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        import_modules([name])
    assert "\n" not in str(caught.value)


def test_an_import_from_another_module_says_where_the_class_is(tmp_path: Path):
    (tmp_path / "mine.py").write_text("from gptjax.data import TokenShards\n")
    with pytest.raises(UserError, match=r"line 1: ImportError: .*\. It is in gptjax\.data\.config$"):
        run_file(tmp_path / "mine.py")
