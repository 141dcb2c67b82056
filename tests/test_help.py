"""What `--help` begins with: a few examples that are right, and the flags that one often gives."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.runtime.options import run_command
from gptjax import bench, chat, convert, evaluate, sample, train, verify
from gptjax.benchmark.options import BenchOptions
from gptjax.cli.command_line import parse_known_options, parse_options
from gptjax.cli.config_files import find_config, list_configs
from gptjax.config import load_config
from gptjax.evaluation.training_evaluators import Core, HarnessTasks, TextProtocol
from gptjax.objectives.distillation import Distillation
from gptjax.objectives.preference import IPO, ORPO, SimPO

TYPES = {
    "gptjax.chat": chat.Chat,
    "gptjax.evaluate": evaluate.Evaluate,
    "gptjax.sample": sample.Sample,
    "gptjax.verify": verify.Verify,
    "gptjax.convert to-hf": convert.ToHf,
    "gptjax.convert to-peft": convert.ToPeft,
    "gptjax.convert to-gguf": convert.ToGGUF,
    "gptjax.convert from-hf": convert.FromHf,
    "gptjax.convert from-peft": convert.FromPeft,
}
IMPORTS = tuple(f"gptjax.convert from-{name}" for name in convert.PROGRAMS)
PIPELINES = {
    "prepare": ("prepare", "Prepare"),
    "prepare_chat": ("prepare_chat", "PrepareChat"),
    "prepare_preferences": ("prepare_preferences", "PreparePreferences"),
    "preview": ("preview", "Preview"),
    "verify": ("verify_directory", "VerifyShards"),
    "fetch": ("fetch", "Fetch"),
    "index_shards": ("main", "IndexShards"),
    "train_tokenizer": ("train_tokenizer", "TrainTokenizer"),
    "extend_tokenizer": ("extend_tokenizer", "ExtendTokenizer"),
    "compare_tokenizers": ("main", "CompareTokenizers"),
}


def list_examples(printed: str, command: str) -> list[list[str]]:
    """The words of the example lines that stand before the usage of all flags."""
    beginning = printed.partition(f"usage: python -m {command} [-h]")[0].replace("\\\n", " ")
    start = f"python -m {command} "
    found = [line.partition("  lists them")[0].strip() for line in beginning.splitlines()]
    return [shlex.split(line)[3:] for line in found if line.startswith(start)]


@pytest.mark.parametrize("command", [*TYPES, *IMPORTS])
def test_help_of_a_command_begins_with_examples_that_are_right(command: str, capsys: pytest.CaptureFixture) -> None:
    module, *conversion = command.split()
    with pytest.raises(SystemExit):
        importlib.import_module(module).main([*conversion, "--help"])
    examples = list_examples(capsys.readouterr().out, command)
    assert 2 <= len(examples) <= 3
    for words in examples:
        words = words[len(conversion) :]
        if command in IMPORTS:
            words[0] = f"--model={words[0]}"
        parse_options(TYPES.get(command, convert.FromCheckpoint), words, prog=command)


@pytest.mark.parametrize("name", PIPELINES)
def test_help_of_a_pipeline_begins_with_examples_that_are_right(
    name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, kind = PIPELINES[name]
    module = importlib.import_module(f"data_pipelines.{name}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit):
        run_command(getattr(module, function), getattr(module, kind))
    examples = list_examples(capsys.readouterr().out, f"data_pipelines.{name}")
    assert len(examples) >= (1 if name == "verify" else 2)
    for words in examples:
        parse_options(getattr(module, kind), words, prog=name)


@pytest.mark.parametrize(("module", "entry_point"), [("gptjax.train", train), ("gptjax.bench", bench)])
def test_help_of_configs_begins_with_examples_that_are_right(
    module: str, entry_point, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        entry_point.main(["--help"])
    examples = list_examples(capsys.readouterr().out, module)
    assert len(examples) >= 2
    for words in examples:
        _, [config, *_] = parse_known_options(BenchOptions, words, prog=module)
        assert find_config(config.removeprefix("--config="))


WORDS = {
    "batch size": "batch-size",
    "gradient accumulation": "grad-accum",
    "kv heads": "num-kv-heads",
    "embedding dim": "embed-dim",
    "context length": "context-length",
    "mesh": "mesh",
    "init from": "init-from",
    "ema": "ema",
    "weight decay": "weight-decay",
    "warmup": "warmup",
    "iterations": "steps",
    "learning rate": "learning-rate",
}


def test_words_of_engineers_stand_beside_their_flag(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    first = {word: next(line for line in lines if word in line) for word in WORDS}
    assert {word: flag for word, flag in WORDS.items() if flag not in first[word]} == {}


def iter_fields(config: Any) -> Iterator[tuple[type, str]]:
    """The classes of a config with the names of their fields that are no sections of their own."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        sections = [
            part for part in (value if isinstance(value, tuple) else (value,)) if dataclasses.is_dataclass(part)
        ]
        for section in sections:
            yield from iter_fields(section)
        if not sections:
            yield type(config), field.name


def list_documented(module: str) -> set[tuple[str, str]]:
    """The classes of a module and their fields that have a docstring behind them: tyro shows it."""
    tree = ast.parse(Path(inspect.getfile(sys.modules[module])).read_text(encoding="utf-8"))
    return {
        (node.name, ast.unparse(field.target))
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for field, text in itertools.pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def test_every_flag_of_every_config_has_words() -> None:
    configs = [load_config(name) for name in list_configs()]
    parts = [*configs, TextProtocol(), HarnessTasks(), Core(), IPO(), SimPO(), ORPO(), Distillation()]
    found = {field for part in parts for field in iter_fields(part)}
    options = [(kind, field) for kind in (*TYPES.values(), BenchOptions) for field in dataclasses.fields(kind)]
    found |= {(kind, field.name) for kind, field in options if not dataclasses.is_dataclass(field.default)}
    bases = {kind: [base for base in kind.__mro__ if dataclasses.is_dataclass(base)] for kind, _ in found}
    modules = {base.__module__ for kind in bases for base in bases[kind]}
    documented = {module: list_documented(module) for module in modules}
    missing = [
        f"{kind.__name__}.{name}"
        for kind, name in found
        if not any((base.__name__, name) in documented[base.__module__] for base in bases[kind])
    ]
    assert len(found) > 150
    assert sorted(missing) == []
