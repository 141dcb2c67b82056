"""Texts and tasks as evaluators of a run."""

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from library_tokenizers import write_form
from scored import draw_documents, draw_pairs, write_documents
from tiny import MODEL, SINGLE, read_lines, text_of, tiny_config, write_shards, write_text_shards

from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.data.manifest import PREFERENCES
from gptjax.data.preferences import PreferenceShards
from gptjax.evaluate import evaluate
from gptjax.evaluation import training_evaluators
from gptjax.evaluation.figures import Figure
from gptjax.evaluation.harness import TaskRequest
from gptjax.evaluation.options import Evaluate
from gptjax.evaluation.protocols import EvalProtocol
from gptjax.evaluation.task_results import TaskResults
from gptjax.evaluation.training_evaluators import Core, HarnessTasks, TextProtocol, name_metric
from gptjax.evaluators.evaluator import EvalContext
from gptjax.evaluators.validation import ValidationLoss
from gptjax.metrics.logger import LogConfig
from gptjax.metrics.loggers import TensorBoardLogger
from gptjax.metrics.plots import list_evaluations
from gptjax.objectives.objective import SFT, NextToken
from gptjax.objectives.preference import SimPO
from gptjax.runs.trainer import train
from gptjax.tokenization.chat_template import ChatTemplate, RoleFormat
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN, Chars, load_tokenizer

SLIDING = EvalProtocol("sliding", window=12, stride=5)


def test_text_is_scored_on_a_schedule_as_the_command_scores_it(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"page": text_of(12)}))
    own = TextProtocol(every=5, name="sums", text=str(text), text_field="page", protocol="nanogpt", tokens=60)
    shards = write_text_shards(tmp_path / "shards")
    others = (
        TextProtocol(every=10, name="val"),
        TextProtocol(every=10, name="sliding", data=str(shards), protocol=SLIDING),
    )
    config = tiny_config(shards, evaluators=(own, *others))
    assert train(config) == 0
    found = dict(read_lines(config.directory, "eval_sums_nats_per_token"))
    assert list(found) == [5, 10]
    options = Evaluate((str(config.directory),), text=str(text), text_field="page", protocol="nanogpt", mesh=SINGLE)
    assert evaluate(replace(options, tokens=60))["val_loss"] == pytest.approx(found[10], abs=1e-6)
    assert [step for step, _ in read_lines(config.directory, "eval_val_bits_per_byte")] == [10]
    found = dict(read_lines(config.directory, "eval_sliding_nats_per_token"))
    options = Evaluate((str(config.directory),), window=12, stride=5, mesh=SINGLE)
    assert evaluate(options)["val_loss"] == pytest.approx(found[10], abs=1e-6)


def test_conversations_are_scored_as_training_reads_them(tmp_path: Path) -> None:
    """Each by itself, though no token stands at their beginning; a protocol that joins them is refused at once."""
    documents = {split: draw_documents(12, seed=seed) for split, seed in (("train", 0), ("val", 1))}
    shards = write_documents(tmp_path / "chats", documents)
    config = tiny_config(
        shards,
        steps=4,
        model={"intra_document_mask": True},
        data=TokenShards(path=str(shards), packing="best_fit_truncate"),
        objective=SFT(),
        evaluators=(ValidationLoss(every=4), TextProtocol(every=4, name="own")),
    )
    assert train(config) == 0
    wanted = dict(read_lines(config.directory, "val_loss"))[4]
    assert dict(read_lines(config.directory, "eval_own_nats_per_token"))[4] == pytest.approx(wanted, abs=1e-6)
    found = evaluate(Evaluate((str(config.directory),), mesh=SINGLE))
    assert found["val_loss"] == pytest.approx(wanted, abs=1e-6)
    assert "each document by itself" in found["protocol"]
    joined = replace(config, name="joined", evaluators=(TextProtocol(protocol=EvalProtocol(documents="together")),))
    with pytest.raises(UserError, match=r"chats \(val\): holds conversations, which are scored each by itself"):
        train(joined)
    pairs = write_documents(
        tmp_path / "pairs", {"train": draw_pairs(8, seed=2), "val": draw_pairs(8, seed=3)}, kind=PREFERENCES
    )
    changes = {"data": PreferenceShards(str(pairs)), "objective": SimPO(), "evaluators": (TextProtocol(name="own"),)}
    with pytest.raises(UserError, match=r"own would score the run's validation pairs, of which one answer is rejected"):
        train(replace(config, name="pairs", **changes))


