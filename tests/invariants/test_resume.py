"""Invariant: a run that was stopped, in whatever way, and started again equals a run that was never stopped."""

import functools
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import edit_manifest
from models import make_model
from scored import draw_documents, draw_pairs, write_documents
from tiny import ALPHABET, read_lines, start_entry_point, tiny_config, tokenizer, write_config, write_text_shards

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.checkpoints.integrity import complete_steps
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.files import file_sha256
from gptjax.data.config import TokenShards
from gptjax.data.preferences import PreferenceShards
from gptjax.data.shards import open_shard, write_shard
from gptjax.evaluators.evaluator import EvalContext, OpenEvaluator
from gptjax.evaluators.validation import ValidationLoss
from gptjax.finetuning.lora import LoRA
from gptjax.metrics.logger import LogConfig, MetricLogger
from gptjax.objectives.distillation import Distillation
from gptjax.objectives.objective import SFT, NextToken, Objective, get_row_kind
from gptjax.objectives.preference import DPO, IPO, ORPO, SimPO
from gptjax.optim import EMA, AdamW, Muon
from gptjax.optim.schedules import Constant
from gptjax.process.console import safe_console
from gptjax.runs.run_dir import RunDir, write_imported_run
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Chars
from gptjax.train import main
from gptjax.training.stages import Stage

STAGES = (Stage(3, batch_size=16, grad_accum=4, lr_scale=1.5, long_window=3), Stage(5))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("resume") / "shards")


@pytest.fixture(scope="module")
def whole(shards: Path) -> TrainConfig:
    """A finished run of ten steps with everything that has a state, a schedule or a random key."""
    config = tiny_config(
        shards,
        name="whole",
        model={"num_layers": 1, "dropout": 0.1},
        optimizer=Muon(
            ns_dtype="float32",
            normuon_beta2=0.9,
            momentum_schedule=Constant(warmup_steps=7),
            weight_decay=0.1,
            cautious_decay=True,
        ),
        grad_accum=2,
        ema=EMA(decay=0.8),
        stages=STAGES,
        evaluators=(ValidationLoss(every=10, tokens=64),),
    )
    assert train(config) == 0
    return config


def train_until_signal(config: TrainConfig, *, step: int, number: int) -> int:
    """Train, and send this process a signal while `step` is computed; return the exit code."""
    log_step = MetricLogger.step

    def log_step_and_signal(self: MetricLogger, logged: int, metrics: Any) -> None:
        log_step(self, logged, metrics)
        if logged == step:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricLogger, "step", log_step_and_signal)
        return train(config)


def copy_run(config: TrainConfig, name: str, *, without_step: int | None = None) -> TrainConfig:
    """Copy a run directory, without one of its checkpoints, and return the config of the copy."""
    copy = replace(config, name=name)
    shutil.copytree(config.directory, copy.directory)
    if without_step is not None:
        shutil.rmtree(copy.directory / "checkpoints" / str(without_step))
    return copy


def read_weights(config: TrainConfig, *, ema: bool) -> dict[str, np.ndarray]:
    model = RunDir.open(config.directory).load_model(ema=ema)
    return {name: np.asarray(array) for name, array in flatten_by_name(model).items()}


def read_losses(config: TrainConfig) -> np.ndarray:
    """(step, loss) of every training record."""
    return np.array(read_lines(config.directory))


# Resuming


@pytest.mark.slow
def test_run_stopped_twice_equals_the_whole_run(whole: TrainConfig, capsys: pytest.CaptureFixture[str]):
    """Stopped where a stage begins and in the middle of one; equal to the bit."""
    config = replace(whole, name="stopped")
    assert train_until_signal(config, step=3, number=signal.SIGTERM) == 143
    assert RunDir.open(config.directory).find_step() == 3
    assert train_until_signal(config, step=4, number=signal.SIGINT) == 130
    assert train(config) == 0
    assert capsys.readouterr().out.count("resuming") == 2
    for name in ("loss", "tokens", "epoch", "val_loss"):
        assert read_lines(config.directory, name) == read_lines(whole.directory, name), name
    assert [step for step, _ in read_lines(config.directory)] == list(range(1, 11))
    for ema in (False, True):
        weights, wanted = (read_weights(run, ema=ema) for run in (config, whole))
        for name, array in weights.items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def test_resume_on_other_meshes_gives_the_same_losses(whole: TrainConfig):
    """From one device to four that share the weights, and on to two that do not."""
    config = copy_run(whole, "moved", without_step=10)
    fsdp = replace(config, mesh=MeshConfig(fsdp=4, data=1), grad_accum=1)
    assert train_until_signal(fsdp, step=8, number=signal.SIGTERM) == 143
    assert train(replace(config, mesh=MeshConfig(data=2))) == 0
    np.testing.assert_allclose(read_losses(config), read_losses(whole), atol=1e-5, rtol=0)
    average, wanted = (read_weights(run, ema=True) for run in (config, whole))
    for name, array in average.items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-3, err_msg=name)


