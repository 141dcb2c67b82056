"""The example of docs/extending.md: a run made of a user's own classes, from its first step to its export."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import read_lines, start_entry_point, tiny_config, write_config, write_text_shards

from gptjax import convert, evaluate, generate, sample, train
from gptjax.config import TrainConfig, load_config
from gptjax.core.errors import UserError
from gptjax.model.layers import ACTIVATIONS
from gptjax.model.positions import POSITIONS, LearnedPositions
from gptjax.runs.run_dir import RunDir
from gptjax.runs.trainer import train as train_config

EXAMPLE = Path(__file__).parents[1] / "docs" / "extending.md"
STEPS = 6


def read_example(name: str) -> str:
    """The code that the page says to save under this name."""
    pattern = rf"as `{re.escape(name)}`\.\n\n```python\n(.*?)```"
    [code] = re.findall(pattern, EXAMPLE.read_text(encoding="utf-8"), re.DOTALL)
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds only mine.py."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "mine.py").write_text(read_example("mine.py"))
    return folder


def run_train(folder: Path, *words: str, config: str = "mine.py") -> int | None:
    """The exit code of the entry point, given a config of the folder."""
    with pytest.raises(SystemExit) as done:
        train.main([f"--config={folder / config}", f"--output-dir={folder / 'runs'}", "--mesh=single", *words])
    return done.value.code  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run of STEPS steps that stopped in the middle and was resumed with the same file."""
    assert run_train(folder, f"--steps={STEPS - 2}", "--checkpoint.every=2") == 0
    assert run_train(folder, f"--steps={STEPS}", "--checkpoint.every=2") == 0
    return folder / "runs" / "mine"


@pytest.fixture
def without_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run alone, in a working directory without mine.py. Its own Python files would fail if executed."""
    copy = tmp_path / "mine"
    shutil.copytree(run, copy)
    for name in ("config.py", "mine.py", "__init__.py"):
        (copy / name).write_text("raise AssertionError('a file of the run directory was executed')\n")
    monkeypatch.chdir(copy)
    return copy


def test_resumed_run_repeats_the_uninterrupted_losses(folder: Path, run: Path) -> None:
    assert run_train(folder, f"--steps={STEPS}", "--name=uninterrupted") == 0
    losses = read_lines(folder / "runs" / "uninterrupted")
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert read_lines(run) == losses
    rows = (run / "loss.csv").read_text().splitlines()
    assert [int(row.partition(",")[0]) for row in rows] == list(range(1, STEPS + 1))
    assert [step for step, _ in read_lines(run, "accuracy")] == [0, STEPS - 2, STEPS]
    assert json.loads((run / "config.json").read_text())["optimizer"]["class"] == "mine:Lion"


@pytest.mark.slow
def test_killed_run_repeats_the_uninterrupted_losses(folder: Path) -> None:
    words = ["--mesh=single", "--name=killed", "--checkpoint.every=5"]
    paths = [f"--config={folder / 'mine.py'}", f"--output-dir={folder / 'runs'}"]
    process = start_entry_point("train", *paths, *words, "--steps=1000000")
    checkpoints = folder / "runs" / "killed" / "checkpoints"
    try:
        while not any(path.name.isdigit() for path in checkpoints.glob("*")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    steps = RunDir.open(checkpoints.parent).find_step() + 10
    assert run_train(folder, *words, f"--steps={steps}") == 0
    assert run_train(folder, f"--steps={steps}", "--name=alive") == 0
    assert read_lines(folder / "runs" / "killed") == read_lines(folder / "runs" / "alive")


def test_run_is_sampled_evaluated_and_exported_without_the_file(
    without_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sample.main([f"--checkpoint={without_file}", "--prompt=3+4=", "--max-new-tokens=5"])
    text = capsys.readouterr().out
    assert text.startswith("3+4=")
    assert len(text) == len("3+4=") + 5 + 1
    (tmp_path / "sums.txt").write_text("3+4=7;1+1=2;" * 9)
    evaluate.main([f"--checkpoint={without_file}", f"--text={tmp_path / 'sums.txt'}", "--mesh=single"])
    assert "| nats_per_token | 2." in capsys.readouterr().out
    convert.main(["to-hf", f"--checkpoint={without_file}", f"--output={tmp_path / 'hf'}", "--no-verify"])
    assert {path.name for path in (tmp_path / "hf").iterdir()} >= {"config.json", "model.safetensors"}


def test_config_without_import_is_refused(without_file: Path) -> None:
    run = RunDir.open(without_file)
    assert run.model_config.vocab_size == len(run.require_tokenizer().alphabet)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match=r"config\.data has the class 'mine:Sums', which is not part .*--import"):
        _ = run.config
    with pytest.raises(UserError, match=r"data has the class 'mine:Sums'.*--import"):
        _ = run.data


def test_config_with_import_is_the_config(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = RunDir.open(run, imports=["mine.py"]).config
    assert repr(config.optimizer) == repr(load_config("mine.py").optimizer)
    assert (config.name, config.steps) == ("mine", STEPS)
    assert [type(part).__name__ for part in (config.data, config.objective)] == ["Sums", "LabelSmoothing"]


def test_nothing_is_imported_from_the_run_directory(without_file: Path) -> None:
    with pytest.raises(UserError):
        _ = RunDir.open(without_file).config
    files = [str(getattr(module, "__file__", "")) for module in sys.modules.values()]
    assert not [file for file in files if file.startswith(str(without_file))]


def test_resume_with_a_plain_config_is_refused(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_config(folder / "plain.py", tiny_config(write_text_shards(tmp_path / "shards"), name="mine"))
    assert run_train(folder, config="plain.py") == 2
    error = capsys.readouterr().err
    assert f"{run} cannot be resumed from step {STEPS}: its config.data has the class 'mine:Sums'" in error
    assert "--import=mine" in error
    assert "if the file is lost, copy config.py to a file of the old name" in error


def test_resume_with_the_saved_copy_is_refused(folder: Path, run: Path, capsys: pytest.CaptureFixture) -> None:
    """The copy is another module, so its classes are others, even if the first ones are imported as well."""
    assert run_train(folder, config="runs/mine/config.py") == 2
    assert "its config.data has the class 'mine:Sums', which is not part of gptjax" in capsys.readouterr().err
    assert run_train(folder, f"--import={folder / 'mine.py'}", config="runs/mine/config.py") == 2
    error = capsys.readouterr().err
    assert "optimizer: mine:Lion → config:Lion" in error
    assert "objective: mine:LabelSmoothing → config:LabelSmoothing" in error


LOCAL_CLASS = """

