import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import (
    ALPHABET,
    SINGLE,
    door,
    read_lines,
    tiny_config,
    write_config,
    write_shards,
    write_text_shards,
)

from gptjax.core.errors import UserError
from gptjax.data.config import BatchSize, TokenShards
from gptjax.data.shards import write_shard
from gptjax.metrics.logger import LogConfig
from gptjax.optim import AdamW
from gptjax.optim.schedules import Constant
from gptjax.run_dir import RunDir
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Chars
from gptjax.train import create_run_state, main, prepare_config, train
from gptjax.training.checkpoint import CheckpointConfig
from gptjax.training.checkpoint_format import flatten_by_name
from gptjax.training.evaluators import BigramBaseline, Samples, ValidationLoss


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_text_shards(tmp_path_factory.mktemp("train") / "shards")


@pytest.fixture(scope="module")
def finished(shards):
    """A whole run through the door, with every judge; its config and what it printed."""
    config = tiny_config(
        shards,
        name="finished",
        steps=60,
        optimizer=AdamW(learning_rate=0.01, schedule=Constant(warmup_steps=5)),
        evaluators=(BigramBaseline(), ValidationLoss(every=30), Samples(every=60, prompt="1", max_new_tokens=5)),
        log=LogConfig(every=20),
        checkpoint=CheckpointConfig(every=30),
    )
    file = write_config(shards.parent / "finished.py", config)
    return config, file, run_door(f"--config={file}", "--checkpoint.keep=1")


def run_door(*words):
    """The door in this process: (exit code, what it printed)."""
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *parts, sep=" ", **_: printed.append(sep.join(map(str, parts))))
        with pytest.raises(SystemExit) as done:
            main(list(words))
    return done.value.code, "\n".join(printed)


def test_a_run_learns_and_says_what_it_does(finished):
    config, file, (code, printed) = finished
    assert code == 0
    losses = dict(read_lines(config.directory))
    assert list(losses) == list(range(1, 61))
    assert losses[1] == pytest.approx(np.log(len(ALPHABET)), abs=0.2)
    assert losses[60] < losses[1] - 1
    assert dict(read_lines(config.directory, "val_loss")).keys() == {0, 30, 60}
    assert len(read_lines(config.directory, "sample")) == 1
    for words in (
        f"config {file}",
        "checkpoint.keep: 2 → 1",
        "27,520 parameters, 2 layers × 32",
        "tokens in 197 windows",
        "attention xla",
        "60 steps × 128 tokens = 7,680 (2.44 epochs)",
        "631 of 631 next tokens",
        "step 20/60",
        "bits per byte; a bigram has",
        f"train on  python -m gptjax.train --config={file} --checkpoint.keep=1 --steps=120",
    ):
        assert words in printed, words


def test_the_run_directory_holds_what_others_need(finished, shards):
    config, file, _ = finished
    held = {path.name for path in config.directory.iterdir()}
    assert held >= {"config.json", "config.py", "environment.json", "tokenizer.json", "metrics.jsonl", "loss.png"}
    assert (config.directory / "config.py").read_text() == file.read_text()
    assert RunDir.open(config.directory).config == replace(config, checkpoint=replace(config.checkpoint, keep=1))
    assert json.loads((config.directory / "environment.json").read_text())["packages"]["jax"] == jax.__version__
    assert RunDir.open(config.directory).find_step("best") == RunDir.open(config.directory).find_step() == 60


def test_updates_that_stay_undefined_end_the_run(shards):
    """Updates as large as the largest float would leave nothing to compute with."""
    config = tiny_config(
        shards,
        name="undefined",
        steps=50,
        optimizer=AdamW(learning_rate=3e38, schedule=Constant()),
        max_consecutive_skips=4,
        checkpoint=CheckpointConfig(every=2),
    )
    with pytest.raises(UserError) as error:
        train(config)
    message = str(error.value)
    assert "the last 4 updates, up to step 4, were not made: their size" in message
    assert "No checkpoint was saved" in message, "none while updates are skipped: the weights may be what is wrong"
    losses = dict(read_lines(config.directory))
    assert list(losses)[:4] == [1, 2, 3, 4]
    assert all(np.isfinite(loss) for loss in losses.values()), "of weights that stayed as they were"


def test_a_run_may_start_from_anothers_weights_and_a_shorter_context(finished, shards):
    source = finished[0]
    config = tiny_config(shards, name="later", steps=2, init_from=str(source.directory), model={"context_length": 8})
    weights = flatten_by_name(RunDir.open(source.directory).load_model())
    for name, array in flatten_by_name(create_run_state(config, SINGLE).model).items():
        wanted = weights[name][:8] if name == "positions" else weights[name]
        np.testing.assert_array_equal(np.asarray(array), np.asarray(wanted))
    assert train(config) == 0
    assert [step for step, _ in read_lines(config.directory)] == [1, 2]
    assert read_lines(config.directory)[0][1] < 2.5, "it starts where the other ended"


