import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scored import draw_pairs, write_documents
from tiny import ALPHABET, read_lines, text_of, tiny_config, tokenizer, write_shards, write_text_shards

from gptjax.checkpoints import disk_space
from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.serialization import to_json
from gptjax.data.config import TokenShards
from gptjax.data.preferences import PreferenceShards
from gptjax.evaluation.training_evaluators import TextProtocol
from gptjax.evaluators.bigram import BigramBaseline
from gptjax.evaluators.evaluator import EvalContext, OpenEvaluator
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.metrics.goodput import read_spans
from gptjax.objectives.preference import DPO
from gptjax.optim import AdamW, Constant
from gptjax.process.process_end import undo_start
from gptjax.process.restarts import SUPERVISED_VARIABLE
from gptjax.runs.data_check import make_data_check
from gptjax.runs.refused_start import check_place, hold_run
from gptjax.runs.run_dir import RunDir
from gptjax.runs.run_lock import run_lock
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("trainer") / "shards")


@pytest.fixture(scope="module")
def finished(shards: Path) -> TrainConfig:
    """The config of a complete run with every evaluator."""
    config = tiny_config(
        shards,
        name="finished",
        steps=60,
        optimizer=AdamW(learning_rate=0.01, schedule=Constant(warmup_steps=5)),
        evaluators=(BigramBaseline(), ValidationLoss(every=30), Samples(every=60, prompt="1", max_new_tokens=5)),
        checkpoint=CheckpointConfig(every=30),
    )
    assert train(config, source="config = None\n") == 0
    return config


def test_train_learns_and_evaluates(finished: TrainConfig) -> None:
    losses = dict(read_lines(finished.directory))
    assert list(losses) == list(range(1, 61))
    assert losses[1] == pytest.approx(np.log(len(ALPHABET)), abs=0.2)
    assert losses[60] < losses[1] - 1
    assert dict(read_lines(finished.directory, "val_loss")).keys() == {0, 30, 60}
    assert len(read_lines(finished.directory, "bigram_loss")) == len(read_lines(finished.directory, "sample")) == 1


def test_run_directory_holds_config_tokenizer_and_checkpoints(finished: TrainConfig) -> None:
    directory = finished.directory
    files = {path.name for path in directory.iterdir()}
    assert files >= {"config.json", "config.py", "environment.json", "tokenizer.json", "metrics.jsonl", "loss.png"}
    assert (directory / "config.py").read_text() == "config = None\n"
    assert json.loads((directory / "environment.json").read_text())["packages"]["jax"] == jax.__version__
    run = RunDir.open(directory)
    assert run.config == replace(finished, schedule_steps=60, epoch_seeds="mixed")
    assert run.require_tokenizer().fingerprint == tokenizer().fingerprint
    assert run.find_step("best") == run.find_step() == 60