def test_finished_run_is_not_changed(whole: TrainConfig):
    before = (whole.directory / "metrics.jsonl").read_bytes()
    assert train(whole) == 0
    assert (whole.directory / "metrics.jsonl").read_bytes() == before


# Changes between the runs


@pytest.mark.parametrize(
    ("change", "words", "unforcible"),
    [
        (lambda c: replace(c, model=replace(c.model, embed_dim=64)), "model.embed_dim: 32 → 64", "the model has other"),
        (lambda c: replace(c, model=replace(c.model, dropout=0.2)), "model.dropout: 0.1 → 0.2", None),
        (
            lambda c: replace(c, optimizer=replace(c.optimizer, learning_rate=0.01)),
            "optimizer.learning_rate: 0.02 → 0.01",
            None,
        ),
        (lambda c: replace(c, optimizer=AdamW()), "optimizer: Muon(", "the optimizer has other"),
        (lambda c: replace(c, seed=1), "seed: 1337 → 1", None),
        (lambda c: replace(c, batch_size=16), "batch_size: 8 → 16", None),
    ],
)
def test_resume_refuses_and_names_a_change_and_advises_force_where_it_can_work(
    whole: TrainConfig, change: Callable[[TrainConfig], TrainConfig], words: str, unforcible: str | None
):
    with pytest.raises(UserError) as error:
        train(replace(change(whole), steps=12))
    assert words in str(error.value)
    forced = "resume in any case with --resume=force" if unforcible is None else f"{unforcible} arrays"
    assert forced in str(error.value)
    assert ("not even with --resume=force" in str(error.value)) == (unforcible is not None)
    if unforcible is not None:
        with pytest.raises(UserError, match=f"^{unforcible} arrays than the checkpoint.*not even with --resume=force"):
            train(replace(change(whole), steps=12, resume="force"))


@dataclass(frozen=True)
class Unopened:
    """An evaluator of one's own that is refused when it is opened."""

    def should_run(self, step: int, *, steps: int) -> bool:
        return step == steps

    def open(self, context: EvalContext) -> OpenEvaluator:
        raise UserError("opened late")


def test_resume_refuses_fewer_steps_and_never_and_leaves_the_run_as_it_was(whole: TrainConfig):
    config = copy_run(whole, "refused")
    (config.directory / "checkpoints/10/metadata/metadata").unlink()
    (config.directory / "checkpoints/7.unfinished").mkdir()
    (config.directory / "console.log").write_text("of the run\n")
    before = {path: path.is_file() and path.read_bytes() for path in config.directory.rglob("*")}
    for changed, message in (
        (replace(config, steps=4), "step 5 already, beyond steps 4"),
        (replace(config, resume="never"), "resume is `never`"),
        (replace(config, evaluators=(Unopened(),)), "opened late"),  # after the checkpoint was chosen
        (replace(config, evaluators=(Unopened(),), resume=5), "opened late"),
    ):
        with safe_console(), pytest.raises(UserError, match=message):
            train(changed)
        left = {path: path.is_file() and path.read_bytes() for path in config.directory.rglob("*")}
        assert {path: content for path, content in left.items() if path.name != ".lock"} == {
            path: content for path, content in before.items() if path.name != ".lock"
        }


def copy_shards(config: TrainConfig, directory: Path) -> TokenShards:
    assert isinstance(config.data, TokenShards)
    assert config.data.path is not None
    shutil.copytree(config.data.path, directory)
    return replace(config.data, path=str(directory))


