"""Law: several processes, as on several hosts, are one run: the same losses, files and end on a signal."""

import signal
import socket
import time
from dataclasses import replace

import pytest
from tiny import door, read_lines, tiny_config, write_config, write_text_shards

from gptjax.averaging import Average
from gptjax.checkpoint import Checkpoint
from gptjax.data import Batch
from gptjax.evals import Samples, ValidationLoss
from gptjax.layout import Layout
from gptjax.logbook import Log
from gptjax.optim import Muon
from gptjax.run import Run
from gptjax.schedules import Constant
from gptjax.stages import Stage
from gptjax.train import train


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(file, *words, processes=2):
    """The door on two hosts of two devices each, joined over loopback."""
    place = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    return [
        door("train", f"--config={file}", *words, devices=2, **place, JAX_PROCESS_ID=str(i)) for i in range(processes)
    ]


def ended(doors):
    outputs = [process.communicate(timeout=240)[0] for process in doors]
    return [process.returncode for process in doors], outputs


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    shards = write_text_shards(tmp_path_factory.mktemp("processes") / "shards")
    return tiny_config(
        shards,
        name="one",
        steps=6,
        model={"dropout": 0.1},
        optimizer=Muon(dtype="float32", schedule=Constant(warmup=2)),
        batch=Batch(8, accumulate=2),
        stages=(Stage(2, sequences=16, rate=0.5), Stage(5, sequences=8)),
        averaging=Average(decay=0.5),
        layout=Layout(fsdp=2),
        evals=(ValidationLoss(every=3), Samples(every=6, prompt="1", max_new_tokens=5)),
        checkpoint=Checkpoint(every=3),
    )


def test_two_processes_train_as_one_does(config, tmp_path):
    """From the first batch to the sample, and on from a checkpoint with another layout; only one of them speaks."""
    assert train(replace(config, layout=Layout(data=2, fsdp=2))) == 0
    two = replace(config, name="two")
    codes, outputs = ended(start(write_config(tmp_path / "two.py", two), "--steps=3"))
    assert codes == [0, 0], outputs
    codes, outputs = ended(start(write_config(tmp_path / "two.py", two), "--layout=data"))
    assert codes == [0, 0], outputs
    assert "on 2 hosts" in outputs[0]
    assert "resuming" in outputs[0]
    assert "loss" not in outputs[1]
    for name in ("loss", "val_loss", "val_loss_last"):
        one = dict(read_lines(config.directory, name))
        assert dict(read_lines(two.directory, name)) == pytest.approx(one, abs=1e-5)
    assert dict(read_lines(two.directory, "sample"))[6] == dict(read_lines(config.directory, "sample"))[6]
    assert Run.open(two.directory).step("latest") == 6


@pytest.mark.slow
def test_a_signal_to_one_of_them_stops_both_after_the_same_step(config, tmp_path):
    long = replace(config, name="long", steps=100_000, evals=(), log=Log(every=1))
    file = write_config(tmp_path / "long.py", long)
    doors = start(file)
    record = long.directory / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (record.exists() and record.read_text().count("\n") > 20) and time.monotonic() < deadline:
        time.sleep(0.2)
    doors[1].send_signal(signal.SIGTERM)
    codes, outputs = ended(doors)
    assert codes == [143, 143], outputs
    stopped = Run.open(long.directory).step("latest")
    assert stopped >= 20
    codes, outputs = ended(start(file, f"--steps={stopped + 2}"))
    assert codes == [0, 0], outputs
    assert [step for step, _ in read_lines(long.directory)] == list(range(1, stopped + 3))