def test_finished_run_trained_again_says_so_and_does_nothing(
    finished: TrainConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started by a parent that began long ago, whose time is not that of this start."""
    monkeypatch.setenv(SUPERVISED_VARIABLE, repr(time.monotonic() - 1e6))
    metrics = (finished.directory / "metrics.jsonl").read_bytes()
    assert train(finished) == 0
    assert "the run is complete: its last evaluation is repeated. --steps=120" in capsys.readouterr().out
    assert (finished.directory / "metrics.jsonl").read_bytes() == metrics
    starts = [span.seconds for span in read_spans(finished.directory) if span.kind == "start"]
    assert len(starts) == 2
    assert sum(starts) < 1e6


def test_run_may_start_from_weights_with_a_shorter_context(
    finished: TrainConfig, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file system says that nothing is free, which need not be true."""
    monkeypatch.setattr(disk_space, "find_free_bytes", lambda _: 0)
    start = str(finished.directory)
    config = tiny_config(shards, name="later", steps=2, init_from=start, model={"context_length": 8})
    assert train(config) == 0
    assert [step for step, _ in read_lines(config.directory)] == [1, 2]
    assert "No save may find room. While" in capsys.readouterr().out
    assert read_lines(config.directory)[0][1] < 2.5, "the first loss is that of trained weights"


def test_nonfinite_updates_stop_the_run(shards: Path) -> None:
    """Updates as large as the largest float would leave no weights to compute with."""
    config = tiny_config(
        shards,
        name="nonfinite",
        steps=50,
        optimizer=AdamW(learning_rate=3e38, schedule=Constant()),
        max_consecutive_skips=4,
        checkpoint=CheckpointConfig(every=2),
    )
    with pytest.raises(UserError, match=r"The last 4 updates, up to step 4, were skipped.*No checkpoint was saved"):
        train(config)
    losses = dict(read_lines(config.directory))
    assert list(losses)[:4] == [1, 2, 3, 4]
    assert all(np.isfinite(loss) for loss in losses.values()), "the weights stay as they were"


def test_foreign_shards_with_tokenizer_train_and_sample(shards: Path, tmp_path: Path) -> None:
    ids = [TokenShards(path=str(shards)).open_stream("train").read(0, 500)]
    foreign = write_shards(tmp_path / "foreign", {"train": ids, "val": ids})
    data = TokenShards(path=str(foreign), tokenizer=str(shards / "tokenizer.json"))
    evaluators = (ValidationLoss(), Samples(prompt="1"))
    config = tiny_config(foreign, data=data, steps=1, model={"vocab_size": None}, evaluators=evaluators)
    assert train(config) == 0
    assert read_lines(config.directory, "val_bpb")
    assert read_lines(config.directory, "sample")
    assert RunDir.open(config.directory).require_tokenizer().vocab_size == len(ALPHABET)


def write_pairs(directory: Path) -> PreferenceShards:
    return PreferenceShards(path=str(write_documents(directory, {"train": draw_pairs(6, seed=1)}, kind="preferences")))


def refuse_mesh(config: TrainConfig, start: Path, place: Path) -> TrainConfig:
    return replace(config, mesh=MeshConfig(), batch_size=12)


def refuse_questions(config: TrainConfig, start: Path, place: Path) -> TrainConfig:
    """An evaluator lacks its file; the log-probabilities of a reference are to be stored."""
    model = replace(config.model, intra_document_mask=True)
    data = write_pairs(place)
    return replace(
        config,
        data=data,
        model=model,
        init_from=str(start),
        objective=DPO(),
        evaluators=(TextProtocol(text="absent.txt"),),
    )


def refuse_split(config: TrainConfig, start: Path, place: Path) -> TrainConfig:
    ids = tokenizer().encode(text_of(40))
    data = TokenShards(path=str(write_shards(place, {"train": [ids]}, own=tokenizer())))
    return replace(config, data=data, evaluators=(ValidationLoss(),))


def refuse_weights(config: TrainConfig, start: Path, place: Path) -> TrainConfig:
    """Which are read last of all."""
    damaged = shutil.copytree(start, place)
    file = min((damaged / "checkpoints/60/model").rglob("d/*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    shutil.rmtree(damaged / "checkpoints/30")
    return replace(config, init_from=str(damaged))


def refuse_step(config: TrainConfig, start: Path, place: Path) -> TrainConfig:
    return replace(config, resume=7)


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (refuse_mesh, "12 sequences per micro-batch do not split over 8 devices"),
        (refuse_questions, "absent.txt"),
        (refuse_split, "no files of the split .val."),
        (refuse_weights, "has changed since it was written"),
        (refuse_step, "--resume=7: .* There are: none"),
    ],
)
def test_refused_start_leaves_what_was_there(
    finished: TrainConfig,
    shards: Path,
    tmp_path: Path,
    refuse: Any,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(shards, name="refused", output_dir=str(tmp_path / "new/runs"))
    config = refuse(config, finished.directory, tmp_path / "place")
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (tmp_path / "new").exists()
    config.directory.mkdir(parents=True)
    (config.directory / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=message):
        train(config)
    assert [path.name for path in config.directory.iterdir()] == ["notes.txt"]
    assert "reference: computing" not in capsys.readouterr().out


@pytest.mark.parametrize("is_by_another", [False, True])
@pytest.mark.parametrize("is_over", [False, True])
def test_refused_start_removes_only_what_gptjax_has_written_in_it(
    tmp_path: Path, is_over: bool, is_by_another: bool
) -> None:
    """Others may write into the directory meanwhile, and a run that has begun is no start.

    Where another process is refused, a thread ends this one, which leaves no block.
    """
    run = tmp_path / "new" / "run"
    own = {".lock", "console.log", "reference/0/train.npy"}

    def start(others: set[str]) -> None:
        with hold_run(run) as end_start:
            (run / "checkpoints").mkdir()
            for name in ("console.log", "reference/0/train.npy", *others):
                (run / name).parent.mkdir(parents=True, exist_ok=True)
                (run / name).write_text("")
            if is_over:
                end_start()
            if is_by_another:
                undo_start()
            raise RuntimeError("refused") if is_by_another else UserError("refused")

    for others in (set(), {"notes.txt", "export/model.bin", "metrics.jsonl.before", "checkpoints/1"}):
        with pytest.raises((UserError, RuntimeError), match="refused"):
            start(others)
        left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        assert left == (own if is_over else set()) | others
        assert is_over or others or not (tmp_path / "new").exists()
        shutil.rmtree(tmp_path / "new", ignore_errors=True)


def test_files_of_others_that_a_run_would_replace_are_refused(tmp_path: Path) -> None:
    """An export has a config.json and its sums, a project perhaps a config.py."""
    for name, content in {"config.json": '{"model_type": "gpt2"}', "config.py": "", "checksums.json": "{}"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"has no run, but {name}, which a run would replace"):
            check_place(tmp_path)
        (tmp_path / name).rename(tmp_path / f"{name}.old")
    (tmp_path / "console.log").touch()  # by `tee`, and only added to
    check_place(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_json(tiny_config(tmp_path))))
    (tmp_path / "tokenizer.json").touch()
    check_place(tmp_path)


@dataclass(frozen=True)
class Opening:
    """An evaluator of one's own, whose opening ends the start."""

    def should_run(self, step: int, *, steps: int) -> bool:
        return step == steps

    def open(self, context: EvalContext) -> OpenEvaluator:
        raise UserError(f"opened with {type(context.frozen).__name__}")


def test_evaluators_open_once_in_a_run_that_is_held_with_its_frozen_model(finished: TrainConfig, tmp_path: Path):
    config = replace(
        finished,
        name="opened",
        data=write_pairs(tmp_path / "pairs"),
        model=replace(finished.model, intra_document_mask=True),
        init_from=str(finished.directory),
        objective=DPO(store_reference=False),
        evaluators=(Opening(),),
    )
    with run_lock(config.directory), pytest.raises(UserError, match="another process is training"):
        train(config)
    with pytest.raises(UserError, match="opened with GPT"):
        train(config)


def test_resume_never_refuses_an_existing_run(finished: TrainConfig) -> None:
    with pytest.raises(UserError, match="has a checkpoint at step 60 and resume is `never`"):
        train(replace(finished, resume="never"))
    with pytest.raises(UserError, match="is at step 60 already, beyond steps 30"):
        train(replace(finished, steps=30))


def test_best_metric_that_nothing_measures_is_refused_at_the_start(shards: Path) -> None:
    checkpoint = CheckpointConfig(best_metric="val_los")
    config = tiny_config(shards, name="misspelt", steps=2, checkpoint=checkpoint, model={"num_layers": 1})
    with pytest.raises(UserError, match=r"'val_los', which no evaluator measures: .* There are: val_bpb, val_loss"):
        train(replace(config, evaluators=(ValidationLoss(tokens=16), Samples())))
    assert not read_lines(config.directory)


def test_data_of_an_evaluator_is_checked_at_a_save(tmp_path: Path) -> None:
    own, other = (write_text_shards(tmp_path / name) for name in ("own", "other"))
    data = TokenShards(path=str(other))
    config = tiny_config(own, name="checked", evaluators=(ValidationLoss(data=data),))
    check = make_data_check(config)
    check()
    (other / "val_000000.bin").unlink()
    with pytest.raises(UserError, match=r"other/val_000000\.bin"):
        check()