def test_a_start_settles_the_shape_and_leaves_the_rest_to_the_config(finished, shards):
    start = str(finished[0].directory)
    wanted = tiny_config(
        shards,
        init_from=start,
        model={"mlp_dim": 64, "num_layers": 9, "context_length": 99, "dropout": 0.3, "remat": "full"},
    )
    config, _ = prepare_config(wanted)
    assert config.model == replace(
        finished[0].model, dropout=0.3, compute=replace(finished[0].model.compute, remat="full")
    )
    assert create_run_state(config, SINGLE).model.blocks.mlp.config.dropout == 0.3


def test_a_run_keeps_its_tokenizer_and_the_place_of_its_data(finished, shards, tmp_path, monkeypatch, capsys):
    config, *_ = finished
    copy = tmp_path / "copy"
    shutil.copytree(config.directory, copy)
    Chars({char: i for i, char in enumerate(reversed(ALPHABET))}).save(copy)
    with pytest.raises(UserError, match="is not the tokenizer that this run was trained with"):
        RunDir.open(copy).load_model()
    monkeypatch.chdir(shards.parent)
    found = prepare_config(replace(config, data=TokenShards(path=shards.name)))[0]
    assert found.data.path == str(shards)
    prepare_config(tiny_config(shards, name="next", init_from=str(config.directory), model={"embed_dim": 64}))
    assert "model.embed_dim: 64 → 32, as the weights have it" in capsys.readouterr().out
    prepare_config(tiny_config(shards, name="next", init_from=str(config.directory), model={"context_length": 8}))
    assert "model.context_length: 8, where the weights were trained with 16" in capsys.readouterr().out


def test_the_vocabulary_is_the_tokenizers_unless_they_disagree(shards):
    config, own = prepare_config(tiny_config(shards, model={"vocab_size": None}))
    assert config.model.vocab_size == own.vocab_size == len(ALPHABET)
    with pytest.raises(UserError, match=r"model\.vocab_size is 50, .* has 48 tokens\. Give --model\.vocab-size=48"):
        prepare_config(tiny_config(shards, model={"vocab_size": 50}))


def test_foreign_shards_are_understood_through_the_tokenizer_that_is_named(shards, tmp_path):
    """Bits per byte, a sample, and the vocabulary come from it."""
    parts = {split: [TokenShards(path=str(shards)).open_stream(split).read(0, 500)] for split in ("train", "val")}
    foreign = write_shards(tmp_path / "foreign", parts)
    config = tiny_config(
        foreign, steps=1, model={"vocab_size": None}, evaluators=(ValidationLoss(), Samples(prompt="1"))
    )
    with pytest.raises(UserError, match=r"model\.vocab_size is not known"):
        train(config)
    data = TokenShards(path=str(foreign), tokenizer=str(shards / "tokenizer.json"))
    assert train(replace(config, data=data)) == 0
    assert read_lines(config.directory, "val_bpb")
    assert read_lines(config.directory, "sample")
    assert RunDir.open(config.directory).require_tokenizer().vocab_size == len(ALPHABET)
    with pytest.raises(UserError, match=r"data\.tokenizer is 'bytes', but the shards were made with chars-48"):
        prepare_config(tiny_config(shards, data=TokenShards(path=str(shards), tokenizer="bytes")))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_foreign_shard_of_another_vocabulary_is_named_before_a_device_is_touched(tmp_path, split):
    own, other = np.arange(500) % 48, np.arange(500) % 78
    parts = {"train": [own, own], "val": [own]}
    config = tiny_config(write_shards(tmp_path / "own", parts), evaluators=(BigramBaseline(),))
    assert prepare_config(config)[0].model.vocab_size == 48
    parts[split][-1] = other
    config = tiny_config(write_shards(tmp_path / "other", parts), evaluators=(BigramBaseline(),))
    with pytest.raises(UserError, match=rf"token id 77 in .*other/{split}_00000\d\.bin is beyond model\.vocab_size 48"):
        prepare_config(config)


START = """
import sys
from jax._src import xla_bridge
from gptjax import train
try:
    train.main(sys.argv[1:])
finally:
    print("devices:", list(xla_bridge._backends))
"""


