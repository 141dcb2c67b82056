import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from tiny import MODEL, flip_bit, tiny_config, tokenizer, write_text_shards

from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.checkpoints.weights import save_model
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.files import lock_file
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.runs.checkpoint_source import open_checkpoint
from gptjax.runs.run_dir import CHECKPOINTS, RunDir, warn_of_changed_files, write_imported_run, write_run_files
from gptjax.runs.run_lock import check_shared, run_lock
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.chat_template import CHAT_TEMPLATE_FILE, ChatTemplate
from gptjax.tokenization.tokenizer import Chars


def draw_model(config: GPTConfig) -> GPT:
    return jax.jit(lambda: GPT(config, key=jax.random.key(0)))()


@pytest.fixture(scope="module")
def model() -> GPT:
    return draw_model(MODEL)


@pytest.fixture(scope="module")
def directory(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "imported"
    write_imported_run(directory, model=model, tokenizer=tokenizer())
    return directory


def test_imported_run_opens_with_its_weights(directory: Path, model: GPT) -> None:
    run = RunDir.open(str(directory))
    assert (run.config.name, run.config.directory, run.config.model) == ("imported", directory, MODEL)
    assert run.require_tokenizer().fingerprint == tokenizer().fingerprint
    assert run.find_step() == run.find_step(0) == 0
    assert not run.has_ema()
    for name, array in flatten_by_name(run.load_model()).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(flatten_by_name(model)[name]))


def test_load_model_shards_weights_and_shortens_context(directory: Path, model: GPT) -> None:
    mesh = MeshConfig(fsdp=2, tensor=2)
    with mesh.activate():
        found = RunDir.open(directory).load_model(mesh=mesh, context_length=5)
    assert found.config.context_length == 5
    shardings = {
        name: array.sharding.spec
        for name, array in flatten_by_name(found).items()
        if array.shape == (MODEL.padded_vocab_size, MODEL.embed_dim)
    }
    assert list(shardings.values()) == [mesh.weight_spec("VD")]
    for name, array in flatten_by_name(model).items():
        loaded = np.asarray(flatten_by_name(found)[name])
        np.testing.assert_array_equal(loaded, np.asarray(array)[: len(loaded)])


def test_load_model_with_rotary_positions_extends_context(tmp_path: Path) -> None:
    model = draw_model(replace(MODEL, positions="rotary"))
    write_imported_run(tmp_path / "short", model=model, tokenizer=None)
    length = 2 * MODEL.context_length
    longer = RunDir.open(tmp_path / "short").load_model(context_length=length)
    assert jax.eval_shape(longer, jnp.zeros((1, length), jnp.int32)).shape[1] == length


def test_load_model_computes_in_the_wanted_dtype(directory: Path) -> None:
    compute = RunDir.open(directory).load_model(dtype="bfloat16").config.compute
    assert compute == replace(MODEL.compute, dtype="bfloat16")


def test_imported_run_never_overwrites_a_directory(directory: Path, model: GPT) -> None:
    with pytest.raises(UserError, match="exists and is not empty"):
        write_imported_run(directory, model=model, tokenizer=None)


def test_processes_that_do_not_share_the_directory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 of four has another directory of this name."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    gathered: list[np.ndarray] = []

    def gather(own: np.ndarray) -> np.ndarray:
        gathered.append(own)
        return np.array([True, bool(own), True, True])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    (tmp_path / ".lock").write_text("123")
    check_shared(tmp_path, 123)
    for content in ("124", "", "x"):
        (tmp_path / ".lock").write_text(content)
        with pytest.raises(UserError, match=f"{tmp_path}: process 1 has another directory .* --output-dir"):
            check_shared(tmp_path, 123, seconds=0.0)
    assert gathered == [True, False, False, False]


def test_run_lock_admits_one_holder_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lock(run), pytest.raises(UserError, match="another process is training"), run_lock(run):
        pass
    with run_lock(run):
        pass


