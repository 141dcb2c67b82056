"""Fields of a config and options of an entry point are flags."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import example_configs
import pytest
import tyro
from example_configs import AdamW, Config, Loss, Mesh, Muon, Stage, WebShards, install_configs, write_config

from gptjax.cli.command_line import ConfigRequest, Imports, list_resume_words, parse_config, parse_options
from gptjax.core.errors import UserError
from gptjax.core.serialization import from_json, to_json


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install_configs(tmp_path / "site", monkeypatch)
    monkeypatch.chdir(tmp_path)


def parse(*argv: str) -> ConfigRequest[Config]:
    return parse_config(Config, argv, prog="train", description="Train.")


def test_flags_replace_fields_of_every_kind():
    write_config(
        "mine.py",
        "config = Config(data=WebShards(), optimizer=Muon(), warmup=AdamW(), evaluators=(Loss(), Loss()),"
        " stages=(Stage(5),), windows=(1, 2))",
    )
    flags = (
        "--steps=1_000 --no-resume --data.source=books --optimizer.momentum=0.9 --warmup.betas 0.8 0.9 --mesh=fsdp"
        " --mesh.fsdp=4 --evaluators.1.every=7 --stages.0.batch-size=3 --windows=None --names a b --extra x 1.5"
    )
    request = parse("--config=mine.py", *flags.split())
    assert request.path == Path("mine.py").resolve()
    assert {"steps", "resume", "data.source", "warmup.betas", "stages.0.batch_size"} <= set(request.explicit_fields)
    assert request.base == Config(
        data=WebShards(),
        optimizer=Muon(),
        warmup=AdamW(),
        evaluators=(Loss(), Loss()),
        stages=(Stage(5),),
        windows=(1, 2),
    )
    assert request.config == Config(
        steps=1000,
        resume=False,
        data=WebShards(source="books"),
        optimizer=Muon(momentum=0.9),
        warmup=AdamW(betas=(0.8, 0.9)),
        mesh=Mesh("fsdp", 4),
        evaluators=(Loss(), Loss(7)),
        stages=(Stage(5, 3),),
        names=["a", "b"],
        extra={"x": 1.5},
    )


def test_flags_reach_fields_of_the_users_own_class():
    write_config(
        "mine.py",
        "@dataclass(frozen=True)\nclass Lion:\n    beta: 'float' = 0.9\n"
        "    def __call__(self, step):\n        return self.beta\nconfig = Config(optimizer=Lion())",
    )
    request = parse("--config=mine.py", "--optimizer.beta=0.5")
    saved = to_json(request.config)
    assert saved["optimizer"] == {"class": "mine:Lion", "beta": 0.5}
    assert from_json(saved, Config, modules={"example_configs": example_configs, **request.modules}) == request.config


def test_import_may_be_given_several_times():
    for name in ("first", "second"):
        Path(f"{name}_parts.py").write_text(f"name = {name!r}")
    request = parse("--import=first_parts.py", "--config=quickstart", "--import", "second_parts", "--steps=3")
    assert request.config.steps == 3
    assert list(request.modules) == ["quickstart", "first_parts", "second_parts"]


def test_config_may_be_a_separate_word_anywhere():
    request = parse("--steps=3", "--config", "quickstart")
    assert (request.config.name, request.config.steps, request.path.name) == ("quick", 3, "quickstart.py")
    assert parse("--steps=3", "quickstart").config == request.config, "nanoGPT's order"


@pytest.mark.parametrize(
    "words", ["quickstart --resume=never --steps 9", "--steps 9 --resume never --config quickstart"]
)
@pytest.mark.parametrize("in_file", ["auto", "never"])
def test_words_that_resume_name_the_config_and_no_never(words: str, in_file: Literal["auto", "never"]):
    from gptjax.config import TrainConfig

    request = ConfigRequest(TrainConfig(resume="never"), TrainConfig(resume=in_file), Path(), {}, ())
    found = list_resume_words(words.split(), request)
    assert found == ["--config=quickstart", "--steps", "9", *(["--resume=auto"] if in_file == "never" else [])]
    unchanged = replace(request, config=TrainConfig(resume=10))
    assert list_resume_words(["a.py", "--import=b", "--resume=10"], unchanged) == [
        "--config=a.py",
        "--import=b",
        "--resume=10",
    ]


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--optimizer.learning-rat=3", "Write --optimizer.learning-rate=3."),
        ("--step=3", "Write --steps=3."),
        ("--steps=1.5", "wanted a whole number"),
        ("--mesh=sideways", "wanted data, fsdp"),
    ],
)
def test_an_invalid_flag_is_an_error_with_the_right_one(flag: str, expected: str):
    with pytest.raises(UserError, match=expected):
        parse("--config=quickstart", flag)


def test_a_value_that_its_class_refuses_keeps_the_message():
    with pytest.raises(UserError, match=r"^AdamW\.learning_rate is -1\.0: use 0 or more\.$"):
        parse("--config=quickstart", "--optimizer.learning-rate=-1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"^No config is given\. Give --config=NAME"),
        (["--confg=smoke"], r"^There is no flag '?--confg'?\. Write --config=NAME\.$"),
        (["--config"], "^--config names no file"),
        (["--config="], "^--config names no file"),
        (["--config", "--help"], "^--config names no file"),
        (["--config=a", "--config=b"], r"^--config is given 2 times \(a, b\)"),
        (["--config=quickstart", "--import"], "^--import= is empty; wanted a file or a module"),
    ],
)
def test_exactly_one_config_is_required(argv: list[str], message: str):
    with pytest.raises(UserError, match=message):
        parse(*argv)


def test_help_without_config_lists_installed_configs(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "quickstart  The smallest run." in printed
    assert "large       A larger run." in printed
    assert "--import=MODULE" in printed
    assert "More." not in printed


def test_help_with_config_shows_fields_and_values(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        parse("--config=quickstart", "--help")
    printed = capfd.readouterr().out
    assert stopped.value.code == 0
    for part in (
        "The name of the run.",
        "(default: quick)",
        "--optimizer.learning-rate",
        "Train.",
        "--config=FILE",
        "--import=FILE.py",
    ):
        assert part in printed


@dataclass(frozen=True)
class Options:
    """Evaluate a run."""

    run: tyro.conf.Positional[str]
    step: int | None = None
    imports: Imports = ()


def test_help_ends_no_line_inside_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    @dataclass(frozen=True)
    class Options:
        text: str = ""
        """Two lines of a docstring, of which
        `the second` begins with a mark."""

    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse_options(Options, ["--help"], prog="x")
    assert "docstring, of which `the second` begins with a mark." in capsys.readouterr().out


def test_parse_options_reads_words_and_repeated_imports():
    words = ["runs/x", "--step=5", "--import=one", "--import=./two.py"]
    assert parse_options(Options, words, prog="evaluate") == Options("runs/x", 5, ("one", "./two.py"))
    assert parse_options(Options, ["runs/x"], prog="evaluate") == Options("runs/x")


def test_flag_that_repeats_the_configs_value_counts_as_typed():
    write_config("mine.py", "config = Config(steps=7)")
    request = parse("--config=mine.py", "--steps=7")
    assert request.config == request.base
    assert request.explicit_fields == ("steps",)
