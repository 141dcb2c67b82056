import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chat_models import PLAIN, write_chat_run
from scored import draw_pairs, write_documents
from tiny import (
    ALPHABET,
    read_lines,
    text_of,
    tiny_config,
    tokenizer,
    write_shards,
    write_text_shards,
)

from gptjax.config import TrainConfig
from gptjax.conversion.exports import has_data_of_checkpoint
from gptjax.core.errors import UserError
from gptjax.core.serialization import to_json
from gptjax.data.config import TokenShards
from gptjax.evaluate import evaluate, main
from gptjax.evaluation import checkpoints
from gptjax.evaluation.checkpoints import find_data
from gptjax.evaluation.comparison import Evaluation, compare
from gptjax.evaluation.figures import DocumentSums, Figure
from gptjax.evaluation.options import Evaluate
from gptjax.evaluation.report import to_result, write_result
from gptjax.evaluation.task_results import TaskResults
from gptjax.evaluation.texts import number_repeats
from gptjax.evaluators.validation import ValidationLoss
from gptjax.runs.run_dir import RunDir, write_imported_run
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Chars


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A trained run, evaluated by the training loop at its end."""
    shards = write_text_shards(tmp_path_factory.mktemp("evaluate") / "shards")
    config = tiny_config(shards, evaluators=(ValidationLoss(every=5),))
    assert train(config) == 0
    return config


def evaluate_run(config: TrainConfig, **options: Any) -> dict[str, Any]:
    return evaluate(replace(Evaluate((str(config.directory),), mesh=MeshConfig("single")), **options))


def read_error(capsys: pytest.CaptureFixture, *words: str) -> str:
    """The message with which this command is refused."""
    with pytest.raises(SystemExit) as done:
        main([*words])
    assert done.value.code == 2
    return capsys.readouterr().err


def test_evaluate_repeats_the_losses_of_training(run: TrainConfig) -> None:
    losses, bits = dict(read_lines(run.directory, "val_loss")), dict(read_lines(run.directory, "val_bpb"))
    found = evaluate_run(run)
    assert (found["step"], found["tokens"]) == (10, 631)
    assert found["val_loss"] == pytest.approx(losses[10], abs=1e-6)
    assert found["val_bpb"] == pytest.approx(bits[10], abs=1e-6)
    assert found["tokens"] == 631
    assert evaluate_run(run, step="5")["val_loss"] == pytest.approx(losses[5], abs=1e-6)
    assert losses[5] != losses[10]


def test_loss_does_not_depend_on_batches_or_mesh(run: TrainConfig) -> None:
    wanted = evaluate_run(run, tokens=300)["val_loss"]
    assert evaluate_run(run, tokens=300, batch_size=3)["val_loss"] == pytest.approx(wanted, abs=1e-6)
    sharded = MeshConfig("fsdp", tensor=2)
    assert evaluate_run(run, tokens=300, mesh=sharded)["val_loss"] == pytest.approx(wanted, abs=1e-5)
    by_windows = evaluate_run(run, tokens=300, protocol="harness")["figures"]["bits_per_byte"]["value"]
    found = evaluate_run(run, tokens=300, protocol="harness", mesh=sharded)["figures"]["bits_per_byte"]["value"]
    assert found == pytest.approx(by_windows, abs=1e-5)


def test_text_has_the_loss_of_its_shards(run: TrainConfig, tmp_path: Path) -> None:
    text = text_of(140)[-700:]
    (tmp_path / "text.txt").write_text(text)
    shards = write_shards(
        tmp_path / "shards", {"train": [np.arange(9)], "val": [tokenizer().encode(text)]}, own=tokenizer()
    )
    by_text, by_shards = evaluate_run(run, text=str(tmp_path / "text.txt")), evaluate_run(run, data=str(shards))
    for name in ("val_loss", "val_bpb", "tokens"):
        assert by_text[name] == by_shards[name]
    assert by_text["protocol"].startswith(f"{tmp_path / 'text.txt'}: gptjax: windows of 16 without overlap")
    assert by_shards["protocol"].startswith(f"{shards} (val): gptjax: ")
    assert evaluate_run(run)["protocol"].startswith(f"{Path(str(run.data.path)).name} (val): ")  # type: ignore[attr-defined]
    assert by_text["tokens"] == 699
    assert by_text["val_bpb"] == pytest.approx(by_text["val_loss"] / math.log(2))


def test_data_that_moved_are_named_with_the_flag(
    run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shards = Path(str(run.data.path))  # type: ignore[attr-defined]
    moved = shards.rename(tmp_path / "moved")
    try:
        said = read_error(capsys, f"--checkpoint={run.directory}")
        assert f"are no longer in {shards}. Give --data=DIR" in said
    finally:
        moved.rename(shards)


def test_training_split_is_evaluated_on_request(
    run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shards = write_shards(tmp_path / "shards", {"train": [tokenizer().encode(text_of(9))]}, own=tokenizer())
    said = read_error(capsys, f"--checkpoint={run.directory}", f"--data={shards}")
    assert "no files of the split 'val'" in said
    assert "evaluate with --text or --split=train" in said
    (tmp_path / "text.txt").write_text(text_of(9))
    wanted = evaluate_run(run, text=str(tmp_path / "text.txt"))["val_loss"]
    assert evaluate_run(run, data=str(shards), split="train")["val_loss"] == wanted


def test_context_length_and_dtype_change_the_loss(run: TrainConfig) -> None:
    base = evaluate_run(run, tokens=200)
    shorter, coarser = evaluate_run(run, tokens=200, context_length=4), evaluate_run(run, tokens=200, dtype="bfloat16")
    assert ": gptjax: windows of 4 " in shorter["protocol"]
    assert shorter["val_loss"] != base["val_loss"]
    assert 0 < abs(coarser["val_loss"] - base["val_loss"]) < 0.02


def test_result_is_printed_and_written(run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "result.json"
    main([f"--checkpoint={run.directory}", "--tokens=150", "--mesh=single", f"--json={file}"])
    printed, written = capsys.readouterr().out, json.loads(file.read_text())
    assert written["tokens"] == 150
    assert written["protocol"] in printed
    assert f": step 10\n{written['protocol']}" in printed
    assert f"| nats_per_token | {written['val_loss']:.4f} [" in printed
    low, high = (written["figures"]["nats_per_token"][end] for end in ("low", "high"))
    assert low < written["val_loss"] < high


def test_data_that_were_prepared_again_are_not_those_of_the_checkpoint(run: TrainConfig, tmp_path: Path) -> None:
    trained = RunDir.open(run.directory)
    assert has_data_of_checkpoint(trained, 10)
    other = to_json(replace(run, data=TokenShards(path=str(write_text_shards(tmp_path / "other", lines=60)))))
    assert not has_data_of_checkpoint(replace(trained, content=trained.content | {"data": other["data"]}), 10)


def test_files_that_could_not_be_written_are_refused_before_scoring(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for flag, message in (
        (f"--json={tmp_path}/none/x.json", "its directory does not exist"),
        (f"--picture={tmp_path}/none/x.png", "its directory does not exist"),
        (f"--responses={tmp_path}", "is a directory"),
        (f"--picture={tmp_path}/x.bmp", "wanted a name that ends in .png, .svg, .pdf"),
    ):
        assert f"error: {flag}: {message}" in read_error(capsys, "--checkpoint=/nowhere", flag)


def test_result_of_a_diverged_run_has_nulls(tmp_path: Path) -> None:
    about = {"val_loss_quantized": math.inf, "step": 3}
    evaluation = Evaluation("x", {"nats_per_token": Figure(math.nan, math.nan, math.nan)}, about=about)
    write_result(str(tmp_path / "x.json"), to_result([evaluation]))
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "checkpoint": "x",
        "val_loss": None,
        "val_loss_quantized": None,
        "step": 3,
        "figures": {"nats_per_token": {"value": None, "low": None, "high": None}},
    }


def test_unreadable_text_is_refused(run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = f"--checkpoint={run.directory}"
    assert "cannot be read: No such file" in read_error(capsys, checkpoint, "--text=/nowhere.txt")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "is not UTF-8" in read_error(capsys, checkpoint, f"--text={tmp_path / 'latin'}")
    (tmp_path / "greek").write_text("αβγ")
    assert "is not among the 48 characters" in read_error(capsys, checkpoint, f"--text={tmp_path / 'greek'}")
    (tmp_path / "short").write_text("1")
    assert "at least 2 are needed" in read_error(capsys, checkpoint, f"--text={tmp_path / 'short'}")


def test_shards_of_another_tokenizer_are_refused(
    run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = Chars({char: i for i, char in enumerate(reversed(ALPHABET))})
    shards = write_shards(tmp_path / "shards", {"train": [np.arange(9)], "val": [np.arange(9)]}, own=other)
    assert "made with another tokenizer" in read_error(capsys, f"--checkpoint={run.directory}", f"--data={shards}")


def test_preference_pairs_are_not_scored_as_text(
    run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pairs = write_documents(tmp_path / "pairs", {"val": draw_pairs(3, seed=1)}, kind="preferences")
    printed = read_error(capsys, f"--checkpoint={run.directory}", f"--data={pairs}")
    assert "pairs holds preference pairs, of which one answer is rejected" in printed


def test_shards_are_scored_by_a_tokenizer_with_more_special_tokens(tmp_path: Path) -> None:
    """A base model and its descendant, which learned the tokens of chats, are compared on the base's text."""
    shards = write_shards(tmp_path / "shards", {"val": [np.arange(99)]}, own=PLAIN)
    options, run = Evaluate(("run",), data=str(shards)), RunDir.open(write_chat_run(tmp_path / "run"))
    assert run.require_tokenizer().fingerprint != PLAIN.fingerprint
    assert find_data(options, run) == TokenShards(path=str(shards))


