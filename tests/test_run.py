import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, tiny_config, tokenizer

from gptjax.checkpoint import named
from gptjax.config import TrainConfig
from gptjax.errors import UserError
from gptjax.layout import Layout
from gptjax.model import GPT
from gptjax.run import Run, held, started_from, write_files, write_run
from gptjax.tokenizer import Chars


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: GPT(MODEL, key=jax.random.key(0)))()


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "imported"
    write_run(directory, model=model, tokenizer=tokenizer())
    return directory


def test_an_imported_model_opens_as_a_run(directory, model):
    run = Run.open(str(directory))
    assert (run.config.name, run.config.directory, run.config.model) == ("imported", directory, MODEL)
    assert run.needs_tokenizer().fingerprint == tokenizer().fingerprint
    assert run.step() == run.step(0) == 0
    for name, array in named(run.model()).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(named(model)[name]))


def test_weights_come_sharded_and_for_a_shorter_context(directory, model):
    layout = Layout(fsdp=2, tensor=2)
    with layout.active():
        sharded = Run.open(directory).model(layout=layout)
        shorter = Run.open(directory).model(layout=layout, context=5)
    assert sharded.tokens[...].sharding.spec == layout.weights("VD")
    np.testing.assert_array_equal(np.asarray(sharded.tokens[...]), np.asarray(model.tokens[...]))
    assert shorter.positions.shape == (5, 32)
    np.testing.assert_array_equal(np.asarray(shorter.positions[...]), np.asarray(model.positions[...])[:5])


def test_nothing_is_written_over(directory, model):
    with pytest.raises(UserError, match="exists and is not empty"):
        write_run(directory, model=model, tokenizer=None)


def test_one_process_at_a_time_writes_to_a_run(tmp_path):
    with held(tmp_path / "run"), pytest.raises(UserError, match="another process is training"), held(tmp_path / "run"):
        pass
    with held(tmp_path / "run"):
        pass


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.json"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text("{half")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"class": "Popen", "args": "ls"}))
    with pytest.raises(UserError, match="has the class 'Popen'; known here"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"class": "TrainConfig", "stepz": 3}))
    with pytest.raises(UserError, match="TrainConfig has no field 'stepz'"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "does not hold the config of a run"), ("{}", "has the class 'None'"), ('{"class": "Batch"}', "of a run")],
)
def test_a_config_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        Run.open(tmp_path)


def test_another_tokenizer_in_its_place_is_noticed(directory, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    Chars.from_text("".join(map(chr, range(200)))).save(copy)
    with pytest.raises(UserError, match=r"tokenizer\.json has 200 tokens, the model only 48"):
        Run.open(copy).model()


def test_a_config_file_is_kept_but_never_executed(tmp_path):
    write_files(tmp_path, TrainConfig(name="x"), None, source="raise SystemExit('executed')")
    run = Run.open(tmp_path)
    assert run.config.name == "x"
    assert run.tokenizer is None
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        run.needs_tokenizer()
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        run.step()


def test_files_are_replaced_and_no_temporary_ones_stay(tmp_path):
    for steps in (5, 6):
        write_files(tmp_path, replace(tiny_config(tmp_path / "shards"), steps=steps), tokenizer())
    assert Run.open(tmp_path).config.steps == 6
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "environment.json", "tokenizer.json"}


def test_weights_settle_the_shape_and_the_config_the_rest(directory):
    own = {"dropout": 0.5, "dtype": "bfloat16", "remat": "full"}
    wanted = replace(MODEL, num_layers=7, width=64, vocab_size=None, tied=False, context=99, **own)
    assert started_from(Run.open(directory), wanted) == replace(MODEL, **own)
    assert started_from(Run.open(directory), replace(MODEL, context=3)).context == 3


def test_a_rotary_base_is_the_weights_unless_another_is_said(tmp_path):
    """And how the weights were once drawn is theirs as well: the wanted fields may not even fit their shape."""
    theirs = replace(MODEL, positions="rotary", rotary_base=500.0)
    write_files(tmp_path, TrainConfig(name="x", model=theirs), None)
    wanted = replace(MODEL, tied=False, head_std=0.1, x0_mix=True, x0_init=(0.5, 0.5))
    assert started_from(Run.open(tmp_path), wanted) == theirs
    other = replace(wanted, positions="rotary", rotary_base=10_000.0)
    assert started_from(Run.open(tmp_path), other) == replace(theirs, rotary_base=10_000.0)


def test_windows_are_the_weights_unless_others_are_said(tmp_path):
    theirs = replace(MODEL, positions="rotary", windows="SL", short_window=4, long_window=12)
    write_files(tmp_path, TrainConfig(name="x", model=theirs), None)
    longer = replace(MODEL, positions="rotary", context=64)
    assert started_from(Run.open(tmp_path), longer) == replace(theirs, context=64)
    wider = replace(longer, windows="SL", short_window=8, long_window=64)
    assert started_from(Run.open(tmp_path), wider) == wider
    whole = replace(longer, windows="LL")
    assert started_from(Run.open(tmp_path), whole) == whole
    learned = replace(theirs, positions="learned")
    write_files(tmp_path / "learned", TrainConfig(name="x", model=learned), None)
    assert started_from(Run.open(tmp_path / "learned"), wider) == replace(
        learned, windows="SL", short_window=8, long_window=64
    )


def test_rotary_weights_may_start_a_run_with_a_longer_context(tmp_path):
    config = replace(MODEL, positions="rotary")
    write_run(tmp_path / "short", model=jax.jit(lambda: GPT(config, key=jax.random.key(0)))(), tokenizer=None)
    wanted = replace(config, context=2 * MODEL.context)
    assert started_from(Run.open(tmp_path / "short"), wanted) == wanted
    assert started_from(Run.open(tmp_path / "short"), replace(wanted, rotary_base=5e5)).rotary_base == 5e5
    longer = Run.open(tmp_path / "short").model(context=2 * MODEL.context)
    assert longer(jnp.zeros((1, 2 * MODEL.context), jnp.int32)).shape[1] == 2 * MODEL.context
