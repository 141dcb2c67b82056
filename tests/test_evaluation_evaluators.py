"""Texts and tasks as evaluators of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SINGLE, read_lines, text_of, tiny_config, write_text_shards

from gptjax.core.errors import UserError
from gptjax.evaluate import Evaluate, evaluate
from gptjax.evaluation import evaluators
from gptjax.evaluation.evaluators import Core, HarnessTasks, TextProtocol, name_metric
from gptjax.runs.trainer import train
from gptjax.training.evaluators import ValidationLoss


def test_text_is_scored_on_a_schedule_as_the_command_scores_it(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(text_of(12))
    own = TextProtocol(every=5, name="sums", text=str(text), protocol="harness", tokens=60)
    config = tiny_config(write_text_shards(tmp_path / "shards"), evaluators=(own, TextProtocol(every=10, name="val")))
    assert train(config) == 0
    found = dict(read_lines(config.directory, "eval_sums_nats_per_token"))
    assert list(found) == [5, 10]
    options = Evaluate((str(config.directory),), text=str(text), protocol="harness", tokens=60, mesh=SINGLE)
    assert evaluate(options)["val_loss"] == pytest.approx(found[10], abs=1e-6)
    assert [step for step, _ in read_lines(config.directory, "eval_val_bits_per_byte")] == [10]


def test_failing_evaluation_is_logged_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(evaluators.texts, "score_text", fail, raising=False)
    own = (TextProtocol(every=5, name="broken"), ValidationLoss(every=5))
    config = tiny_config(write_text_shards(tmp_path / "shards"), evaluators=own)
    assert train(config) == 0
    records = [json.loads(line) for line in (config.directory / "metrics.jsonl").read_text().splitlines()]
    failed = [(r["step"], r["eval_broken_error"]) for r in records if "eval_broken_error" in r]
    assert failed == [(5, "RuntimeError: out of memory"), (10, "RuntimeError: out of memory")]
    assert [step for step, _ in read_lines(config.directory, "val_loss")] == [0, 5, 10]
    assert "the evaluation broken failed, and training goes on: RuntimeError: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (TextProtocol(text="/nowhere.txt"), r"--text=/nowhere.txt cannot be read"),
        (TextProtocol(protocol="x"), r"--protocol=x is unknown"),
        (Core(bundle="/nowhere"), r"--core=/nowhere is not CORE's bundle"),
    ],
)
def test_mistakes_are_refused_before_the_first_step(tmp_path: Path, evaluator: Any, message: str) -> None:
    if isinstance(evaluator, Core):
        pytest.importorskip("yaml")
    config = tiny_config(write_text_shards(tmp_path / "shards"), evaluators=(evaluator,))
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (config.directory / "metrics.jsonl").exists()


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="evaluators: every is 0"):
        TextProtocol(every=0)
    with pytest.raises(UserError, match="evaluators: limit is 0"):
        HarnessTasks(limit=0)


def test_names_of_metrics_are_words() -> None:
    assert name_metric("lambada_openai acc (get-answer)") == "eval_lambada_openai_acc_get_answer"