def test_altered_shard_is_named(run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shards = write_shards(tmp_path / "shards", {"val": [tokenizer().encode(text_of(9))]}, own=tokenizer())
    content = bytearray((shards / "val_000000.bin").read_bytes())
    content[1030] ^= 1
    (shards / "val_000000.bin").write_bytes(content)
    assert "val_000000.bin: its SHA-256 differs" in read_error(
        capsys, f"--checkpoint={run.directory}", f"--data={shards}", "--mesh=single"
    )


def test_imported_run_needs_data_or_text(run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_imported_run(tmp_path / "imported", model=RunDir.open(run.directory).load_model(), tokenizer=tokenizer())
    assert "Give --data or --text" in read_error(capsys, f"--checkpoint={tmp_path / 'imported'}", "--mesh=single")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step=7"], "has no step 7. Use one of 5, 10"),
        (["--data=a", "--text=b"], "choose one"),
        (["--dtype=float64"], "wanted bfloat16, float16, float32"),
        (["--tokens=0"], "--tokens is 0"),
        (["--text="], "a path is empty"),
        (["--tasks=,"], "--tasks names no task"),
        (
            ["--context-length=17", "--mesh=single"],
            "context_length 17 is longer than the 16 positions of the given weights. Use --context-length=16 or",
        ),
    ],
)
def test_invalid_arguments_are_named(
    run: TrainConfig, capsys: pytest.CaptureFixture, words: list[str], message: str
) -> None:
    assert message in read_error(capsys, f"--checkpoint={run.directory}", *words)


