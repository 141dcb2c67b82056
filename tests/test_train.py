import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config, write_config, write_shards, write_text_shards

import gptjax.train
from gptjax.data.config import TokenShards
from gptjax.runs.run_dir import RunDir
from gptjax.train import main


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("train") / "shards")


@pytest.fixture
def config_file(shards: Path, tmp_path: Path) -> Path:
    config = tiny_config(shards, steps=2, output_dir=str(tmp_path / "runs"))
    return write_config(tmp_path / "config.py", config)


def run_main(*words: str) -> int:
    """The entry point in this process; returns its exit code."""
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return int(done.value.code or 0)


def test_restart_of_one_of_several_processes_leaves_the_others_time_to_end(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(gptjax.train, "run_with_restarts", lambda *_, pause, **__: pauses.append(pause) or 0)
    for address in ("", "node1:12355"):
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        assert run_main(f"--config={config_file}", "--max-restarts=1") == 0
    assert pauses == [5.0, 60.0]


def test_main_prints_changes_and_trains(config_file: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_main(f"--config={config_file}", "--checkpoint.keep=1") == 0
    printed = capsys.readouterr().out
    assert f"config {config_file}\n  checkpoint.keep: 10 → 1\n" in printed
    assert "Last values: loss" in printed
    assert f"train on  python -m gptjax.train --config={config_file} --checkpoint.keep=1 --steps=4" in printed
    run = RunDir.open(config_file.parent / "runs" / "tiny")
    assert run.config.checkpoint.keep == 1
    assert run.find_step() == 2
    assert (run.directory / "config.py").read_text() == config_file.read_text()


def test_main_exits_with_the_code_of_train(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptjax.runs.trainer.train", lambda config, **_: 143)
    assert run_main(f"--config={config_file}") == 143


def copy_with_damage(shards: Path, directory: Path, damage: Callable[[Path], object]) -> str:
    """Foreign shards whose first file is damaged; returns the flag that names them."""
    ids = [TokenShards(path=str(shards)).open_stream("train").read(0, 500)]
    copy = write_shards(directory / "damaged", {"train": ids, "val": ids})
    damage(copy / "train_000000.bin")
    return f"--data.path={copy}"


def write_large_ids(directory: Path) -> str:
    ids = [np.arange(500) % 78]
    return f"--data.path={write_shards(directory / 'large', {'train': ids, 'val': ids})}"


def overwrite_magic(path: Path) -> None:
    path.write_bytes(b"\0" * 4 + path.read_bytes()[4:])


def copy_with_other_tokenizer(shards: Path, directory: Path) -> str:
    copy = directory / "mixed"
    shutil.copytree(shards, copy)
    text = (copy / "tokenizer.json").read_text().replace('"a"', '"A"')
    (copy / "tokenizer.json").write_text(text)
    return f"--data.path={copy}"


INVALID_INPUT: dict[str, tuple[Callable[[Path, Path], str], str]] = {
    "missing shards": (lambda s, t: "--data.path=/nowhere/at/all", "/nowhere/at/all: no such directory of shards"),
    "missing shards and vocabulary": (
        lambda s, t: "--data.path=/nowhere/at/all --model.vocab-size=None",
        "/nowhere/at/all: no such directory of shards",
    ),
    "unwritable directory": (lambda s, t: "--output-dir=/proc/here", "error: /proc/here"),
    "indivisible batch": (lambda s, t: "--grad_accum=3", "does not divide into grad_accum 3"),
    "indivisible heads": (lambda s, t: "--model.num-heads=5", "embed_dim 32 does not split over model.num_heads 5"),
    "other vocabulary": (lambda s, t: "--model.vocab-size=99", "--model.vocab-size=48"),
    "text shorter than a row": (lambda s, t: "--model.context-length=9999", "less than one"),
    "unavailable kernel": (lambda s, t: "--model.compute.attention_impl=cudnn", "not an NVIDIA GPU"),
    "mesh too large": (lambda s, t: "--mesh=data --mesh.data=99", "needs 99 devices"),
    "batch not split over devices": (lambda s, t: "--mesh=data --mesh.data=3", "do not split over 3 devices"),
    "missing weights": (lambda s, t: "--init-from=/nowhere", "/nowhere is not there. Give a run"),
    "truncated shard": (lambda s, t: copy_with_damage(s, t, lambda f: os.truncate(f, 1500)), "is cut short"),
    "no shard": (lambda s, t: copy_with_damage(s, t, overwrite_magic), "not a token shard"),
    "token beyond the vocabulary": (lambda s, t: write_large_ids(t), "beyond model.vocab_size 48"),
    "other tokenizer": (copy_with_other_tokenizer, "is not the tokenizer that made the shards"),
    "missing config": (lambda s, t: "--config=nowhere.py", "--config is given 2 times"),
}


@pytest.mark.parametrize("name", INVALID_INPUT)
def test_invalid_input_exits_with_a_short_message(
    name: str, shards: Path, tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture
) -> None:
    make_flags, message = INVALID_INPUT[name]
    code = run_main(f"--config={config_file}", *make_flags(shards, tmp_path).split())
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert message in error
    assert len(error) < 500


def test_unknown_flag_is_answered_with_a_similar_one(config_file: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_main(f"--config={config_file}", "--optimizer.learning-rte=1") == 2
    printed = capsys.readouterr()
    assert "--optimizer.learning-rate" in printed.err + printed.out


def test_missing_config_exits_without_a_traceback(capsys: pytest.CaptureFixture) -> None:
    assert run_main("--config=nowhere.py") == 2
    error = capsys.readouterr().err
    assert "There is no config file nowhere.py" in error
    assert error.count("\n") <= 4


PRINT_DEVICES = """
import sys
from jax._src import xla_bridge
from gptjax import train
try:
    train.main(sys.argv[1:])
finally:
    print("devices:", list(xla_bridge._backends))
"""


def test_altered_shard_is_named_before_devices_start(config_file: Path, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "altered"
    shutil.copytree(shards, copy)
    shard = copy / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    words = [sys.executable, "-c", PRINT_DEVICES, f"--config={config_file}", f"--data.path={copy}"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: {shard}: ")
    assert found.stdout.startswith("config ")
    assert found.stdout.endswith("devices: []\n")


# The words that engineers of other stacks look for, and a flag that each must lead to.
WORDS = {
    "batch size": "--batch-size",
    "gradient accumulation": "--grad-accum",
    "kv heads": "--model.num-kv-heads",
    "embedding dim": "--model.embed-dim",
    "context length": "--model.context-length",
    "mesh": "--mesh",
    "init from": "--init-from",
    "ema": "--ema.decay",
    "weight decay": "--optimizer.weight-decay",
    "warmup": "--optimizer.schedule.warmup-steps",
}


def read_help_entries(text: str) -> dict[str, str]:
    """Each flag of a help page, with its names and its text in lower-case words separated by single spaces."""
    entries: dict[str, str] = {}
    flag = None
    for line in text.splitlines():
        line = line.strip("│| ")  # tyro's boxes have plain lines where the terminal knows no others
        if line.startswith("--"):
            flag, *_ = line.replace(",", " ").split()
            entries[flag] = ""
        elif line[:1] in "╭╰+":  # the edge of a box
            flag = None
        if flag is not None:
            entries[flag] += " " + line
    return {flag: re.sub(r"[\W_]+", " ", entry).lower() for flag, entry in entries.items()}


def test_common_words_find_their_flag_in_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_main("--config=quickstart", "--help") == 0
    entries = read_help_entries(capsys.readouterr().out)
    found = {words: [flag for flag, entry in entries.items() if words in entry] for words in WORDS}
    assert {words: flag for words, flag in WORDS.items() if flag not in found[words]} == {}