def test_run_lock_is_never_held_by_a_file_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused start removes its lock and the directory while another command waits between opening and locking."""
    run, calls = tmp_path / "run", list[object]()

    def lock_late(file: IO[str]) -> None:
        calls.append(file)
        if len(calls) == 1:
            shutil.rmtree(run)
        lock_file(file)

    monkeypatch.setattr("gptjax.runs.run_lock.lock_file", lock_late)
    with run_lock(run) as made:
        assert made == [run]
        with pytest.raises(UserError, match="another process is training"), run_lock(run):
            pass
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is not a run directory: it has no config\.json"),
        ("{half", r"config\.json is not JSON"),
        ("[]", "does not hold the config of a run"),
        ("{}", "does not hold the config of a run"),
        ('{"class": "subprocess:Popen", "args": "ls"}', "does not hold the config of a run"),
        ('{"class": "gptjax.data.config:TokenShards"}', "does not hold the config of a run"),
        ('{"class": "TrainConfig"}', "an earlier gptjax, whose names are no longer read"),
        (
            '{"class": "gptjax.config:TrainConfig", "model": {"class": "subprocess:Popen"}}',
            "'subprocess:Popen', which is not part of gptjax",
        ),
    ],
)
def test_open_without_valid_config_names_the_fault(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        RunDir.open(tmp_path)


def test_config_with_unknown_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"class": "gptjax.config:TrainConfig", "stepz": 3}))
    with pytest.raises(UserError, match="TrainConfig has no field 'stepz'"):
        _ = RunDir.open(tmp_path).config


def test_larger_tokenizer_than_the_model_is_refused(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    Chars.from_text("".join(map(chr, range(200)))).save(copy)
    (copy / "checksums.json").unlink()  # a person did it
    with pytest.raises(UserError, match=r"tokenizer\.json has 200 tokens, the model only 48"):
        RunDir.open(copy).load_model()


def test_other_tokenizer_than_the_checkpoint_names_is_refused(directory: Path, model: GPT, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    save_model(copy / CHECKPOINTS, model, step=1, metadata={"fingerprints": {"tokenizer": "0" * 64}})
    with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer .* the checkpoint says 000000000000"):
        RunDir.open(copy).load_model(1)
    RunDir.open(copy).load_model(0)


def test_saved_config_file_is_never_executed(tmp_path: Path) -> None:
    write_run_files(tmp_path, TrainConfig(name="x"), None, source="raise SystemExit('executed')")
    run = RunDir.open(tmp_path)
    assert run.config.name == "x"
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        run.require_tokenizer()
    with pytest.raises(UserError, match="has no complete checkpoint"):
        run.find_step()


def test_run_files_are_replaced_without_temporary_files(tmp_path: Path) -> None:
    for steps in (5, 6):
        write_run_files(tmp_path, replace(tiny_config(tmp_path / "shards"), steps=steps), tokenizer())
    assert RunDir.open(tmp_path).config.steps == 6
    names = {"checksums.json", "config.json", "environment.json", "tokenizer.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def replace_by_pipe(path: Path) -> None:
    """Without the sums, which would tell that its size is wrong."""
    path.unlink()
    os.mkfifo(path)
    path.with_name("checksums.json").unlink()


@pytest.mark.parametrize("damage", [flip_bit, Path.unlink, lambda path: path.write_bytes(b""), replace_by_pipe])
def test_damaged_config_is_replaced_by_that_of_a_checkpoint(
    directory: Path, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(directory, tmp_path / "run")
    damage(copy / "config.json")
    assert open_checkpoint(copy).model_config == RunDir.open(directory).model_config
    warning = capsys.readouterr().err
    assert f"{copy}/config.json" in warning
    assert "The config of checkpoint 0 is used instead" in warning
    shutil.rmtree(copy / CHECKPOINTS / "0/metadata")
    with pytest.raises(UserError, match=r"config\.json .*No checkpoint has a copy"):
        RunDir.open(copy)


def test_damaged_tokenizer_is_an_error_and_a_removed_one_a_warning(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(directory, tmp_path / "run")
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match=rf"{copy}/tokenizer\.json has .* Put the right one back"):
        RunDir.open(copy)
    (copy / "tokenizer.json").unlink()
    assert RunDir.open(copy).tokenizer is None
    assert f"warning: {copy}/tokenizer.json is missing" in capsys.readouterr().err
    flip_bit(copy / "checksums.json")
    RunDir.open(copy)
    assert f"warning: {copy}/checksums.json is not as it was written" in capsys.readouterr().err


def test_run_that_goes_on_replaces_a_damaged_tokenizer_by_the_same_one_only(
    model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plain = tmp_path / "run", tokenizer()
    template = ChatTemplate(system_prompt="Be brief.")
    write_imported_run(run, model=model, tokenizer=plain.with_chat_template(template))
    content = (run / "tokenizer.json").read_text()
    for damage in (lambda file: file.write_text(content + " "), Path.unlink):
        damage(run / "tokenizer.json")
        found = RunDir.open(run, load_data_tokenizer=lambda: plain).require_tokenizer()
        assert (found.fingerprint, found.chat_template) == (plain.fingerprint, template)
        assert f"warning: {run}/tokenizer.json " in (said := capsys.readouterr().err)
        assert said.endswith("That of the data is used, which is the same\n")
        for other in (Chars.from_text("other"), None):
            with pytest.raises(UserError, match=rf"{run}/tokenizer\.json .* Put the right one back"):
                RunDir.open(run, load_data_tokenizer=lambda other=other: other)
    (run / "tokenizer.json").write_text(content)
    (run / CHAT_TEMPLATE_FILE).unlink()
    with pytest.raises(UserError, match=rf"{run}/{CHAT_TEMPLATE_FILE} is missing .* Put the right one back"):
        RunDir.open(run, load_data_tokenizer=lambda: plain)


def test_damaged_tokenizer_is_replaced_by_the_same_one_that_the_config_names(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the data, or of the run whose weights it began with; also by commands that only read."""
    shards = write_text_shards(tmp_path / "shards")
    for config, where in (
        (tiny_config(shards, name="one"), "the data"),
        (tiny_config(tmp_path / "gone", name="two", init_from=str(directory)), str(directory)),
    ):
        write_run_files(run := config.directory, config, tokenizer())
        for damage in (flip_bit, Path.unlink):
            damage(run / "tokenizer.json")
            assert RunDir.open(run).require_tokenizer().fingerprint == tokenizer().fingerprint
            said = capsys.readouterr().err
            assert said.startswith(f"warning: {run}/tokenizer.json ")
            assert said.endswith(f"That of {where} is used, which is the same\n")
    write_run_files(run := config.directory, replace(config, init_from=None), tokenizer())
    flip_bit(run / "tokenizer.json")
    with pytest.raises(UserError, match="Put the right one back"):
        RunDir.open(run)
    warn_of_changed_files(run)
    told = "tokenizer.json has changed since it was written: its SHA-256 differs. It is written again\n"
    assert capsys.readouterr().out.endswith(told)


