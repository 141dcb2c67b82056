"""Law: a run that was stopped, in whatever way, and started again is the run that was never stopped."""

import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny import ALPHABET, door, read_lines, tiny_config, write_config, write_text_shards

from gptjax import train as train_door
from gptjax.core.errors import UserError
from gptjax.data.batch_size import BatchSize
from gptjax.data.shards import open_shard, write_shard
from gptjax.metrics.logger import LogConfig
from gptjax.optim.ema import EMA
from gptjax.optim.optimizers import AdamW, Muon
from gptjax.optim.schedules import Constant
from gptjax.run_dir import RunDir
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Chars
from gptjax.train import main, train
from gptjax.training.checkpoint import CheckpointConfig, flatten_by_name
from gptjax.training.evaluators import ValidationLoss
from gptjax.training.stages import Stage

FSDP = MeshConfig(fsdp=4, data=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_text_shards(tmp_path_factory.mktemp("resume") / "shards")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compile each program once: a run that goes on, in this process or another, compiles what the first one did."""

    def use(directory, seconds):
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)

    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    directory = str(tmp_path_factory.mktemp("cache"))
    use(directory, 0)
    yield directory
    use(*before)


def make(shards, name, **changes):
    """Muon with what it can remember and schedule, dropout, groups and an average: all that has a state or a key."""
    rising = Constant(warmup_steps=7)
    muon = Muon(dtype="float32", normuon_beta2=0.9, momentum_schedule=rising, weight_decay=0.1, cautious_decay=True)
    fixed = {"model": {"dropout": 0.1}, "optimizer": muon, "batch": BatchSize(8, 2), "ema": EMA(decay=0.8)}
    return tiny_config(shards, name=name, **(fixed | changes))


def signalled(monkeypatch, config, *, at, number=signal.SIGTERM):
    """Train, and receive a signal while step `at` is computed; the exit code."""
    compile_step = train_door.compile_step

    def compiled(*args):
        step = compile_step(*args)

        def wrapped(state, rows):
            if int(state.step) == at - 1:
                os.kill(os.getpid(), number)
            return step(state, rows)

        return wrapped

    with monkeypatch.context_length() as patch:
        patch.setattr(train_door, "compiled_step", compiled)
        return train(config)


def same_weights(one, other):
    for average in (False, True):
        arrays = [flatten_by_name(RunDir.open(config.directory).load_model(ema=average)) for config in (one, other)]
        for name, array in arrays[0].items():
            np.testing.assert_array_equal(np.asarray(array), np.asarray(arrays[1][name]), err_msg=name)


@pytest.fixture(scope="module")
def whole(shards):
    """Ten steps in one go."""
    config = make(shards, "whole")
    assert train(config) == 0
    return config


def test_five_steps_and_five_more_are_ten_bit_for_bit(whole, shards, monkeypatch, capsys):
    config = make(shards, "halves")
    assert signalled(monkeypatch, config, at=5) == 143
    assert RunDir.open(config.directory).find_step() == 5
    assert train(config) == 0
    assert "resuming" in capsys.readouterr().out
    same_weights(config, whole)
    assert read_lines(config.directory) == read_lines(whole.directory)
    assert [step for step, _ in read_lines(config.directory)] == list(range(1, 11))
    assert read_lines(config.directory, "tokens") == [(step, step * 128) for step in range(1, 11)]


def test_a_run_goes_on_over_other_devices(whole, shards, monkeypatch):
    """From four devices that share the weights to two that do not: the same data, so the same losses."""
    config = make(shards, "moved", mesh=FSDP)
    assert signalled(monkeypatch, config, at=5, number=signal.SIGINT) == 130
    assert train(replace(config, mesh=MeshConfig(data=2))) == 0
    losses, wanted = (np.array(read_lines(run.directory)) for run in (config, whole))
    np.testing.assert_allclose(losses, wanted, atol=1e-5, rtol=0)
    average, same = (flatten_by_name(RunDir.open(run.directory).load_model()) for run in (config, whole))
    for name, array in average.items():
        np.testing.assert_allclose(np.asarray(array), np.asarray(same[name]), atol=1e-3, err_msg=name)


STAGES = (Stage(3, batch_size=16, grad_accum=4, lr_scale=1.5, long_window=3), Stage(6, batch_size=4))


@pytest.fixture(scope="module")
def staged(shards):
    """Eight steps of 8, 16 and 4 rows in one go; those of 16 see little of what was before."""
    config = make(shards, "staged", steps=8, stages=STAGES)
    assert train(config) == 0
    return config


@pytest.mark.parametrize("at", [3, 5])
def test_a_run_in_stages_goes_on_in_any_of_them_bit_for_bit(staged, monkeypatch, at):
    config = replace(staged, name=f"staged {at}")
    assert signalled(monkeypatch, config, at=at) == 143
    assert train(config) == 0
    same_weights(config, staged)
    for name in ("loss", "tokens", "epoch"):
        assert read_lines(config.directory, name) == read_lines(staged.directory, name)


def test_a_run_in_stages_goes_on_over_other_devices(staged, monkeypatch):
    config = replace(staged, name="staged moved", mesh=MeshConfig(fsdp=2, data=1))
    assert signalled(monkeypatch, config, at=4) == 143
    assert train(replace(config, mesh=MeshConfig(data=2), stages=(replace(STAGES[0], grad_accum=2), STAGES[1]))) == 0
    losses, wanted = (np.array(read_lines(run.directory)) for run in (config, staged))
    np.testing.assert_allclose(losses, wanted, atol=1e-5, rtol=0)


def test_a_finished_run_is_left_as_it_is(whole):
    before = (whole.directory / "metrics.jsonl").read_bytes()
    assert train(whole) == 0
    assert (whole.directory / "metrics.jsonl").read_bytes() == before


CHANGES = {
    "model.embed_dim: 32 → 64": lambda c: replace(c, model=replace(c.model, embed_dim=64)),
    "model.dropout: 0.1 → 0.2": lambda c: replace(c, model=replace(c.model, dropout=0.2)),
    "optimizer.learning_rate: 0.02 → 0.01": lambda c: replace(c, optimizer=replace(c.optimizer, learning_rate=0.01)),
    "optimizer: Muon(": lambda c: replace(c, optimizer=AdamW()),
    "seed: 1337 → 1": lambda c: replace(c, seed=1),
    "batch_size: 8 → 16": lambda c: replace(c, batch=BatchSize(16, 2)),
}


@pytest.mark.parametrize("difference", CHANGES)
def test_what_would_be_another_run_is_refused_and_named(whole, difference):
    with pytest.raises(UserError) as error:
        train(replace(CHANGES[difference](whole), steps=12))
    assert difference in str(error.value)
    assert "--resume=force" in str(error.value)


def test_other_data_is_refused(whole, tmp_path):
    other = write_text_shards(tmp_path / "shards", lines=121)
    with pytest.raises(UserError, match=r"learned something else:\n  data: [0-9a-f]{12}… → [0-9a-f]{12}…"):
        train(replace(whole, data=replace(whole.data, path=str(other))))


def test_being_judged_by_other_data_is_refused(whole, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(whole.data.path, shards)
    (shards / "manifest.json").unlink()
    data = replace(whole.data, path=str(shards))
    config = replace(whole, name="judged", steps=1, evaluators=(ValidationLoss(),), data=data)
    assert train(config) == 0
    write_shard(shards / "val_000000.bin", np.array(open_shard(shards / "val_000000.bin")[:-1]))
    with pytest.raises(UserError, match=r"something else:\n  validation: [0-9a-f]{12}… → [0-9a-f]{12}…"):
        train(replace(config, steps=2))
    assert train(replace(config, steps=2, evaluators=())) == 0  # what nobody looks at does not matter


def test_another_tokenizer_is_refused(whole, tmp_path):
    """The same ids mean another text."""
    shards = tmp_path / "shards"
    shutil.copytree(whole.data.path, shards)
    other = Chars({char: i for i, char in enumerate(reversed(ALPHABET))})
    other.save(shards)
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": other.fingerprint}))
    with pytest.raises(UserError, match=rf"something else:\n  tokenizer: [0-9a-f]{{12}}… → {other.fingerprint[:12]}…"):
        train(replace(whole, data=replace(whole.data, path=str(shards))))


def test_shortening_a_finished_run_and_never_resuming_are_refused(whole):
    with pytest.raises(UserError, match=r"step 10 already, beyond steps 9"):
        train(replace(whole, steps=9))
    with pytest.raises(UserError, match="resume is `never`"):
        train(replace(whole, resume="never"))


def test_what_only_concerns_the_way_may_change_and_is_reported(shards, capsys):
    config = make(shards, "going on", steps=2, checkpoint=CheckpointConfig(every=2))
    train(config)
    capsys.readouterr()
    changed = replace(
        config,
        steps=4,
        batch=BatchSize(8, 4),
        evaluators=(ValidationLoss(every=2, tokens=50),),
        log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=1),
    )
    assert train(changed) == 0
    printed = capsys.readouterr().out
    lines = ("steps: 2 → 4", "grad_accum: 2 → 4", "evaluators: () → ", "log.every: 10 → 1", "checkpoint.every: 2 → 1")
    assert all(f"changed: {line}" in printed for line in lines)
    forced = replace(changed, steps=5, optimizer=replace(changed.optimizer, learning_rate=0.01), resume="force")
    assert train(forced) == 0
    assert "changed: optimizer.learning_rate: 0.02 → 0.01" in capsys.readouterr().out
    assert [step for step, _ in read_lines(config.directory)] == [1, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------- the door itself, and kill -9


def steps_of(run):
    return [step for step, _ in read_lines(run)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_finishes(shards, tmp_path, cache, number, code):
    """The step that is being computed is finished and saved; nothing is lost, nothing is done twice."""
    config = tiny_config(
        shards, name=f"signal {code}", steps=400, checkpoint=CheckpointConfig(every=None), log=LogConfig(every=1)
    )
    file = write_config(tmp_path / "config.py", config)
    process = door("train", f"--config={file}", JAX_COMPILATION_CACHE_DIR=cache)
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(number)
            break
    output = process.communicate(timeout=120)[0]
    assert process.returncode == code, output
    assert "once more to stop at once" in output
    assert f"resume    python -m gptjax.train --config={file}" in output
    assert "Traceback" not in output
    stopped_at = RunDir.open(config.directory).find_step()
    assert 0 < stopped_at < 400
    assert steps_of(config.directory) == list(range(1, stopped_at + 1))
    with pytest.raises(SystemExit) as done:
        main([f"--config={file}"])
    assert done.value.code == 0
    assert steps_of(config.directory) == list(range(1, 401))


def _in_a_process(words, cache):
    """What a child of the fork server does: the door, with programs that an earlier child compiled."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    main(words)


@functools.cache
def _fork_server():
    """Python's own: it imports the door once, and forks for every run."""
    context_length = multiprocessing.get_context("forkserver")
    context_length.set_forkserver_preload(["gptjax.train"])
    return context_length


def start(file, name, cache):
    process = _fork_server().Process(target=_in_a_process, args=([f"--config={file}", f"--name={name}"], str(cache)))
    process.start()
    return process


def size(path):
    return path.stat().st_size if path.exists() else 0


def killed_and_finished(directory: Path, shards, *, kills: int, steps: int, seed: int):
    """Kill a run time and again, then let it finish; and one that nobody kills. Returns both directories."""
    config = tiny_config(
        shards,
        output_dir=str(directory),
        steps=steps,
        checkpoint=CheckpointConfig(every=7),
        evaluators=(ValidationLoss(every=20, tokens=64),),
    )
    file = write_config(directory / "config.py", config)
    undisturbed = start(file, "undisturbed", directory / "cache")
    undisturbed.join()
    assert undisturbed.exitcode == 0
    draw, metrics, codes = random.Random(seed), directory / "killed" / "metrics.jsonl", []
    for attempt in range(kills):
        before = size(metrics)
        process = start(file, "killed", directory / "cache")
        while attempt % 3 and process.is_alive() and size(metrics) == before:
            time.sleep(0.005)
        # Every third is killed at a time of its start, the others in training, at times while a checkpoint is written.
        time.sleep(draw.uniform(0, 0.4 if attempt % 3 else 2))
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert codes.count(-signal.SIGKILL) > kills / 2, "most were still running"
    last = start(file, "killed", directory / "cache")
    last.join()
    assert last.exitcode == 0
    return metrics.parent, directory / "undisturbed"


def check_killed(run, undisturbed):
    assert steps_of(run) == list(range(1, json.loads((run / "config.json").read_text())["steps"] + 1))
    assert read_lines(run) == read_lines(undisturbed)
    assert read_lines(run, "val_loss") == read_lines(undisturbed, "val_loss")


def test_killed_at_any_moment_a_run_ends_as_if_nothing_had_happened(shards, tmp_path):
    check_killed(*killed_and_finished(tmp_path, shards, kills=5, steps=80, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_many_times(shards, tmp_path, seed):
    check_killed(*killed_and_finished(tmp_path, shards, kills=15, steps=300, seed=seed))
