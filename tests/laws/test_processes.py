"""Law: several processes, as on several hosts, are one run: the same losses, files and end on a signal."""

import shutil
import signal
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
import reader
from tiny import SINGLE, python, read_lines, tiny_config, tokenizer, write_config, write_shards, write_text_shards

from gptjax.data.batch_size import BatchSize
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.metrics.logger import LogConfig
from gptjax.optim.ema import EMA
from gptjax.optim.optimizers import Muon
from gptjax.optim.schedules import Constant
from gptjax.run_dir import RunDir, run_lock
from gptjax.sharding.mesh import MeshConfig
from gptjax.train import open_run_loader, train
from gptjax.training.checkpoint import CheckpointConfig, flatten_by_name
from gptjax.training.evaluators import Samples, ValidationLoss
from gptjax.training.stages import Stage


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
        write_shards(room / str(i), {"train": np.split(ids, [7, 60])}, own=tokenizer(), sidecars=companions)
    straight, packed = TokenShards(str(room / "0")), TokenShards(str(room / "1"), packing="best_fit")
    mixture = Mixture(
        (
            MixtureComponent(straight, 0.75, weight_schedule=((4, 0.25),)),
            MixtureComponent(packed, 0.25, weight_schedule=((4, 0.75),)),
        )
    )
    runs = {
        "concat": {"data": straight},
        "packed": {"data": TokenShards(str(room / "0"), packing="best_fit"), "mesh": MeshConfig(data=2, fsdp=2)},
        "shared": {"data": straight, "mesh": MeshConfig(data=2, tensor=2)},
        "permuted": {"data": straight},
        "mixed": {"data": mixture, "stages": (Stage(5, batch_size=16), Stage(7, batch_size=8, grad_accum=1))},
    }
    fixed = {"model": {"context_length": 4, "vocab_size": 2000}, "batch": BatchSize(8, 2), "mesh": MeshConfig(data=4)}
    configs = [tiny_config(room / "0", name=name, **(fixed | changes)) for name, changes in runs.items()]
    return [replace(one, model=replace(one.model, intra_document_mask=one.name != "concat")) for one in configs]


def joined(room, name, span, processes):
    """The batches of all devices; every place is held by a process, or by several alike."""
    parts = [dict(np.load(room / str(processes) / f"{name} {span} {process}.npz")) for process in range(processes)]
    stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    for key, arrays in stacked.items():
        assert ((arrays == arrays.max(axis=0)) | (arrays == reader.ABSENT)).all(), key
        assert arrays.max(axis=0).min() > reader.ABSENT, key
    return {key: arrays.max(axis=0) for key, arrays in stacked.items()}


def check_epochs(config, batches):
    """Of each set every window comes once before any comes again."""
    rows = np.concatenate([batches[f"{step}.tokens"].reshape(-1, config.model.context_length) for step in range(STEPS)])
    windows = open_run_loader(config, MeshConfig()).windows
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
        assert len(whole) == STEPS * (4 if config.model.intra_document_mask else 2)
        for other in (*others, resumed):
            np.testing.assert_equal(other, whole)
        check_epochs(config, whole)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """All that has a key, a schedule or a mean, so that one process more could make it another."""
    shards = write_text_shards(tmp_path_factory.mktemp("processes") / "shards")
    return tiny_config(
        shards,
        name="one",
        steps=4,
        model={"dropout": 0.1},
        optimizer=Muon(dtype="float32", schedule=Constant(warmup_steps=2)),
        batch=BatchSize(8, grad_accum=2),
        ema=EMA(decay=0.5),
        evaluators=(ValidationLoss(every=2), Samples(every=4, prompt="1", max_new_tokens=5)),
        checkpoint=CheckpointConfig(every=2),
    )


def check_same(run, whole):
    """Losses, samples and files are those of the run on one process."""
    for name in ("loss", "val_loss", "val_loss_last", "grad_norm"):
        assert dict(read_lines(run.directory, name)) == pytest.approx(dict(read_lines(whole.directory, name)), abs=1e-5)
    assert read_lines(run.directory, "epoch") == read_lines(whole.directory, "epoch")
    assert read_lines(run.directory, "sample")[-1] == read_lines(whole.directory, "sample")[-1]
    files = [{path.name for path in (one.directory / "checkpoints").iterdir()} for one in (run, whole)]
    assert files[0] == files[1]
    files = [{path.name for path in one.directory.iterdir()} - {"config.py"} for one in (run, whole)]
    assert files[0] == files[1]


