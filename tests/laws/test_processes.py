"""Law: several processes, as on several hosts, are one run: the same losses, files and end on a signal."""

import signal
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
import reader
from tiny import python, read_lines, tiny_config, tokenizer, write_config, write_shards, write_text_shards

from gptjax.averaging import Average
from gptjax.checkpoint import Checkpoint
from gptjax.data import Batch, Mixture, Part, TokenShards
from gptjax.evals import Samples, ValidationLoss
from gptjax.layout import Layout
from gptjax.logbook import Log
from gptjax.optim import Muon
from gptjax.run import Run
from gptjax.schedules import Constant
from gptjax.stages import Stage
from gptjax.train import opened_batches, train


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(*words, processes=2, devices=2, **environment):
    """Python on so many hosts of so many devices each, joined over loopback."""
    place = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    return [
        python(*map(str, words), devices=devices, **environment, **place, JAX_PROCESS_ID=str(i))
        for i in range(processes)
    ]


def start_training(file, *words, **place):
    return start("-m", "gptjax.train", f"--config={file}", *words, **place)


def ended(processes):
    """Exit codes and outputs; nothing is left running."""
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


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


STEPS = 9
SPANS = {1: ("0:9", "6:9"), 2: ("0:9", "0:3"), 4: ("0:9", "3:6")}
"""The steps that so many processes read: all of them, and as the one that comes after or before others."""


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    """Runs that read straight windows, packed documents, and both in shares that change with batches that grow.

    No token is there twice, so that a window can be told by its tokens; those of the second set begin with 1000.
    """
    room = tmp_path_factory.mktemp("readings")
    for i, count in enumerate((123, 100)):
        starts = np.cumsum([0, *np.random.default_rng(i).integers(1, 9, count)])
        companions = {("train", "documents"): starts[starts < count]}
        ids = 1000 * i + np.arange(count)
        write_shards(room / str(i), {"train": np.split(ids, [7, 60])}, own=tokenizer(), companions=companions)
    straight, packed = TokenShards(str(room / "0")), TokenShards(str(room / "1"), packing="best_fit")
    mixture = Mixture((Part(straight, 0.75, later=((4, 0.25),)), Part(packed, 0.25, later=((4, 0.75),))))
    runs = {
        "straight": {"data": straight},
        "packed": {"data": TokenShards(str(room / "0"), packing="best_fit"), "layout": Layout(data=2, fsdp=2)},
        "mixed": {"data": mixture, "stages": (Stage(5, sequences=16), Stage(7, sequences=8, accumulate=1))},
    }
    fixed = {"model": {"context": 4, "vocab_size": 2000}, "batch": Batch(8, 2), "layout": Layout(data=4)}
    configs = [tiny_config(room / "0", name=name, **(fixed | changes)) for name, changes in runs.items()]
    return [replace(one, model=replace(one.model, document_mask=one.name != "straight")) for one in configs]


def joined(room, name, span, processes):
    """The batches of all devices; every place is held by exactly one process."""
    parts = [dict(np.load(room / str(processes) / f"{name} {span} {process}.npz")) for process in range(processes)]
    stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    for key, arrays in stacked.items():
        assert ((arrays != reader.ABSENT).sum(axis=0) == 1).all(), key
    return {key: arrays.max(axis=0) for key, arrays in stacked.items()}


def check_epochs(config, batches):
    """Of each set every window comes once before any comes again."""
    rows = np.concatenate([batches[f"{step}.tokens"].reshape(-1, config.model.context) for step in range(STEPS)])
    windows = opened_batches(config, Layout()).windows
    for number, one in enumerate(windows):
        seen = [tuple(row) for row in rows.tolist() if row[0] // 1000 == number]
        wanted = set(map(tuple, one.read(np.arange(len(one))).tokens.tolist()))
        assert len(wanted) == len(one) < len(seen)
        for begin in range(0, len(seen), len(one)):
            epoch = seen[begin : begin + len(one)]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= wanted


def test_any_number_of_processes_reads_one_sequence(readings, tmp_path):
    """On their devices lie the same batches on 1, 2 and 4, and where one goes on from what another number has read."""
    files = [write_config(tmp_path / f"{one.name}.py", one) for one in readings]
    for processes, spans in SPANS.items():
        place = {"processes": processes, "devices": 4 // processes}
        (tmp_path / str(processes)).mkdir()
        codes, outputs = ended(start(reader.__file__, tmp_path / str(processes), *spans, *files, **place))
        assert codes == [0] * processes, outputs
    for config in readings:
        whole, *others = [joined(tmp_path, config.name, "0:9", processes) for processes in SPANS]
        pieces = [joined(tmp_path, config.name, span, processes) for processes, (_, span) in SPANS.items()]
        resumed = {key: array for piece in pieces for key, array in piece.items()}
        assert len(whole) == STEPS * (4 if config.model.document_mask else 2)
        for other in (*others, resumed):
            np.testing.assert_equal(other, whole)
        check_epochs(config, whole)


def test_two_processes_train_as_one_does(config, tmp_path):
    """From the first batch to the sample, and on from a checkpoint with another layout; only one of them speaks."""
    assert train(replace(config, layout=Layout(data=2, fsdp=2))) == 0
    two = replace(config, name="two")
    codes, outputs = ended(start_training(write_config(tmp_path / "two.py", two), "--steps=3"))
    assert codes == [0, 0], outputs
    codes, outputs = ended(start_training(write_config(tmp_path / "two.py", two), "--layout=data"))
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
    doors = start_training(file)
    record = long.directory / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (record.exists() and record.read_text().count("\n") > 20) and time.monotonic() < deadline:
        time.sleep(0.2)
    doors[1].send_signal(signal.SIGTERM)
    codes, outputs = ended(doors)
    assert codes == [143, 143], outputs
    stopped = Run.open(long.directory).step("latest")
    assert stopped >= 20
    codes, outputs = ended(start_training(file, f"--steps={stopped + 2}"))
    assert codes == [0, 0], outputs
    assert [step for step, _ in read_lines(long.directory)] == list(range(1, stopped + 3))