def test_resume_refuses_other_training_data(whole: TrainConfig, tmp_path: Path):
    data = replace(whole.data, path=str(write_text_shards(tmp_path / "shards", lines=121)))
    with pytest.raises(UserError, match=r"\n  data: [0-9a-f]{12}… → [0-9a-f]{12}…"):
        train(replace(whole, data=data))


def test_resume_refuses_other_validation_data(whole: TrainConfig, tmp_path: Path):
    """Unless nothing is evaluated on it."""
    data = copy_shards(whole, tmp_path / "shards")
    file = tmp_path / "shards" / "val_000000.bin"
    write_shard(file, np.array(open_shard(file)[::-1]))
    edit_manifest(file.parent, lambda content: content["files"][file.name].update(sha256=file_sha256(file)))
    with pytest.raises(UserError, match=r"\n  validation: [0-9a-f]{12}… → [0-9a-f]{12}…"):
        train(replace(whole, data=data))
    assert train(replace(copy_run(whole, "not evaluated"), data=data, evaluators=())) == 0


def test_resume_refuses_another_tokenizer(whole: TrainConfig, tmp_path: Path):
    """The same ids stand for another text."""
    data = copy_shards(whole, tmp_path / "shards")
    other = Chars({char: i for i, char in enumerate(reversed(ALPHABET))})
    other.save(tmp_path / "shards")
    edit_manifest(tmp_path / "shards", lambda content: content.update(fingerprint=other.fingerprint))
    with pytest.raises(UserError, match=rf"\n  tokenizer: [0-9a-f]{{12}}… → {other.fingerprint[:12]}…"):
        train(replace(whole, data=data))


def test_resume_reports_changes_that_are_harmless_or_forced(whole: TrainConfig, capsys: pytest.CaptureFixture[str]):
    config = replace(
        copy_run(whole, "changed"),
        steps=11,
        grad_accum=4,
        evaluators=(),
        log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=1),
    )
    assert train(config) == 0
    printed = capsys.readouterr().out
    for line in (
        "steps: 10 → 11",
        "grad_accum: 2 → 4",
        "evaluators: (",
        "log.every: 10 → 1",
        "checkpoint.every: 5 → 1",
    ):
        assert f"changed: {line}" in printed
    assert [step for step, _ in read_lines(config.directory)] == list(range(1, 12))
    forced = replace(config, optimizer=replace(config.optimizer, learning_rate=0.01), resume="force")
    assert train(forced) == 0
    assert "changed: optimizer.learning_rate: 0.02 → 0.01" in capsys.readouterr().out


# Processes that receive signals


def start_and_signal(file: Path, number: int) -> tuple[int, str]:
    """Run the command, send a signal once it prints a step, and return its exit code and the rest of its output."""
    process = start_entry_point("train", f"--config={file}")
    for line in process.stdout or ():
        if line.startswith("step "):
            process.send_signal(number)
            break
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def test_signalled_command_resumes_without_loss_or_repetition(shards: Path, tmp_path: Path):
    config = tiny_config(
        shards,
        name="signalled",
        steps=100_000,
        model={"num_layers": 1},
        checkpoint=CheckpointConfig(every=None),
        log=LogConfig(every=1),
    )
    file, stopped_at = write_config(tmp_path / "config.py", config), 0
    for number, wanted_code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        code, output = start_and_signal(file, number)
        assert code == wanted_code, output
        assert "again to stop at once" in output
        assert f"resume    python -m gptjax.train --config={file}" in output
        assert "Traceback" not in output
        before, stopped_at = stopped_at, RunDir.open(config.directory).find_step()
        assert before < stopped_at
        assert f"saved step {stopped_at} in {config.directory}" in output
        assert [step for step, _ in read_lines(config.directory)] == list(range(1, stopped_at + 1))
    with pytest.raises(SystemExit) as done:
        main([f"--config={file}", f"--steps={stopped_at + 5}"])
    assert done.value.code == 0
    assert [step for step, _ in read_lines(config.directory)] == list(range(1, stopped_at + 6))