def test_chat_template_is_among_the_sums(tmp_path: Path) -> None:
    template = ChatTemplate(system_prompt="Be brief.")
    write_run_files(tmp_path, tiny_config(tmp_path / "shards"), tokenizer().with_chat_template(template))
    RunDir.open(tmp_path)
    flip_bit(tmp_path / CHAT_TEMPLATE_FILE)
    with pytest.raises(UserError, match=CHAT_TEMPLATE_FILE):
        RunDir.open(tmp_path)


@pytest.mark.parametrize("place", ["core.files.os.fsync", "runs.run_dir.sum_files", "core.files.Path.replace"])
def test_run_files_that_cannot_be_written_damage_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Where the disk is full, all stay with their sums; after a kill, while they are replaced, none is called wrong."""
    template = ChatTemplate(system_prompt="Be brief.")
    write_run_files(tmp_path, tiny_config(tmp_path / "shards"), tokenizer().with_chat_template(template))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt if "replace" in place else OSError(errno.ENOSPC, "No space left on device")

    other = replace(tiny_config(tmp_path / "shards"), steps=77)
    with monkeypatch.context() as patch:
        patch.setattr(f"gptjax.{place}", stop)
        with pytest.raises((OSError, KeyboardInterrupt)) as error:
            write_run_files(tmp_path, other, tokenizer())
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if "replace" in place:
        assert before.pop("checksums.json")
    assert after == before
    if "fsync" in place:
        assert isinstance(error.value, OSError)
        assert error.value.filename == str(tmp_path / "tokenizer.json")
    write_run_files(tmp_path, other, tokenizer())
    assert RunDir.open(tmp_path).config.steps == 77
    assert set(before) - {path.name for path in tmp_path.iterdir()} == {CHAT_TEMPLATE_FILE}


def test_run_dir_without_open_is_a_mistake_that_is_named() -> None:
    with pytest.raises(TypeError, match=r"Write RunDir.open\('runs/mine'\)"):
        RunDir("runs/mine")  # pyright: ignore[reportCallIssue, reportArgumentType]