def test_failing_evaluation_is_logged_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(training_evaluators.texts, "score_text", fail, raising=False)
    own = (TextProtocol(every=5, name="broken"), ValidationLoss(every=5))
    config = tiny_config(write_text_shards(tmp_path / "shards"), evaluators=own)
    assert train(config) == 0
    records = [json.loads(line) for line in (config.directory / "metrics.jsonl").read_text().splitlines()]
    failed = [(r["step"], r["eval_broken_error"]) for r in records if "eval_broken_error" in r]
    assert failed == [(5, "RuntimeError: out of memory"), (10, "RuntimeError: out of memory")]
    assert [step for step, _ in read_lines(config.directory, "val_loss")] == [0, 5, 10]
    assert "the evaluation broken failed, and training goes on: RuntimeError: out of memory" in capsys.readouterr().err


def test_data_whose_texts_may_hold_role_tokens_are_scored_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = load_tokenizer(write_form(tmp_path / "tokenizer", "deepseek"))
    user, assistant = RoleFormat("<｜User｜>", "", ""), RoleFormat("<｜Assistant｜>", "", "<｜end｜>")
    chat = base.with_chat_template(ChatTemplate(user, assistant, None))
    ids = base.encode("two and <｜User｜> two " * 9)
    assert base.text_tokens["<｜User｜>"] in ids
    shards = write_shards(tmp_path / "shards", {"train": [ids], "val": [ids]}, own=base)
    model = replace(MODEL, vocab_size=base.vocab_size, context_length=8)
    context = EvalContext(TokenShards(path=str(shards)), chat, model, NextToken(), SINGLE)
    problem = "was made without the roles <｜User｜>, <｜Assistant｜>: a text in it that spells one holds that token"
    own = TokenShards(path=str(shards))
    evaluators = {str(shards): TextProtocol(data=str(shards)), "ValidationLoss 'val'": ValidationLoss(data=own)}
    for name, evaluator in evaluators.items():
        evaluator.open(context)
        assert f"{name} {problem}. Prepare it with the run's tokenizer." in capsys.readouterr().err
        evaluator.open(replace(context, tokenizer=base))
        assert capsys.readouterr().err == ""


