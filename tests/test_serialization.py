"""Configs as JSON and back: what can be saved, which classes are found again, and what is never run."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Optional, Protocol

import example_configs
import pytest
from example_configs import AdamW, Config, Evaluator, Loss, Mesh, Muon, Optimizer, Shards, Stage, WebShards

import gptjax
from gptjax.cli.config_files import run_file
from gptjax.core.errors import UserError
from gptjax.core.serialization import class_name, describe_hint, find_unimportable, fits, from_json, to_json

MODULES = {"example_configs": example_configs, __name__: sys.modules[__name__]}
LION = """
from dataclasses import dataclass
from example_configs import *
@dataclass(frozen=True)
class Lion:
    beta: float = 0.9
    def __call__(self, step):
        return self.beta

config = Config(optimizer=Lion(0.5))
"""


class PlainProtocol(Protocol):
    """A protocol that isinstance cannot check."""

    def method(self) -> None: ...


@dataclass(frozen=True)
class Hints:
    """Fields whose hints need care."""

    path: str
    optional: Optional[AdamW] = None  # noqa: UP045
    rate: float = 0.0
    either: tuple[int, ...] | tuple[str, str] | None = None
    section: dict[str, float] | AdamW = field(default_factory=dict)
    unchecked: PlainProtocol | None = None
    anything: Any = None
    bare: list = field(default_factory=list)
    function: Callable[[int], float] = AdamW()
    nested: dict[str, tuple[AdamW, ...]] = field(default_factory=dict)
    table: tuple[tuple[int, float], ...] = ()
    kind: Literal["a", "b"] = "a"
    grid: list[list[int]] = field(default_factory=list)
    derived: int = field(init=False, default=3)


def save(value: Any) -> Any:
    """The value as the file holds it."""
    return json.loads(json.dumps(to_json(value), allow_nan=False))


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(data=WebShards("p", "s"), optimizer=Muon(), evaluators=(Loss(1), Loss()), windows=(1, 2)),
        Config(warmup=Muon(), stages=(Stage(1), Stage(2, 8)), windows=(), names=["a", "b"], extra={"x": 1.5}),
        Config(mesh=Mesh("fsdp", 2), warmup=AdamW(betas=(0.5, 0.6))),
        Hints("x"),
        Hints("x", optional=AdamW(), either=("a", "b"), section=AdamW(), bare=[1, "x"], table=((1, 2.0), (3, 4))),
        Hints("x", either=(1, 2, 3), section={"a": 1}, unchecked=Muon(), anything=(AdamW(), {"x": (1,)}), kind="b"),  # pyright: ignore
        Hints("x", function=Muon(), grid=[[1, 2], [3], []], nested={"a": (AdamW(),), "b": ()}),
    ],
)
def test_from_json_restores_what_to_json_wrote(config: Any):
    assert from_json(save(config), type(config), modules=MODULES) == config


def test_to_json_writes_module_and_class():
    saved = save(Config(name="x"))
    assert saved["class"] == "example_configs:Config"
    assert saved["optimizer"] == {"class": "example_configs:AdamW", "learning_rate": 6e-4, "betas": [0.9, 0.95]}


def test_from_json_keeps_an_int_in_a_float_field():
    back = from_json(save(AdamW(1)), AdamW, modules=MODULES)
    assert back == AdamW(1.0)
    assert type(back.learning_rate) is int


def test_from_json_fills_absent_fields_with_defaults():
    assert from_json({"class": "example_configs:Config", "steps": 4}, Config, modules=MODULES) == Config(steps=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 4}, r"^config: Config has no field 'stepz'\. Fields: data, evaluators, "),
        (
            {"evaluators": [{"class": "example_configs:Loss", "evry": 1}]},
            r"config\.evaluators\.0: Loss has no .*'evry'",
        ),
        ({"optimizer": {"class": "example_configs:AdamW", "learning_rate": -1}}, r"^AdamW\.learning_rate is -1: use 0"),
        ({"steps": 4.5}, r"^config\.steps is 4\.5; wanted int\.$"),
        ({"steps": True}, r"^config\.steps is True; wanted int\.$"),
        ({"steps": None}, r"^config\.steps is None; wanted int\.$"),
        ({"data": {"path": "x"}}, r"^config\.data is \{'path': 'x'\}; wanted Shards\.$"),
        ({"mesh": {"class": "example_configs:Mesh", "preset": "x"}}, r"^config\.mesh\.preset is 'x'; wanted Literal\["),
        ({"windows": [1, "x"]}, r"^config\.windows\.1 is 'x'; wanted int\.$"),
        ({"extra": {"x": "y"}}, r"^config\.extra\.x is 'y'; wanted float\.$"),
        ({"names": "ab"}, r"^config\.names is 'ab'; wanted list\[str\]\.$"),
        ({"stages": [{"class": "example_configs:Stage"}]}, r"^config\.stages\.0 cannot be built: .*'begin'"),
        ({"stages": {"class": "example_configs:Stage", "begin": 1}}, r"^config\.stages has the class .*wanted tuple\["),
        ({"warmup": {"class": "example_configs:Loss"}}, r"wanted AdamW \| Muon \| None\.$"),
        (
            {"evaluators": [{"class": "example_configs:Stage", "begin": 1}]},
            r"^config\.evaluators\.0 .*wanted Evaluator",
        ),
    ],
)
def test_from_json_names_the_field_that_does_not_fit(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        from_json({"class": "example_configs:Config"} | changes, Config, modules=MODULES)


@pytest.mark.parametrize("content", [{}, [], 3, None, {"steps": 4}])
def test_from_json_refuses_content_without_a_class(content: Any):
    with pytest.raises(UserError, match=r"^x\.json is .*; wanted Config\.$"):
        from_json(content, Config, modules=MODULES, where="x.json")


@pytest.mark.parametrize("name", ["Config", "example_configs.Config", "", "3"])
def test_from_json_refuses_names_without_a_colon(name: str):
    with pytest.raises(
        UserError, match=r"^config has the class .*an earlier gptjax wrote.*Train the run anew\.$"
    ) as caught:
        from_json({"class": name}, Config, modules=MODULES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1, 2}, {"class": 1.0}, {1: 2.0}, print, AdamW, ["a", object()], b"x"]
)
def test_to_json_names_the_field_that_json_cannot_hold(value: Any):
    with pytest.raises(UserError, match=r"^Config\.extra.* cannot be written to config\.json"):
        to_json(replace(Config(), extra=value))


def test_to_json_names_the_item_of_a_list():
    with pytest.raises(UserError, match=r"^Config\.names\.1 is \{3\} \(builtins:set\)"):
        to_json(Config(names=["a", {3}]))  # pyright: ignore
    with pytest.raises(UserError, match=r"^Config\.evaluators\.0\.every is nan"):
        to_json(Config(evaluators=(Loss(float("nan")),)))  # pyright: ignore


# A user's own classes


def write_lion(directory: Path) -> Path:
    """A config file that defines a class of its own."""
    path = directory / "mine.py"
    path.write_text(LION)
    return path


def test_a_class_of_a_config_file_needs_its_module(tmp_path: Path):
    module = run_file(write_lion(tmp_path))
    saved = save(module.config)
    assert saved["optimizer"] == {"class": "mine:Lion", "beta": 0.5}
    assert from_json(saved, Config, modules={**MODULES, "mine": module}) == module.config
    with pytest.raises(
        UserError, match=r"config\.optimizer has the class 'mine:Lion', which is not part of gptjax.*=mine "
    ):
        from_json(saved, Config, modules=MODULES)


def test_a_class_of_a_trusted_config_needs_no_module(tmp_path: Path):
    config = run_file(write_lion(tmp_path)).config
    assert from_json(save(config), Config, trusted=config) == config
    assert from_json({"class": "example_configs:Config"}, Config, trusted=config) == Config()
    with pytest.raises(UserError, match="'example_configs:Muon', which is not part of gptjax"):
        from_json(save(Config(optimizer=Muon())), Config, trusted=config)


@pytest.mark.parametrize("name", ["mine:Tiger", "mine:config", "mine:Lion.beta", "mine:", "mine:__builtins__"])
def test_a_name_that_a_module_lacks_is_refused(tmp_path: Path, name: str):
    module = run_file(write_lion(tmp_path))
    with pytest.raises(UserError, match="; mine defines no such dataclass"):
        from_json({"class": name}, Optimizer, modules={"mine": module})


def test_a_suggested_import_is_quoted_for_the_shell():
    with pytest.raises(UserError, match=r"--import='x; rm y' or --import=FILE\.py"):
        from_json({"class": "x; rm y:Z"}, Config)


def test_class_name_of_a_script_is_its_file(tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "from gptjax.core.serialization import class_name\nclass Lion: ...\nprint(class_name(Lion))"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=True)
    assert done.stdout == "script:Lion\n"
    assert class_name(int) == "builtins:int"


def test_find_unimportable_names_local_and_nested_classes():
    @dataclass(frozen=True)
    class Local:
        def __call__(self, step: int) -> float:
            return 0.0

    class Outer:
        @dataclass(frozen=True)
        class Inner(Loss):
            pass

    assert find_unimportable(Config(evaluators=(Loss(),))) is None
    reason = find_unimportable(Config(optimizer=Local()))
    assert reason == (
        "Local is defined inside test_find_unimportable_names_local_and_nested_classes. "
        "Define it at the top level of the config file or of a module."
    )
    assert "Inner is defined inside" in str(find_unimportable(Config(evaluators=(Outer.Inner(),))))


# Names inside gptjax


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gptjax.core.errors:UserError", "gptjax.core.errors defines no such dataclass"),
        ("gptjax.core.diff:diff_configs", "gptjax.core.diff defines no such dataclass"),
        ("gptjax.core.diff:dataclasses", "gptjax.core.diff defines no such dataclass"),
        ("gptjax.cli.config_files:sys.modules", "gptjax.cli.config_files defines no such dataclass"),
        ("gptjax:TrainConfig", "gptjax defines no such dataclass"),
        ("gptjax.nothing:X", "gptjax.nothing defines no such dataclass"),
        ("gptjax.core.errors.nothing:X", "gptjax.core.errors.nothing defines no such dataclass"),
        ("gptjax.:X", "gptjax. defines no such dataclass"),
        ("gptjax..core.errors:X", "gptjax..core.errors defines no such dataclass"),
        ("gptjax./tmp/x:X", "gptjax./tmp/x defines no such dataclass"),
        ("gptjax.core.serialization:_Reader", "wanted Optimizer"),
        ("gptjax.cli.command_line:ConfigRequest", "wanted Optimizer"),
        ("gptjaxy:X", "which is not part of gptjax"),
        ("os:system", "which is not part of gptjax"),
        ("subprocess:Popen", "which is not part of gptjax"),
        (":X", "which is not part of gptjax"),
        (3, "an earlier gptjax wrote"),
    ],
)
def test_only_fitting_dataclasses_of_gptjax_are_found(name: Any, message: str):
    with pytest.raises(UserError, match=f"^config has the class .*{message}"):
        from_json({"class": name, "modules": {}, "classes": {}}, Optimizer)


def test_a_dataclass_of_gptjax_needs_no_module():
    name = "gptjax.core.serialization:_Reader"
    assert class_name(type(from_json({"class": name, "modules": {}, "classes": {}}, Any))) == name


def test_a_class_that_gptjax_only_imports_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gptjax.core.diff.AdamW", AdamW, raising=False)
    with pytest.raises(UserError, match=r"gptjax\.core\.diff defines no such dataclass"):
        from_json({"class": "gptjax.core.diff:AdamW"}, Optimizer)


def test_a_class_that_does_not_fit_is_never_built():
    """Its __post_init__ would raise."""
    content = {"class": "example_configs:AdamW", "learning_rate": -1}
    for hint in (Evaluator, Shards, Mesh | None, int, tuple[Optimizer, ...]):
        with pytest.raises(UserError, match="has the class 'example_configs:AdamW'; wanted "):
            from_json(content, hint, modules=MODULES)


@pytest.mark.parametrize("module", ["gptjax./tmp/x", "gptjax.", "gptjax..core", "os", "gptjaxy", ""])
def test_odd_names_never_reach_a_module_finder(monkeypatch: pytest.MonkeyPatch, module: str):
    """A finder might build a path from the name."""
    asked: list[str] = []
    finder = SimpleNamespace(find_spec=lambda name, *_: asked.append(name))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(UserError, match="has the class"):
        from_json({"class": f"{module}:X"}, Any)
    assert asked == []


@pytest.mark.parametrize("name", ["harmful", "harmful.module", "json", "gptjax.harmful", "gptjax.runs.harmful.module"])
def test_reading_runs_no_file_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """The files lie in the working directory, on sys.path and in a run directory inside the package's directory."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n"
    code += "from dataclasses import dataclass\n@dataclass\nclass X: ...\n"
    for folder in (".", "gptjax", "inside/runs"):
        package = tmp_path / folder / "harmful"
        package.mkdir(parents=True)
        for file in (package / "__init__.py", package / "module.py", package.parent / "json.py"):
            file.write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gptjax, "__path__", [*gptjax.__path__, str(tmp_path / "inside")])
    with pytest.raises(UserError, match=r"not part of gptjax|defines no such dataclass"):
        from_json({"class": f"{name}:X"}, Any)
    assert not (tmp_path / "mark").exists()


# Type hints


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (AdamW, "AdamW"),
        (AdamW | None, "AdamW | None"),
        (Optional[AdamW], "Optional[AdamW]"),  # noqa: UP045
        (tuple[Evaluator, ...], "tuple[Evaluator, ...]"),
        (Literal["a", 1], "Literal['a', 1]"),
    ],
)
def test_describe_hint_leaves_out_modules(hint: Any, text: str):
    assert describe_hint(hint) == text


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (True, float, False),
        (1.0, int, False),
        (Loss(), Evaluator, True),
        (AdamW(), Evaluator, False),
        (AdamW(), Evaluator | Optimizer, True),
        (None, AdamW | None, True),
        (WebShards(), Shards, True),
        ((1, "a"), tuple[int, str], True),
        ((1,), tuple[int, str], False),
        ([1], tuple[int, ...], False),
        ([1, "a"], list[int], False),
        ({"a": 1}, dict[str, int], True),
        ({"a": "b"}, dict[str, int], False),
        (3, Any, True),
        (3, PlainProtocol, True),
        (3, Callable[[int], int], True),
    ],
)
def test_fits_checks_values_against_hints(value: Any, hint: Any, expected: bool):
    assert fits(value, hint) is expected
