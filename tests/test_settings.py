"""A config from a file and a command line, what is printed of it, and JSON there and back."""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from gptjax import settings
from gptjax.core.errors import UserError
from gptjax.core.settings import diff_configs, from_json, load_config, parse, parse_options, to_json


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled decay."""

    learning_rate: float = 6e-4
    """The peak."""
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise UserError(f"AdamW.learning_rate is {self.learning_rate}: use 0 or more.")


@dataclass(frozen=True)
class Muon:
    """Orthogonalised momentum."""

    learning_rate: float = 0.02
    momentum: float = 0.95


@dataclass(frozen=True)
class Shards:
    """Tokens on disk."""

    path: str = "data"


@dataclass(frozen=True)
class Prepared(Shards):
    """Tokens made on first use."""

    source: str = "web"


@dataclass(frozen=True)
class MeshConfig:
    """Where arrays live."""

    preset: Annotated[Literal["data", "fsdp"], tyro.conf.arg(name="")] = "data"
    fsdp: int | None = None


@dataclass(frozen=True)
class EvaluatorFn:
    """An evaluation."""

    every: int = 100


@dataclass(frozen=True)
class Run:
    """A run."""

    name: str = "run"
    """What it is called."""
    steps: int = 10
    resume: bool = True
    data: Shards = field(default_factory=Shards)
    optimizer: AdamW | Muon = field(default_factory=AdamW)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluators: tuple[EvaluatorFn | AdamW, ...] = ()
    windows: tuple[int, ...] | None = None
    names: list[str] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)


CLASSES = (Run, AdamW, Muon, Shards, Prepared, MeshConfig, EvaluatorFn)
IMPORTS = f"from {__name__} import *\nfrom dataclasses import replace\n"


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """A `configs` package with two files, far from the working directory."""
    package = tmp_path / "site" / "configs"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "quickstart.py").write_text(f'"""The smallest run.\n\nMore."""\n{IMPORTS}config = Run("quick")\n')
    (package / "large.py").write_text(
        '"""A larger run."""\nfrom dataclasses import replace\nfrom configs.quickstart import config as base\n'
        'config = replace(base, name="large")\n'
    )
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(settings, "PACKAGES", package.parent)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        del sys.modules[name]


def write(name: str, text: str) -> str:
    """A config file in the working directory."""
    with open(name, "w", encoding="utf-8") as file:
        file.write(IMPORTS + text)
    return name


def run(argv: list[str]) -> tuple[Run, Run, str]:
    return parse(Run, argv, prog="train", description="Train.")


# Files


@pytest.mark.parametrize("spec", ["quickstart", "quickstart.py", "configs/quickstart.py", "configs/quickstart"])
def test_an_installed_config_is_found_from_any_directory(spec):
    assert load_config(spec, Run).name == "quick"


def test_the_working_directory_comes_first(installed):
    write("quickstart.py", "config = Run('mine')")
    assert load_config("quickstart", Run).name == "mine"
    assert load_config(installed / "quickstart.py", Run).name == "quick"


def test_a_config_derives_from_another():
    assert load_config("large", Run) == Run("large")
    write("mine.py", "from configs.large import config as base\nconfig = replace(base, steps=3)")
    assert load_config("mine.py", Run) == Run("large", steps=3)


def test_an_edited_file_is_read_again():
    write("mine.py", "config = Run('first')")
    load_config("mine.py", Run)
    write("mine.py", "config = Run('other')")
    assert load_config("mine.py", Run).name == "other"


def test_a_class_defined_in_the_file_has_its_fields_on_the_command_line():
    write(
        "mine.py",
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Mine(Shards):\n    flavour: 'str' = 'plain'\n"
        "config = Run(data=Mine())",
    )
    config, _, _ = run(["--config=mine.py", "--data.flavour=odd"])
    assert type(config.data).__name__ == "Mine"
    assert to_json(config)["data"] == {"class": "Mine", "path": "data", "flavour": "odd"}


def test_a_missing_file_lists_what_there_is_and_guesses():
    with pytest.raises(UserError, match=r"no config file quikstart .*Did you mean quickstart\?.*large, quickstart"):
        load_config("quikstart", Run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("confg = Run()", r"mine\.py holds no `config`"),
        ("config = AdamW()", r"`config` is a .*AdamW; a .*Run is wanted"),
        ("x = 1\nconfig = Run(stepz=3)", r"mine\.py, line 4: TypeError: .*'stepz'"),
        ("config = Run(", r"mine\.py, line 3: .*'\(' was never closed"),
        ("import nowhere_at_all", r"mine\.py, line 3: ModuleNotFoundError: .*nowhere_at_all"),
        ("config = Run(optimizer=AdamW(-1.0))", r"mine\.py, line 3: AdamW\.learning_rate is -1\.0: use 0 or more"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_by_file_and_line(text, message):
    write("mine.py", text)
    with pytest.raises(UserError, match=message):
        load_config("mine.py", Run)


def test_a_mistake_in_the_base_is_reported_where_it_is(installed):
    (installed / "broken.py").write_text(f"{IMPORTS}\nconfig = Run(oops=1)\n")
    write("mine.py", "from configs.broken import config as base")
    with pytest.raises(UserError, match=r"broken\.py, line 4: TypeError"):
        load_config("mine.py", Run)


# Command line


def test_overrides_replace_fields_of_every_kind():
    write("mine.py", "config = Run(data=Prepared(), optimizer=Muon(), evaluators=(Judge(), AdamW()), windows=(1, 2))")
    words = "--steps=1_000 --no-resume --data.source=books --optimizer.momentum=0.9 --mesh=fsdp --mesh.fsdp=4"
    config, base, spec = run(
        [
            "--config=mine.py",
            *words.split(),
            "--evaluators.0.every=7",
            "--evaluators.1.learning-rate=1",
            "--windows=None",
        ]
    )
    assert spec == "mine.py"
    assert base == Run(data=Prepared(), optimizer=Muon(), evaluators=(EvaluatorFn(), AdamW()), window_pattern=(1, 2))
    assert config == Run(
        steps=1000,
        resume=False,
        data=Prepared(source="books"),
        optimizer=Muon(momentum=0.9),
        mesh=MeshConfig("fsdp", 4),
        evaluators=(EvaluatorFn(7), AdamW(1.0)),
    )


def test_the_config_may_be_a_word_of_its_own_anywhere():
    config, _, spec = run(["--steps=3", "--config", "quickstart"])
    assert (config.name, config.steps, spec) == ("quick", 3, "quickstart")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--optimizer.learning-rat=3", "--optimizer.learning-rate"),
        ("--step=3", "--steps"),
        ("--steps=1e3", "invalid literal for int"),
        ("--mesh=sideways", "fsdp"),
    ],
)
def test_a_wrong_word_exits_with_2_and_says_what_was_meant(capfd, word, said):
    with pytest.raises(SystemExit) as stopped:
        run(["--config=quickstart", word])
    assert stopped.value.code == 2
    assert said in capfd.readouterr().err


def test_a_field_that_its_class_refuses_keeps_its_own_message():
    with pytest.raises(UserError, match=r"^AdamW\.learning_rate is -1\.0: use 0 or more\.$"):
        run(["--config=quickstart", "--optimizer.learning-rate=-1"])


@pytest.mark.parametrize("argv", [[], ["--config"], ["--config="], ["--config=a", "--config=b"]])
def test_exactly_one_config_is_wanted(argv):
    with pytest.raises(UserError, match="config"):
        run(argv)


def test_help_without_a_config_lists_the_installed_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "quickstart  The smallest run." in said
    assert "large       A larger run." in said
    assert "More." not in said


def test_help_with_a_config_shows_its_fields_and_values(capfd):
    with pytest.raises(SystemExit) as stopped:
        run(["--config=quickstart", "--help"])
    said = capfd.readouterr().out
    assert stopped.value.code == 0
    for part in ("What it is called.", "(default: quick)", "--optimizer.learning-rate", "Train."):
        assert part in said


def test_a_small_door_reads_its_arguments():
    @dataclass(frozen=True)
    class Door:
        """Judge a run."""

        run: tyro.conf.Positional[str]
        step: int | None = None

    assert parse_options(Door, ["runs/x", "--step=5"], prog="evaluate") == Door("runs/x", 5)


# Compare and print


def test_differences_name_fields_by_their_path():
    base = Run(evaluators=(EvaluatorFn(), AdamW()), window_pattern=(1, 2))
    config = replace(
        base,
        steps=20,
        optimizer=AdamW(betas=(0.9, 0.99)),
        evaluators=(EvaluatorFn(5), AdamW()),
        window_pattern=(1, 2, 3),
    )
    assert diff_configs(base, base) == []
    assert diff_configs(base, config) == [
        ("steps", 10, 20),
        ("optimizer.betas", (0.9, 0.95), (0.9, 0.99)),
        ("evaluators.0.every", 100, 5),
        ("window_pattern", (1, 2), (1, 2, 3)),
    ]


def test_a_folder_of_that_name_does_not_hide_the_installed_configs(installed):
    Path("configs").mkdir()
    Path("configs/mine.py").write_text(f'{IMPORTS}config = Run("mine")\n')
    assert load_config("quickstart", Run).name == "quick"
    assert load_config("configs/mine.py", Run).name == "mine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("steps='many'", "mine.py: steps is 'many'; wanted int"),
        ("optimizer=3", "mine.py: optimizer is 3; wanted"),
        ("evaluators=(3,)", r"mine.py: evaluators is \(3,\); wanted"),
        ("evaluators=(Judge(every='x'),)", "mine.py: evaluators: every is 'x'; wanted int"),
    ],
)
def test_a_field_of_another_type_is_named(fields, message):
    Path("mine.py").write_text(f"{IMPORTS}config = Run('x', {fields})\n")
    with pytest.raises(UserError, match=message):
        load_config("mine.py", Run)


def test_a_part_that_changed_its_class_or_its_number_is_one_difference():
    base = Run(evaluators=(EvaluatorFn(),))
    assert diff_configs(base, replace(base, optimizer=Muon())) == [("optimizer", AdamW(), Muon())]
    assert diff_configs(base, replace(base, evaluators=())) == [("evaluators", (EvaluatorFn(),), ())]
    assert diff_configs(base, replace(base, data=Prepared())) == [("data", Shards(), Prepared())]
    assert diff_configs(EvaluatorFn(1), replace(EvaluatorFn(1), every=True)) == [("every", 1, True)]


# JSON


ROUND = [
    Run(),
    Run(data=Prepared("p", "s"), optimizer=Muon(), evaluators=(EvaluatorFn(1), AdamW()), window_pattern=(1, 2)),
    Run(window_pattern=(), names=["a", "b"], extra={"x": 1.5}),
]


@pytest.mark.parametrize("config", ROUND)
def test_json_there_and_back(config):
    text = json.dumps(to_json(config), allow_nan=False)
    back = from_json(json.loads(text), CLASSES)
    assert back == config
    assert type(back.optimizer.learning_rate) is float
    assert isinstance(back.names, list)


def test_an_absent_field_takes_its_default():
    assert from_json({"class": "Run", "steps": 4}, CLASSES) == Run(steps=4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"class": "Popen", "args": ["touch", "x"]}, "Popen has the class 'Popen'; known here: .*Run"),
        ({"class": "Run", "data": {"class": "os.system"}}, r"Run\.data has the class 'os\.system'"),
        (
            {"class": "Run", "evaluators": [{"class": "Judge", "evry": 1}]},
            r"Run\.evaluators\.0: Judge has no field 'evry'",
        ),
        ({"class": "Run", "optimizer": {"class": "AdamW", "learning_rate": -1}}, "learning_rate is -1"),
        ({"steps": 4}, "config has the class 'None'"),
    ],
)
def test_json_builds_nothing_that_is_not_listed(data, message):
    with pytest.raises(UserError, match=message):
        from_json(data, CLASSES)


def test_a_field_without_a_default_that_is_absent_is_named():
    @dataclass(frozen=True)
    class Needy:
        path: str

    with pytest.raises(UserError, match=r"Needy cannot be built: .*'path'"):
        from_json({"class": "Needy"}, [Needy])


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, {"class": 1.0}, print])
def test_what_json_cannot_hold_is_refused_by_field(value):
    with pytest.raises(UserError, match=r"^Run\.extra"):
        to_json(replace(Run(), extra=value))
