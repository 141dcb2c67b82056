from dataclasses import dataclass, replace
from pathlib import Path

import jax
import pytest
from scored import draw_documents, write_documents
from tiny import SINGLE, tiny_config, write_text_shards

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.core.serialization import to_json
from gptjax.data.config import TokenShards
from gptjax.data.loader import BatchLoader
from gptjax.data.packing import Packing
from gptjax.evaluators.bigram import BigramBaseline
from gptjax.evaluators.evaluator import EvalContext, PeriodicEvaluator
from gptjax.evaluators.validation import ValidationLoss
from gptjax.metrics.metrics_file import MetricsFileWriter
from gptjax.model.layers import ACTIVATIONS
from gptjax.objectives.objective import SFT
from gptjax.optim import AdamW, Constant
from gptjax.optim.ema import EMA
from gptjax.runs import report, startup
from gptjax.supervision.stopping import Stop
from gptjax.tokenization.tokenizer import Chars
from gptjax.training.stages import Stage

COMMAND = "python -m gptjax.train --config=my.py"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return tiny_config(write_text_shards(tmp_path_factory.mktemp("report") / "shards"), steps=60)


def describe(config: TrainConfig, *, start: int = 0) -> None:
    config, tokenizer = startup.prepare_config(config)
    spec = startup.make_read_spec(config, tokenizer)
    batches = BatchLoader(config.data.open(spec), spec, mesh=SINGLE)
    report.describe_run(config, SINGLE, batches, startup.open_evaluators(config, tokenizer, SINGLE), start=start)