def test_directory_without_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "/nowhere is not there. Give a run, " in read_error(capsys, "--checkpoint=/nowhere")
    (tmp_path / "quickstart/deep").mkdir(parents=True)
    assert f"Did you mean {tmp_path}/quickstart?" in read_error(capsys, f"--checkpoint={tmp_path}/quikstart")
    assert f"Did you mean {tmp_path}/quickstart/deep?" in read_error(capsys, f"--checkpoint={tmp_path}/quikstart/deep")


def test_quantized_loss_is_measured_beside_the_other(run: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    found = evaluate_run(run, quantize="int8", tokens=100)
    difference = found["val_loss_quantized"] - evaluate_run(run, tokens=100)["val_loss"]
    assert 0 < abs(difference) < 0.01
    main([f"--checkpoint={run.directory}", "--mesh=single", "--tokens=100", "--quantize=int8"])
    expected = f"weights in int8: {found['val_loss_quantized']:.4f} nats per token, {difference:+.4f}\n"
    assert expected in capsys.readouterr().out


def test_checkpoints_are_compared_document_by_document(
    run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = [json.dumps({"text": line}) for line in text_of(30).splitlines()]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    worse = tmp_path / "worse"
    write_imported_run(worse, model=RunDir.open(run.directory).load_model("5"), tokenizer=tokenizer())
    words = [f"--checkpoint={run.directory}", f"--checkpoint={worse}", f"--baseline={run.directory}", "--mesh=single"]
    picture = tmp_path / "bars.png"
    main([*words, f"--text={tmp_path / 'lines.jsonl'}", "--json=-", f"--picture={picture}"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert "(baseline)" in printed.err
    assert result["baseline"] == str(run.directory)
    best, other = result["checkpoints"]
    assert "differences" not in best
    change, own = other["differences"]["nats_per_token"], other["figures"]["nats_per_token"]
    assert change["value"] == pytest.approx(other["val_loss"] - best["val_loss"])
    assert change["low"] < change["value"] < change["high"]
    assert change["high"] - change["low"] < own["high"] - own["low"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def make_sums(texts: str) -> DocumentSums:
    """Sums over documents of one letter each."""
    nats, ones = np.array([ord(letter) for letter in texts], np.float64), np.ones(len(texts))
    keys = number_repeats(range(len(texts)), [ord(letter) for letter in texts])
    return DocumentSums(nats, nats, ones, ones, ones, ones, keys=keys)


def test_documents_are_paired_by_their_texts_and_what_has_no_pair_is_told() -> None:
    base = Evaluation("a", {}, sums=make_sums("abac"))
    found = compare(Evaluation("b", {}, sums=make_sums("daa")), base)
    assert found.differences["nats_per_token"].value == 0
    told = "differences on the text are over the 2 documents that both have; the figures are over 3, and 4"
    assert found.notes == (f"{told} of the baseline",)
    longer = replace(make_sums("abac"), bytes=np.full(4, 2.0))
    [note] = compare(Evaluation("b", {}, sums=longer), base).notes
    assert note.startswith("differences on the text are of 8 scored bytes, and 4 of the baseline")
    endless = replace(make_sums("ab"), nats=np.array([1e5, 2e5]))  # their perplexities are infinite
    assert math.isnan(
        compare(Evaluation("b", {}, sums=endless), Evaluation("a", {}, sums=endless))
        .differences["word_perplexity"]
        .value
    )
    windows = [Evaluation(name, {}, sums=make_sums("ab"), window=window) for name, window in (("a", 1024), ("b", 64))]
    told = "its windows are of 1,024 tokens, and 64 of the baseline; --window=64 makes them equal"
    assert compare(*windows).notes == (told,)
    for sums, reason in (
        (replace(make_sums("abac"), unit="parts"), "one has parts, the other documents"),
        (make_sums("xyz"), "no document was scored with both"),
    ):
        found = compare(Evaluation("b", {}, sums=sums), base)
        assert (found.differences, found.notes) == ({}, (f"no difference on the text: {reason}",))


def test_mistakes_are_found_before_anything_is_scored(
    run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "evaluate_checkpoint", lambda *_: pytest.fail("something was scored"))
    words = [f"--checkpoint={run.directory}", "--mesh=single", "--tokens=50"]
    (tmp_path / "offsets").write_text("1\n")
    for wrong, message in (
        ("--checkpoint=/nowhere", "/nowhere is not there"),
        ("--core=/nowhere", "--core=/nowhere"),
        ("--window=17", "the window of --protocol=gptjax is 17 tokens"),
        ("--stride=0", "the stride of --protocol=gptjax is 0 tokens"),
        (f"--offsets={tmp_path / 'offsets'}", "--offsets says where windows begin"),
    ):
        assert message in read_error(capsys, *words, wrong)


def test_what_was_measured_before_an_error_is_kept(
    run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse, file = tmp_path / "worse", tmp_path / "result.json"
    write_imported_run(worse, model=RunDir.open(run.directory).load_model("5"), tokenizer=tokenizer())
    score, done = checkpoints.texts.score_text, []

    def score_once(*words: Any, **options: Any) -> DocumentSums:
        if done:
            raise UserError("the disk is gone")
        done.append(True)
        return score(*words, **options)

    monkeypatch.setattr(checkpoints.texts, "score_text", score_once, raising=False)
    text = tmp_path / "text.txt"
    text.write_text(text_of(20))
    words = [f"--checkpoint={run.directory}", f"--checkpoint={worse}", f"--json={file}", f"--text={text}"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--mesh=single"])
    assert stop.value.code == 2
    printed, result = capsys.readouterr(), json.loads(file.read_text())
    assert "error: the disk is gone" in printed.err
    assert f"{worse} is not finished: the disk is gone" in printed.out
    first, second = result["checkpoints"]
    assert first["figures"]["nats_per_token"]["value"] == first["val_loss"]
    assert (second["failed"], second["figures"]) == ("the disk is gone", {})


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupted_evaluation_says_so_in_its_result(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(evaluation: Evaluation, *_: Any) -> None:
        evaluation.figures["nats_per_token"] = Figure(1.0, 1.0, 1.0)
        raise KeyboardInterrupt

    names = ["a", "b"][:count]
    inputs = SimpleNamespace(runs=dict.fromkeys(names))
    monkeypatch.setattr(checkpoints, "open_inputs", lambda _: contextlib.nullcontext(inputs))
    monkeypatch.setattr(checkpoints, "evaluate_checkpoint", interrupt)
    with pytest.raises(SystemExit):
        main([*(f"--checkpoint={name}" for name in names), f"--json={tmp_path / 'x.json'}"])
    result = json.loads((tmp_path / "x.json").read_text())
    [found] = [result] if count == 1 else result["checkpoints"]
    assert (found["checkpoint"], found["failed"]) == ("a", "interrupted")


@pytest.mark.parametrize("end", [KeyboardInterrupt(), UserError("the task is broken")])
def test_responses_that_cannot_be_written_do_not_hide_why_tasks_ended(
    end: BaseException, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = Evaluate(("a",), responses=str(tmp_path / "absent/file"))
    evaluation, results = Evaluation("a", {}), TaskResults(figures={"arc acc": Figure(1.0, 1.0, 1.0)})
    with pytest.raises(type(end)) as ended, checkpoints.keep_results(evaluation, options, results):
        raise end
    assert ended.value is end
    assert "arc acc" in evaluation.figures
    assert f"warning: --responses={options.responses} cannot be written" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be written"), checkpoints.keep_results(evaluation, options, results):
        pass


def test_a_checkpoint_that_is_spelled_twice_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = Evaluate(("runs/a", "runs/b/", "./runs/a", "hf:a/b"), baseline=f"{tmp_path}/runs/b")
    assert (options.checkpoints, options.compared) == (("runs/a", "runs/b/", "hf:a/b"), "runs/b/")
    options = Evaluate(("runs/a",), baseline="a")
    assert (options.checkpoints, options.compared) == (("a", "runs/a"), "a")


def test_command_without_a_checkpoint_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert "no checkpoint is given" in read_error(capsys)


@pytest.mark.parametrize("content", ["1\nx\n", None])
def test_unreadable_offsets_are_refused(
    run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, content: str | None
) -> None:
    file = tmp_path / "offsets.txt"
    if content is not None:
        file.write_text(content)
    words = [f"--checkpoint={run.directory}", "--mesh=single", "--protocol=nanogpt", f"--offsets={file}"]
    assert f"--offsets={file}" in read_error(capsys, *words)
