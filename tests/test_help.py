"""What `--help` begins with: a few examples that are right, and the flags that one often gives."""

import importlib
import shlex
import sys

import pytest

from data_pipelines.runtime.options import run_command
from gptjax import bench, chat, convert, evaluate, sample, train, verify
from gptjax.benchmark.options import BenchOptions
from gptjax.core.command_line import parse_known_options, parse_options
from gptjax.core.config_files import find_config

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
    "verify": ("verify_directory", "Verify"),
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


@pytest.mark.parametrize(
    "word",
    [
        *("batch size", "gradient accumulation", "kv heads", "embedding dim", "context length", "mesh", "init from"),
        *("ema", "weight decay", "warmup", "iterations", "learning rate"),
    ],
)
def test_words_of_engineers_stand_beside_their_flag(word: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    [line, *_] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --") and word in line]
    flag = {"iterations": "steps", "init from": "init-from", "kv heads": "num-kv-heads"}.get(
        word, word.replace(" ", "-")
    )
    assert flag.replace("embedding-", "embed-").replace("gradient-accumulation", "grad-accum") in line