def test_describe_run_prints_model_data_and_length(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    describe(replace(config, evaluators=(BigramBaseline(), ValidationLoss(every=30))))
    printed = capsys.readouterr().out
    for words in (
        f"run       {config.directory}",
        "27,520 parameters, 2 layers × 32",
        "tokens in 197 sequences",
        "attention xla",
        "60 steps × 128 tokens = 7,680 (2.44 epochs)",
        "evaluated 631 of 631 next tokens",
    ):
        assert words in printed, words
    assert "note:" not in printed


def test_describe_run_notes_saves_by_time(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    describe(replace(config, evaluators=(ValidationLoss(),), checkpoint=CheckpointConfig(every_minutes=5.0)))
    assert "note: checkpoints of --checkpoint.every-minutes become `best` only at" in capsys.readouterr().out


def test_checkpoints_that_are_not_evaluated_by_the_metric_that_decides_are_noted(config: TrainConfig) -> None:
    """Another evaluator runs at every save."""
    evaluators = (ValidationLoss(every=30), ValidationLoss(name="books", every=50))
    config = replace(config, steps=140, checkpoint=CheckpointConfig(every=50), evaluators=evaluators)
    (note,) = report._describe_unevaluated(config)
    assert note.startswith("note: no checkpoint before the last is evaluated with val_loss")
    books = replace(config, checkpoint=CheckpointConfig(every=50, best_metric="books_loss"))
    assert not report._describe_unevaluated(books)


def test_own_evaluator_is_not_expected_to_measure_the_default_metric(config: TrainConfig) -> None:
    class Accuracy(PeriodicEvaluator):
        def open(self, context: EvalContext) -> None:
            raise NotImplementedError

    config = replace(config, steps=140, checkpoint=CheckpointConfig(every=50), evaluators=(Accuracy(every=30),))
    assert not report._describe_unevaluated(config)
    asked = replace(config, checkpoint=CheckpointConfig(every=50, best_metric="accuracy"))
    assert report._describe_unevaluated(asked)[0].startswith(
        "note: no checkpoint before the last is evaluated with acc"
    )


def test_describe_run_prints_stages_and_average(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    describe(replace(config, stages=(Stage(20, batch_size=16),), ema=EMA(decay=0.9)))
    printed = capsys.readouterr().out
    assert "60 steps = 12,800 tokens (4.06 epochs)" in printed
    assert "from step 20 on 16 rows = 256 tokens a step" in printed
    assert "average   the mean of the weights from step 1 on" in printed


def test_describe_run_notes_a_rate_that_still_rises(config: TrainConfig, capsys: pytest.CaptureFixture) -> None:
    describe(replace(config, optimizer=AdamW(schedule=Constant(warmup_steps=100))))
    assert "note: the learning rate still rises at the last of 60 steps" in capsys.readouterr().out
    describe(replace(config, optimizer=AdamW(schedule=Constant(warmup_steps=100))), start=60)
    assert "still rises" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("packing", "masked", "noted"),
    [
        ("concat", False, True),
        ("concat", True, True),
        ("bos_best_fit", True, True),
        ("best_fit", False, True),
        ("best_fit", True, False),
        ("best_fit_truncate", True, False),
    ],
)
def test_describe_run_notes_conversations_that_are_cut_or_see_another(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, packing: Packing, masked: bool, noted: bool
) -> None:
    documents = draw_documents(60, seed=1)
    shards = write_documents(tmp_path / "chats", {"train": documents, "val": documents[:8]})
    note = "note: the data holds conversations, of which the answers alone are learned, but rows cut them"
    named = "as in --config=own_chats_cpu\n"
    data, model = TokenShards(path=str(shards), packing=packing), replace(config.model, intra_document_mask=masked)
    describe(replace(config, data=data, model=model, evaluators=()))
    printed = capsys.readouterr().out
    assert (note in printed, named in printed) == (noted, noted)


def write_metrics(config: TrainConfig) -> None:
    config.directory.mkdir(parents=True)
    writer = MetricsFileWriter(config.directory / "metrics.jsonl")
    writer.write({"step": 0, "tokens": 0, "val_loss": 4.0, "val_bpb": 6.0, "bigram_loss": 2.0, "bigram_bpb": 4.0})
    writer.write({"step": 1, "tokens": 128, "loss": 3.0, "seconds": 1.0})
    writer.write({"step": 1, "tokens": 128, "val_loss": 1.5, "val_bpb": 3.0})
    writer.close()


def write_checkpoint(config: TrainConfig) -> None:
    step = config.directory / "checkpoints" / "1"
    (step / "metadata").mkdir(parents=True)
    (step / "metadata" / "metadata").touch()
    (step / "commit_success.txt").touch()
    (config.directory / "tokenizer.json").touch()


def test_commands_of_the_summary_work_as_they_are_printed(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An activation of one's own needs its file, and without a validation split there is nothing to evaluate on."""
    monkeypatch.setitem(ACTIVATIONS, "mish", jax.nn.mish)
    shards = write_documents(tmp_path / "texts", {"train": draw_documents(60, seed=1)})
    config = replace(config, output_dir=str(tmp_path), model=replace(config.model, activation="mish"))
    write_metrics(config)
    write_checkpoint(config)
    report.print_summary(config, f"{COMMAND} --steps=60", stopped=None)
    commands = [line for line in capsys.readouterr().out.splitlines() if "--checkpoint=" in line]
    assert ["gptjax.evaluate" in line for line in commands].count(True) == 1
    assert all(line.endswith(" --import=" + COMMAND.partition("--config=")[2].split()[0]) for line in commands)
    report.print_summary(replace(config, data=TokenShards(path=str(shards))), f"{COMMAND} --resume=1", stopped=None)
    said = capsys.readouterr().out
    assert "gptjax.evaluate" not in said
    assert "train on" in said
    assert "--resume" not in said, "the run has gone back"
    report.print_summary(config, f"{COMMAND} --patience=2", stopped=Stop(0, "2 evaluations in a row"))
    assert f"  resume    {COMMAND} --patience=None\n" in capsys.readouterr().out, "the same would stop again"


def test_sample_of_the_summary_has_a_prompt_if_it_needs_one_and_no_import_for_data(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    @dataclass(frozen=True)
    class Sums(TokenShards):
        """Data of one's own."""

    config = replace(config, output_dir=str(tmp_path), data=Sums(path=config.data.path))  # pyright: ignore
    write_metrics(config)
    write_checkpoint(config)
    Chars({char: i for i, char in enumerate("$ 1")}).save(config.directory)
    report.print_summary(config, COMMAND, stopped=None)
    lines = capsys.readouterr().out.splitlines()
    (sampled,) = [line for line in lines if "gptjax.sample" in line]
    assert sampled.endswith("/tiny --prompt='$'")
    (evaluated,) = [line for line in lines if "gptjax.evaluate" in line]
    assert evaluated.endswith(" --import=my.py")


def test_summary_without_checkpoint_names_the_command(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was said at the start of a GPU that is not used is said again."""
    monkeypatch.setattr(report, "describe_unused_gpu", lambda: "WARNING: on the CPU")
    config = replace(config, output_dir=str(tmp_path))
    write_metrics(config)
    report.print_summary(config, COMMAND, stopped=Stop.by_signal(2))
    printed = capsys.readouterr().out
    assert f"next: {COMMAND}\n(stopped before the first step, so nothing was saved)" in printed
    assert printed.endswith("WARNING: on the CPU\n")


def test_summary_names_the_best_checkpoint_where_later_ones_are_worse(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {1: 1.5, 2: 3.0}
    monkeypatch.setattr(report, "list_steps", lambda path: [*losses])
    monkeypatch.setattr(report, "rank_steps", lambda path: sorted(losses, key=lambda step: losses[step]))
    monkeypatch.setattr(report, "read_metadata", lambda path, step: {"best_value": losses[step]})
    config = replace(config, output_dir=str(tmp_path))
    write_metrics(config)
    write_checkpoint(config)
    report.print_summary(config, COMMAND, stopped=None)
    printed = capsys.readouterr().out
    assert "note: val_loss was lowest at step 1, 1.5000; at step 2 it is 3.0000." in printed
    assert "train on" not in printed
    assert all("/tiny@best" in line for line in printed.splitlines() if "--checkpoint=" in line)
    report.print_summary(config, COMMAND, stopped=Stop.by_signal(2))
    assert f"  resume    {COMMAND}\n" in capsys.readouterr().out, "the run has not come to its end"
    losses[2] = 1.51
    report.print_summary(config, COMMAND, stopped=None)
    printed = capsys.readouterr().out
    assert "/tiny@best" in printed
    assert "train on" in printed, "so little may be noise"
    losses[2] = 1.5
    report.print_summary(config, COMMAND, stopped=None)
    printed = capsys.readouterr().out
    assert "@best" not in printed
    assert "train on" in printed, "it is no worse"


def test_summary_compares_with_bigram_and_names_commands(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, output_dir=str(tmp_path / "my runs"), evaluators=(ValidationLoss(),))
    write_metrics(config)
    write_checkpoint(config)
    report.print_summary(config, f"{COMMAND} --steps=60", stopped=None)
    printed = capsys.readouterr().out
    assert "validation 3.0000 bits per byte; a bigram has 4.0000 (ratio 0.750)" in printed
    assert f"train on  {COMMAND} --steps=120 --schedule-steps=120\n" in printed
    assert "python -m gptjax.sample --checkpoint='" in printed
    assert (config.directory / "loss.png").is_file()
    report.print_summary(config, f"{COMMAND} --steps=60", stopped=Stop.by_signal(2))
    assert f"resume    {COMMAND} --steps=60" in capsys.readouterr().out
    monkeypatch.setattr(report, "read_metadata", lambda path, step: {"config": to_json(config)})
    for resume, is_needed in (("auto", True), ("force", False)):
        config = replace(config, resume=resume)
        report.print_summary(replace(config, resume="force"), f"{COMMAND} --resume=force", stopped=Stop.by_signal(2))
        assert (" --resume=force" in capsys.readouterr().out) == is_needed, "until the forced config is saved"
    masked = replace(config, objective=SFT(), model=replace(config.model, intra_document_mask=True))
    for kind in ("sample", "chat"):  # plain texts have no template
        report.print_summary(masked, COMMAND, stopped=None)
        assert f"  {kind:<10}python -m gptjax.{kind} --checkpoint=" in capsys.readouterr().out
        (config.directory / "chat_template.json").touch()
    part = replace(config, evaluators=(ValidationLoss(tokens=9),), schedule_steps=500)
    report.print_summary(part, f"{COMMAND} --steps 60 --schedule-steps=500", stopped=None)
    printed = capsys.readouterr().out
    assert "bits per byte" not in printed, "a part of the split is not comparable"
    assert f"train on  {COMMAND} --schedule-steps=500 --steps=120\n" in printed, "the schedule is long enough"
    report.print_summary(replace(part, schedule_steps=30), COMMAND, stopped=None)
    assert "note: the schedule ends at step 30" in capsys.readouterr().out