def make_optimizer():
    @dataclass(frozen=True)
    class Local(Lion):
        pass

    return Local()


from dataclasses import replace

config = replace(config, optimizer=make_optimizer(), name="local")
"""


def test_class_inside_a_function_is_refused_before_training(folder: Path, capsys: pytest.CaptureFixture) -> None:
    code = (folder / "mine.py").read_text() + LOCAL_CLASS
    (folder / "local.py").write_text(code)
    assert run_train(folder, config="local.py") == 2
    assert "Local is defined inside make_optimizer" in capsys.readouterr().err
    assert not (folder / "runs" / "local").exists()


def test_fields_of_own_classes_are_flags(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[TrainConfig] = []
    monkeypatch.setattr("gptjax.runs.trainer.train", lambda config, **_: configs.append(config) or 0)
    flags = ["--optimizer.learning-rate=3e-4", "--optimizer.schedule.warmup-steps=20", "--objective.share=0.2"]
    assert run_train(folder, *flags, "--evaluators.0.every=7") == 0
    [config] = configs
    assert (config.optimizer.learning_rate, config.optimizer.schedule.warmup_steps) == (3e-4, 20)  # pyright: ignore[reportAttributeAccessIssue]
    assert (config.objective.share, config.evaluators[0].every) == (0.2, 7)  # pyright: ignore[reportAttributeAccessIssue]


def test_own_activation_and_positions_are_trained_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ACTIVATIONS, "mish", jax.nn.relu)  # the file sets both; the end of the test takes them out
    monkeypatch.setitem(POSITIONS, "sinusoids", LearnedPositions)
    (tmp_path / "own_model.py").write_text(read_example("own_model.py"))
    own = load_config(tmp_path / "own_model.py").model
    shards = write_text_shards(tmp_path / "shards")
    changes = {"activation": own.activation, "positions": own.positions}
    config = tiny_config(shards, steps=2, model=changes)
    assert train_config(config) == 0
    monkeypatch.delitem(ACTIVATIONS, "mish")
    monkeypatch.delitem(POSITIONS, "sinusoids")
    with pytest.raises(UserError, match=r"activation is 'mish'; it must be one of .*--import"):
        _ = RunDir.open(config.directory).model_config
    model = RunDir.open(config.directory, imports=[str(tmp_path / "own_model.py")]).load_model()
    assert model.position_embedding is None
    prompt = np.arange(9)[None] % 5
    ids = generate(model, prompt, max_new_tokens=3, temperature=0.0)
    np.testing.assert_array_equal(ids[0, 9:], np.argmax(model(jnp.asarray(ids[:, :-1])), axis=-1)[0, 8:])
    one, other = (model(jnp.asarray(prompt[:, order]))[0, -1] for order in (np.arange(9), [1, 0, *range(2, 9)]))
    assert not np.allclose(one, other), "the order of earlier tokens counts"
