import json
import math

import numpy as np
import pytest
from tiny import (
    ALPHABET,
    read_lines,
    text_of,
    tiny_config,
    tokenizer,
    write_shards,
    write_text_shards,
)

from gptjax.evaluate import Evaluate, evaluate, main
from gptjax.run_dir import RunDir, write_imported_run
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Chars
from gptjax.train import train
from gptjax.training.evaluators import ValidationLoss


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, judged by the loop at its end."""
    shards = write_text_shards(tmp_path_factory.mktemp("evaluate") / "shards")
    config = tiny_config(shards, evaluators=(ValidationLoss(every=5),))
    assert train(config) == 0
    return config


def judged(config, **options):
    return evaluate(Evaluate(str(config.directory), **({"mesh": MeshConfig("single")} | options)))


def failed(capsys, *words):
    with pytest.raises(SystemExit) as done:
        main([*words])
    assert done.value.code == 2
    return capsys.readouterr().err


def test_it_finds_what_the_loop_found(run):
    losses, bits = dict(read_lines(run.directory, "val_loss")), dict(read_lines(run.directory, "val_bpb"))
    found = judged(run)
    assert (found["step"], found["tokens"]) == (10, 631)
    assert found["val_loss"] == pytest.approx(losses[10], abs=1e-6)
    assert found["val_bpb"] == pytest.approx(bits[10], abs=1e-6)
    assert found["protocol"].startswith("631 of 631 next tokens")
    assert judged(run, step="5")["val_loss"] == pytest.approx(losses[5], abs=1e-6)
    assert losses[5] != losses[10]


def test_devices_and_batches_change_nothing(run):
    wanted = judged(run, tokens=300)["val_loss"]
    assert judged(run, tokens=300, batch_size=3)["val_loss"] == pytest.approx(wanted, abs=1e-6)
    assert judged(run, tokens=300, mesh=MeshConfig("fsdp"))["val_loss"] == pytest.approx(wanted, abs=1e-5)


def test_a_text_is_judged_as_the_shards_made_of_it(run, tmp_path):
    text = text_of(140)[-700:]
    (tmp_path / "text.txt").write_text(text)
    shards = write_shards(
        tmp_path / "shards", {"train": [np.arange(9)], "val": [tokenizer().encode(text)]}, own=tokenizer()
    )
    by_text, by_shards = judged(run, text=str(tmp_path / "text.txt")), judged(run, data=str(shards))
    for name in ("val_loss", "val_bpb", "tokens"):
        assert by_text[name] == by_shards[name]
    assert f"next tokens of {tmp_path / 'text.txt'}, in order" in by_text["protocol"]
    assert by_text["tokens"] == 699
    assert by_text["val_bpb"] == pytest.approx(by_text["val_loss"] / math.log(2))


def test_the_training_split_is_judged_when_asked_for(run, tmp_path, capsys):
    shards = write_shards(tmp_path / "shards", {"train": [tokenizer().encode(text_of(9))]}, own=tokenizer())
    assert "no files of the split 'val'" in failed(capsys, f"--checkpoint={run.directory}", f"--data={shards}")
    (tmp_path / "text.txt").write_text(text_of(9))
    wanted = judged(run, text=str(tmp_path / "text.txt"))["val_loss"]
    assert judged(run, data=str(shards), split="train")["val_loss"] == wanted


def test_a_shorter_context_and_another_type_are_other_measurements(run):
    base = judged(run, tokens=200)
    shorter, coarser = judged(run, tokens=200, context_length=4), judged(run, tokens=200, dtype="bfloat16")
    assert "in windows of 4" in shorter["protocol"]
    assert shorter["val_loss"] != base["val_loss"]
    assert 0 < abs(coarser["val_loss"] - base["val_loss"]) < 0.02


def test_the_result_is_printed_and_written(run, tmp_path, capsys):
    file = tmp_path / "result.json"
    main([f"--checkpoint={run.directory}", "--tokens=50", "--mesh=single", f"--json={file}"])
    printed, written = capsys.readouterr().out, json.loads(file.read_text())
    assert written["tokens"] == 50
    assert written["protocol"] in printed
    assert f"step 10: val_loss {written['val_loss']:.4f}" in printed


def test_text_that_cannot_be_read_or_encoded_is_explained(run, tmp_path, capsys):
    checkpoint = f"--checkpoint={run.directory}"
    assert "cannot be read: No such file" in failed(capsys, checkpoint, "--text=/nowhere.txt")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "is not UTF-8" in failed(capsys, checkpoint, f"--text={tmp_path / 'latin'}")
    (tmp_path / "greek").write_text("αβγ")
    assert "is not among the 48 characters" in failed(capsys, checkpoint, f"--text={tmp_path / 'greek'}")
    (tmp_path / "short").write_text("1")
    assert "at least 2 are needed" in failed(capsys, checkpoint, f"--text={tmp_path / 'short'}")


def test_shards_of_another_tokenizer_are_refused(run, tmp_path, capsys):
    other = Chars({char: i for i, char in enumerate(reversed(ALPHABET))})
    shards = write_shards(tmp_path / "shards", {"train": [np.arange(9)], "val": [np.arange(9)]}, own=other)
    assert "made with another tokenizer" in failed(capsys, f"--checkpoint={run.directory}", f"--data={shards}")


def test_altered_shards_are_named(run, tmp_path, capsys):
    shards = write_shards(tmp_path / "shards", {"val": [tokenizer().encode(text_of(9))]}, own=tokenizer())
    content = bytearray((shards / "val_000000.bin").read_bytes())
    content[1030] ^= 1
    (shards / "val_000000.bin").write_bytes(content)
    assert "val_000000.bin: its SHA-256 differs" in failed(
        capsys, f"--checkpoint={run.directory}", f"--data={shards}", "--mesh=single"
    )


def test_an_imported_model_has_no_data_of_its_own(run, tmp_path, capsys):
    write_imported_run(tmp_path / "imported", model=RunDir.open(run.directory).load_model(), tokenizer=tokenizer())
    assert "Give --data or --text" in failed(capsys, f"--checkpoint={tmp_path / 'imported'}", "--mesh=single")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step=7"], "has no step 7. It has: 5, 10"),
        (["--data=a", "--text=b"], "choose one"),
        (["--dtype=float16"], "--dtype is 'float16'"),
        (["--tokens=0"], "--tokens is 0"),
        (["--context=17", "--mesh=single"], "model.context_length 17 is longer"),
    ],
)
def test_bad_arguments_are_named(run, capsys, words, said):
    assert said in failed(capsys, f"--checkpoint={run.directory}", *words)


def test_what_is_no_run_is_named(capsys):
    assert "/nowhere is not a run directory" in failed(capsys, "--checkpoint=/nowhere")