def test_two_processes_train_as_one_does(config, tmp_path):
    """From what one process saved, by another layout, to the sample; only one speaks, and one reads it again."""
    assert train(config) == 0
    two = replace(config, name="two", mesh=MeshConfig(fsdp=2))
    shutil.copytree(config.directory, two.directory)
    shutil.rmtree(two.directory / "checkpoints" / "4")
    codes, outputs = ended(start_training(write_config(tmp_path / "two.py", two), devices=1))
    assert codes == [0, 0], outputs
    assert "on 2 hosts" in outputs[0]
    assert f"resuming {two.directory} at step 2" in outputs[0]
    assert "loss" not in outputs[1]
    check_same(two, config)
    for average in (False, True):
        found, wanted = (flatten_by_name(RunDir.open(one.directory).load_model(ema=average)) for one in (two, config))
        for name, array in found.items():  # Adam magnifies what rounding leaves of a key bias's gradient, which is zero
            np.testing.assert_allclose(np.asarray(array), np.asarray(wanted[name]), atol=1e-3, err_msg=name)


@pytest.fixture(scope="module")
def staged(config):
    """Eight steps of 8, 16 and 8 rows, with weights and rows over two devices each."""
    evaluators = (ValidationLoss(every=2), Samples(every=8, prompt="1", max_new_tokens=5))
    stages = (Stage(3, batch_size=16, lr_scale=0.5), Stage(5, batch_size=8))
    return replace(config, name="staged", steps=8, stages=stages, evaluators=evaluators, mesh=MeshConfig(fsdp=2))


@pytest.mark.slow
def test_a_run_goes_on_over_any_number_of_processes(staged, tmp_path):
    """Begun on two, gone on with on four that share rows, on two laid out otherwise, and on one: as on one alone."""
    whole, run = replace(staged, name="whole", mesh=SINGLE), replace(staged, name="moved")
    assert train(whole) == 0
    file = write_config(tmp_path / "moved.py", run)
    for processes, *words in (
        (2, "--steps=2"),
        (4, "--steps=4", "--mesh.tensor=2"),
        (2, "--steps=6", "--mesh.fsdp=1"),
    ):
        codes, outputs = ended(start_training(file, *words, processes=processes, devices=4 // processes))
        assert codes == [0] * processes, outputs
        assert f"on {processes} hosts" in outputs[0]
        assert not any("loss" in output for output in outputs[1:])
    assert train(replace(run, mesh=SINGLE)) == 0
    check_same(run, whole)


@pytest.mark.slow
def test_what_several_processes_cannot_do_all_of_them_refuse(staged, tmp_path):
    """In words, at once; none is left to wait for the others."""
    file = write_config(tmp_path / "refused.py", replace(staged, name="refused"))
    wanted = {
        "--grad_accum=4": "2 sequences a group do not split over 4 devices",
        "--mesh.data=1": "uses 2 of the 4 devices of 4 processes",
        "--name=held": "another process is training this run",
    }
    with run_lock(staged.directory.with_name("held")):
        for word, reason in wanted.items():
            codes, outputs = ended(start_training(file, word, processes=4, devices=1))
            assert codes == [2] * 4, outputs
            assert all(output.splitlines()[-1].startswith("error: ") and reason in output for output in outputs), (
                outputs
            )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, [1]), (signal.SIGINT, [1]), (signal.SIGINT, [0, 1])])
def test_a_signal_stops_both_after_the_same_step(staged, tmp_path, number, told):
    long = replace(staged, name=f"long{number}-{len(told)}", steps=100_000, evaluators=(), log=LogConfig(every=1))
    file = write_config(tmp_path / "long.py", long)
    doors = start_training(file)
    record = long.directory / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (record.exists() and record.read_text().count("\n") > 20) and time.monotonic() < deadline:
        time.sleep(0.2)
    for i in told:
        doors[i].send_signal(number)
    codes, outputs = ended(doors)
    assert codes == [143, 143], outputs
    stopped = RunDir.open(long.directory).find_step("latest")
    assert stopped >= 20
    codes, outputs = ended(start_training(file, f"--steps={stopped + 2}"))
    assert codes == [0, 0], outputs
    assert [step for step, _ in read_lines(long.directory)] == list(range(1, stopped + 3))
