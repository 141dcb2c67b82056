import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, tiny_config, tokenizer

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.model.gpt import GPT
from gptjax.run_dir import RunDir, merge_model_config, run_lock, write_imported_run, write_run_files
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Chars
from gptjax.training.checkpoint_format import flatten_by_name


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: GPT(MODEL, key=jax.random.key(0)))()


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "imported"
    write_imported_run(directory, model=model, tokenizer=tokenizer())
    return directory


def test_an_imported_model_opens_as_a_run(directory, model):
    run = RunDir.open(str(directory))
    assert (run.config.name, run.config.directory, run.config.model) == ("imported", directory, MODEL)
    assert run.require_tokenizer().fingerprint == tokenizer().fingerprint
    assert run.find_step() == run.find_step(0) == 0
    for name, array in flatten_by_name(run.load_model()).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(flatten_by_name(model)[name]))


def test_weights_come_sharded_and_for_a_shorter_context(directory, model):
    mesh = MeshConfig(fsdp=2, tensor=2)
    with mesh.activate():
        sharded = RunDir.open(directory).load_model(mesh=mesh)
        shorter = RunDir.open(directory).load_model(mesh=mesh, context_length=5)
    assert sharded.tokens[...].sharding.spec == mesh.weight_spec("VD")
    np.testing.assert_array_equal(np.asarray(sharded.tokens[...]), np.asarray(model.tokens[...]))
    assert shorter.positions.shape == (5, 32)
    np.testing.assert_array_equal(np.asarray(shorter.positions[...]), np.asarray(model.positions[...])[:5])


def test_nothing_is_written_over(directory, model):
    with pytest.raises(UserError, match="exists and is not empty"):
        write_imported_run(directory, model=model, tokenizer=None)


def test_one_process_at_a_time_writes_to_a_run(tmp_path):
    with (
        run_lock(tmp_path / "run"),
        pytest.raises(UserError, match="another process is training"),
        run_lock(tmp_path / "run"),
    ):
        pass
    with run_lock(tmp_path / "run"):
        pass


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.json"):
        RunDir.open(tmp_path)
    (tmp_path / "config.json").write_text("{half")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        RunDir.open(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"class": "Popen", "args": "ls"}))
    with pytest.raises(UserError, match="has the class 'Popen'; known here"):
        RunDir.open(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"class": "TrainConfig", "stepz": 3}))
    with pytest.raises(UserError, match="TrainConfig has no field 'stepz'"):
        RunDir.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "does not hold the config of a run"), ("{}", "has the class 'None'"), ('{"class": "Batch"}', "of a run")],
)
def test_a_config_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        RunDir.open(tmp_path)


def test_another_tokenizer_in_its_place_is_noticed(directory, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    Chars.from_text("".join(map(chr, range(200)))).save(copy)
    with pytest.raises(UserError, match=r"tokenizer\.json has 200 tokens, the model only 48"):
        RunDir.open(copy).load_model()


def test_a_config_file_is_kept_but_never_executed(tmp_path):
    write_run_files(tmp_path, TrainConfig(name="x"), None, source="raise SystemExit('executed')")
    run = RunDir.open(tmp_path)
    assert run.config.name == "x"
    assert run.tokenizer is None
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        run.require_tokenizer()
    with pytest.raises(UserError, match="has no complete checkpoint"):
        run.find_step()


def test_files_are_replaced_and_no_temporary_ones_stay(tmp_path):
    for steps in (5, 6):
        write_run_files(tmp_path, replace(tiny_config(tmp_path / "shards"), steps=steps), tokenizer())
    assert RunDir.open(tmp_path).config.steps == 6
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "environment.json", "tokenizer.json"}


def test_weights_settle_the_shape_and_the_config_the_rest(directory):
    own = {"dropout": 0.5, "dtype": "bfloat16", "remat": "full"}
    wanted = replace(MODEL, num_layers=7, embed_dim=64, vocab_size=None, tie_embeddings=False, context_length=99, **own)
    assert merge_model_config(RunDir.open(directory), wanted) == replace(MODEL, **own)
    assert merge_model_config(RunDir.open(directory), replace(MODEL, context_length=3)).context_length == 3


def test_a_rotary_base_is_the_weights_unless_another_is_said(tmp_path):
    """And how the weights were once drawn is theirs as well: the wanted fields may not even fit their shape."""
    theirs = replace(MODEL, positions="rotary", rotary_base=500.0)
    write_run_files(tmp_path, TrainConfig(name="x", model=theirs), None)
    wanted = replace(
        MODEL, tie_embeddings=False, x0_mix=True, init=replace(MODEL.init, x0_mix=(0.5, 0.5), head_std=0.1)
    )
    assert merge_model_config(RunDir.open(tmp_path), wanted) == theirs
    other = replace(wanted, positions="rotary", rotary_base=10_000.0)
    assert merge_model_config(RunDir.open(tmp_path), other) == replace(theirs, rotary_base=10_000.0)


def test_windows_are_the_weights_unless_others_are_said(tmp_path):
    theirs = replace(MODEL, positions="rotary", window_pattern="SL", short_window=4, long_window=12)
    write_run_files(tmp_path, TrainConfig(name="x", model=theirs), None)
    longer = replace(MODEL, positions="rotary", context_length=64)
    assert merge_model_config(RunDir.open(tmp_path), longer) == replace(theirs, context_length=64)
    wider = replace(longer, window_pattern="SL", short_window=8, long_window=64)
    assert merge_model_config(RunDir.open(tmp_path), wider) == wider
    whole = replace(longer, window_pattern="LL")
    assert merge_model_config(RunDir.open(tmp_path), whole) == whole
    learned = replace(theirs, positions="learned")
    write_run_files(tmp_path / "learned", TrainConfig(name="x", model=learned), None)
    assert merge_model_config(RunDir.open(tmp_path / "learned"), wider) == replace(
        learned, window_pattern="SL", short_window=8, long_window=64
    )


def test_rotary_weights_may_start_a_run_with_a_longer_context(tmp_path):
    config = replace(MODEL, positions="rotary")
    write_imported_run(tmp_path / "short", model=jax.jit(lambda: GPT(config, key=jax.random.key(0)))(), tokenizer=None)
    wanted = replace(config, context_length=2 * MODEL.context_length)
    assert merge_model_config(RunDir.open(tmp_path / "short"), wanted) == wanted
    assert merge_model_config(RunDir.open(tmp_path / "short"), replace(wanted, rotary_base=5e5)).rotary_base == 5e5
    longer = RunDir.open(tmp_path / "short").load_model(context_length=2 * MODEL.context_length)
    assert longer(jnp.zeros((1, 2 * MODEL.context_length), jnp.int32)).shape[1] == 2 * MODEL.context_length