def test_task_that_fails_is_logged_beside_the_figures_of_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One without data is named as not run."""
    reasons: dict[str, Any] = {"failed": {"bad": "ValueError: no"}, "not_run": {"far": "OSError: no network"}}
    found = TaskResults(figures={"good acc": Figure(0.5, math.nan, math.nan)}, **reasons)
    prepared = SimpleNamespace(run=lambda _: found)
    for name in ("harness", "harness_model"):
        tools = {"prepare_tasks": lambda _: contextlib.nullcontext(prepared), "HarnessModel": lambda *_, **__: None}
        monkeypatch.setattr(training_evaluators, name, SimpleNamespace(TaskRequest=TaskRequest, **tools))
    own = BPE({bytes([b]): b for b in range(256)}, {END_OF_TEXT: 256}, merges=[], pattern=GPT2_PATTERN)
    context = EvalContext(TokenShards(), own, MODEL, SFT(), SINGLE)
    evaluate_tasks: Any = HarnessTasks(tasks=("good", "bad", "far")).open(context)
    metrics = {"eval_good_acc": 0.5, "eval_bad_error": "ValueError: no", "eval_far_not_run": "OSError: no network"}
    assert evaluate_tasks(None) == metrics
    printed = capsys.readouterr().err
    assert "the evaluation bad failed, and training goes on: ValueError: no" in printed
    assert "the task far was not run, and training goes on: OSError: no network" in printed
    assert "far failed" not in printed


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (TextProtocol(text="/nowhere.txt"), r"/nowhere.txt cannot be read"),
        (TextProtocol(protocol="x"), r"--protocol=x is unknown"),
        (TextProtocol(text="a", data="b"), r"has both text and data: choose one"),
        (TextProtocol(protocol=EvalProtocol(stride=0)), r"the stride of --protocol=gptjax is 0"),
        (HarnessTasks(apply_chat_template=True), r"apply_chat_template needs data with a chat template"),
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


def test_shards_of_the_tokenizer_without_later_special_tokens_are_taken(tmp_path: Path) -> None:
    own = BPE({bytes([b]): b for b in range(256)}, {END_OF_TEXT: 256}, merges=[], pattern=GPT2_PATTERN)
    ids = own.encode(text_of(12))
    shards = write_shards(tmp_path / "shards", {"train": [ids], "val": [ids]}, own=own)
    evaluator, config = TextProtocol(data=str(shards)), tiny_config(shards)
    find = lambda own: evaluator.open(EvalContext(config.data, own, config.model, config.objective, SINGLE))
    assert callable(find(own.with_special_tokens(["<|new|>"])))
    with pytest.raises(UserError, match="was made with another tokenizer"):
        find(Chars.from_text("abc"))


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="evaluators: every is 0"):
        TextProtocol(every=0)
    with pytest.raises(UserError, match="evaluators: limit is 0"):
        HarnessTasks(limit=0)


def test_names_of_metrics_are_words() -> None:
    assert name_metric("lambada_openai acc (get-answer)") == "eval_lambada_openai_acc_get_answer"


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of the harness and of what it imports
def test_tasks_and_core_are_scored_while_a_run_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Beside an evaluator whose task has no data here, which does not end the run."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text8.txt").write_text(text_of(4).replace("\n", " "))
    tasks = HarnessTasks(every=5, tasks=("text8",), task_data=(f"text8={tmp_path / 'text8.txt'}",), limit=None)
    core = Core(every=5, bundle=str(write_bundle(tmp_path / "bundle")))
    broken = HarnessTasks(every=10, tasks=("enwik8",))
    log = LogConfig(loggers=(TensorBoardLogger(),))
    config = tiny_config(write_text_shards(tmp_path / "shards"), evaluators=(tasks, core, broken), log=log)
    assert train(config) == 0
    for name in ("eval_text8_bits_per_byte", "eval_CORE", "eval_core_q"):
        found = read_lines(config.directory, name)
        assert [step for step, _ in found] == [5, 10], name
        assert all(math.isfinite(value) for _, value in found)
    records = [json.loads(line) for line in (config.directory / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "no task can be run: enwik8" in r.get("eval_enwik8_error", "")] == [10]
    assert "the evaluation enwik8 failed, and training goes on" in capsys.readouterr().err
    events = b"".join(path.read_bytes() for path in config.directory.rglob("events.out.*"))
    assert b"eval_text8_bits_per_byte" in events
    assert b"eval_CORE" in events
    assert set(list_evaluations(records)) >= {"eval_text8_bits_per_byte", "eval_CORE"}


def write_bundle(directory: Path) -> Path:
    """A bundle of CORE with one task, in letters that the tests' tokenizer has."""
    items = [{"query": f"{i} + 1 = ", "choices": ["two", "three"], "gold": i % 2} for i in range(4)]
    (directory / "eval_data").mkdir(parents=True)
    (directory / "eval_data" / "q.jsonl").write_text("\n".join(map(json.dumps, items)))
    task = "{label: q, dataset_uri: q.jsonl, num_fewshot: [0], icl_task_type: multiple_choice}"
    (directory / "core.yaml").write_text(f"icl_tasks:\n- {task}\n")
    (directory / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nq,50\n")
    return directory