@functools.cache
def get_fork_server() -> Any:
    """The fork server imports once all that trains, and forks for every run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gptjax.runs.trainer", "orbax.checkpoint", "grain", "tyro"])
    return context


def start_process(file: Path, name: str, steps: int) -> Any:
    words = [f"--config={file}", f"--name={name}", f"--steps={steps}"]
    process = get_fork_server().Process(target=main, args=(words,))
    process.start()
    return process


def read_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_repeatedly(config: TrainConfig, *, kills: int, seed: int) -> None:
    """Kill a run again and again, let it finish, and compare it with a run that was never killed.

    No machine is so fast that the run ends before it is killed. How far it comes decides how long both are.
    """
    directory = Path(config.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    file = write_config(directory / "config.py", config)
    draw, metrics = random.Random(seed), directory / "killed" / "metrics.jsonl"
    for attempt in range(kills):
        size = read_size(metrics)
        process = start_process(file, "killed", 100_000)
        # Every third is killed while it starts, the others while they train and write checkpoints.
        while attempt % 3 and process.is_alive() and read_size(metrics) == size:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.4 if attempt % 3 else 1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    steps = max(complete_steps(directory / "killed"), default=0) + 40
    for name in ("killed", "uninterrupted"):
        process = start_process(file, name, steps)
        process.join()
        assert process.exitcode == 0
    for name in ("loss", "val_loss", "reward_margin", "val_reward_margin", "kl"):
        assert read_lines(directory / "killed", name) == read_lines(directory / "uninterrupted", name)
    assert [step for step, _ in read_lines(directory / "killed")] == list(range(1, steps + 1))
    one, other = (read_weights(replace(config, name=name), ema=False) for name in ("killed", "uninterrupted"))
    for name, weight in other.items():
        np.testing.assert_array_equal(one[name], weight, err_msg=name)


def make_killed_config(shards: Path, directory: Path, **changes: Any) -> TrainConfig:
    """Its learning rate does not depend on the number of steps."""
    model = {"num_layers": 1} | changes.pop("model", {})
    return tiny_config(
        shards,
        output_dir=str(directory),
        model=model,
        optimizer=AdamW(learning_rate=3e-3, schedule=Constant(warmup_steps=2)),
        checkpoint=CheckpointConfig(every=7),
        evaluators=(ValidationLoss(every=20, tokens=64),),
        **changes,
    )


def test_killed_run_ends_like_an_uninterrupted_one(shards: Path, tmp_path: Path):
    kill_repeatedly(make_killed_config(shards, tmp_path), kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_run_killed_many_times_ends_like_an_uninterrupted_one(shards: Path, tmp_path: Path, seed: int):
    kill_repeatedly(make_killed_config(shards, tmp_path), kills=15, seed=seed)


ALL, ADAPTERS = LoRA(), LoRA(rank=2)
OBJECTIVES = [
    ("next_token", NextToken(), ADAPTERS),
    ("sft", SFT(), ALL),
    ("dpo_stored", DPO(), ALL),
    ("dpo_stored", DPO(), ADAPTERS),
    ("dpo_computed", DPO(store_reference=False), ALL),
    ("ipo_computed", IPO(store_reference=False), ADAPTERS),
    ("simpo", SimPO(), ALL),
    ("orpo", ORPO(), ADAPTERS),
    ("distillation", Distillation(), ALL),
    ("distillation", Distillation(), ADAPTERS),
]
"""Each objective, and what lies beside the checkpoint, stored or computed, both with and without adapters."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "lora"),
    [pytest.param(*row, id=f"{name}-{'adapters' if row[1].enabled else 'all'}") for name, *row in OBJECTIVES],
)
def test_killed_run_of_every_objective_ends_like_an_uninterrupted_one(objective: Objective, lora: LoRA, tmp_path: Path):
    pairs = get_row_kind(objective) == "pairs"
    draw = draw_pairs if pairs else draw_documents
    splits = {split: draw(200, seed=seed) for seed, split in enumerate(("train", "val"))}
    shards = write_documents(tmp_path / "shards", splits, kind="preferences" if pairs else "chat")
    data = PreferenceShards(str(shards)) if pairs else TokenShards(str(shards), packing="best_fit_truncate")
    start = tmp_path / "start"
    config = make_killed_config(
        shards, tmp_path / "runs", model={"intra_document_mask": True}, data=data, init_from=str(start)
    )
    write_imported_run(start, model=make_model(config.model), tokenizer=tokenizer())
    if isinstance(objective, Distillation):
        objective = replace(objective, teacher=str(start))
    kill_repeatedly(replace(config, objective=objective, lora=lora), kills=6, seed=3)