def test_an_altered_shard_is_named_before_a_device_is_touched(tmp_path):
    directory = write_text_shards(tmp_path / "shards")
    shard = directory / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    file = write_config(tmp_path / "config.py", tiny_config(directory, output_dir=str(tmp_path / "runs")))
    words = [sys.executable, "-c", START, f"--config={file}"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: {shard}: ")
    assert "config " in found.stdout
    assert "devices: []" in found.stdout


# ------------------------------------------------------------------------------------------------ bad input


@pytest.fixture
def config_file(shards, tmp_path):
    return write_config(tmp_path / "config.py", tiny_config(shards, name="bad", output_dir=str(tmp_path / "runs")))


def broken(shards, tmp_path, break_it):
    """A copy of the shards, without a manifest, whose first file is broken; the option that names it."""
    stream = TokenShards(path=str(shards)).split("train").read(0, 500)
    copy = write_shards(tmp_path / "broken", {"train": [stream], "val": [stream]})
    break_it(copy / "train_000000.bin")
    return f"--data.path={copy}"


def beyond(tmp_path):
    ids = np.arange(500) % 78
    return f"--data.path={write_shards(tmp_path / 'beyond', {'train': [ids], 'val': [ids]})}"


def wrong_magic(path):
    path.write_bytes(b"\0" * 4 + path.read_bytes()[4:])


def other_tokenizer(shards, tmp_path):
    """Shards beside which a tokenizer lies that did not make them."""
    copy = tmp_path / "mixed"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    text = (copy / "tokenizer.json").read_text().replace('"a"', '"A"')
    (copy / "tokenizer.json").write_text(text)
    return f"--data.path={copy}"


BAD = {
    "missing shards": (lambda s, t: "--data.path=/nowhere/at/all", "/nowhere/at/all: no such directory of shards"),
    "missing shards and no vocabulary": (
        lambda s, t: "--data.path=/nowhere/at/all --model.vocab-size=None",
        "/nowhere/at/all: no such directory of shards",
    ),
    "a place that cannot be written to": (lambda s, t: "--output-dir=/proc/here", "error: /proc/here"),
    "a batch that does not divide": (lambda s, t: "--grad_accum=3", "does not divide into grad_accum 3"),
    "a vocabulary that is not the tokenizer's": (lambda s, t: "--model.vocab-size=99", "--model.vocab-size=48"),
    "a context longer than the text": (lambda s, t: "--model.context-length-length=9999", "less than one window"),
    "a kernel that cannot run": (lambda s, t: "--model.compute.attention_impl=cudnn", "not an NVIDIA GPU"),
    "a layout that is too large": (lambda s, t: "--mesh=data --mesh.data=99", "wants 99 devices"),
    "a batch that does not split over devices": (
        lambda s, t: "--mesh=data --mesh.data=3",
        "do not split over 3 devices",
    ),
    "weights that are not there": (lambda s, t: "--init-from=/nowhere", "/nowhere is not a run directory"),
    "a shard cut short": (lambda s, t: broken(s, t, lambda f: os.truncate(f, 1500)), "is cut short"),
    "a file that is no shard": (lambda s, t: broken(s, t, wrong_magic), "not a token shard"),
    "a token beyond the vocabulary": (lambda s, t: beyond(t), "beyond model.vocab_size 48"),
    "another tokenizer": (other_tokenizer, "is not the tokenizer that made the shards"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_in_a_line_or_two(name, shards, tmp_path, config_file, capsys):
    make, words = BAD[name]
    argument = make(shards, tmp_path)
    with pytest.raises(SystemExit) as done:
        main([f"--config={config_file}", *argument.split()])
    error = capsys.readouterr().err
    assert done.value.code == 2, error
    assert error.startswith("error: ")
    assert words in error
    assert len(error) < 500


def test_an_unknown_field_is_answered_with_the_one_that_was_meant(config_file, capsys):
    with pytest.raises(SystemExit) as done:
        main([f"--config={config_file}", "--optimizer.learning-rte=1"])
    printed = capsys.readouterr()
    assert done.value.code == 2
    assert "--optimizer.learning-rate" in printed.err + printed.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config=nowhere.py"], "There is no config file nowhere.py"),
        (["--config={file}", "--model.num-heads=5"], "model.embed_dim 32 does not split over model.num_heads 5"),
    ],
)
def test_the_door_itself_explains_without_a_traceback(words, said, config_file):
    process = door("train", *(word.format(file=config_file) for word in words))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert said in output
    assert "Traceback" not in output
    assert output.count("\n") <= 4


def test_resolved_layouts_must_suit_the_batch(shards):
    config = tiny_config(shards, name="wide", mesh=MeshConfig(), batch=BatchSize(12))
    with pytest.raises(UserError, match=r"12 sequences a group do not split over 8 devices"):
        train(config)
    assert not config.directory.exists(), "nothing is written before the config is known to work"


def test_a_recipe_may_count_the_rows_that_pad_the_vocabulary(shards):
    config = tiny_config(shards, model={"vocab_size": 128})
    assert prepare_config(config)[0].model.vocab_size == 128
    with pytest.raises(UserError, match=r"model\.vocab_size is 127, but the tokenizer of .* has 48 tokens"):
        prepare_config(tiny_config(shards, model={"vocab_size": 127}))


def test_documents_that_nobody_knows_are_missed_before_anything_is_compiled(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for split in ("train", "val"):
        write_shard(folder / f"{split}.bin", np.arange(500, dtype=np.uint16) % 60)
    config = tiny_config(folder, model={"intra_document_mask": True, "vocab_size": 64})
    with pytest.raises(UserError, match="nobody wrote down where its documents begin"):
        prepare_config(config)
