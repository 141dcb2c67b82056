"""Several processes, as on several hosts, are one run: the same rows, losses, files and end on a signal."""

import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reader
from reader import Reading
from test_rollback import Fragile, Spoiled
from tiny import (
    SINGLE,
    find_free_port,
    python,
    read_lines,
    tiny_config,
    tokenizer,
    write_config,
    write_shards,
    write_text_shards,
)

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.checkpoints.integrity import complete_steps
from gptjax.config import TrainConfig
from gptjax.data.batch_size import BatchSize
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.data.row_readers import SequenceReader
from gptjax.data.source import ReadSpec
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.metrics.logger import LogConfig
from gptjax.optim import AdamW, Muon
from gptjax.optim.ema import EMA
from gptjax.optim.schedules import Constant
from gptjax.runs.run_dir import RunDir
from gptjax.runs.run_lock import run_lock
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig
from gptjax.supervision.divergence import RollbackConfig
from gptjax.training.stages import Stage


def start(*words: object, processes: int = 2, devices: int = 2, **environment: str) -> list[subprocess.Popen]:
    """So many Python processes of so many devices each, joined over loopback."""
    place = {"JAX_COORDINATOR_ADDRESS": f"localhost:{find_free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    return [
        python(*map(str, words), devices=devices, **environment, **place, JAX_PROCESS_ID=str(i))
        for i in range(processes)
    ]


def start_training(file: Path, *words: str, **place: Any) -> list[subprocess.Popen]:
    return start("-m", "gptjax.train", f"--config={file}", *words, **place)


def wait_for(processes: list[subprocess.Popen], *, kill: bool = False) -> tuple[list[int], list[str]]:
    """Exit codes and outputs; nothing is left running."""
    for process in processes:
        if kill:
            process.kill()
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def wait_for_steps(config: TrainConfig, count: int) -> None:
    """Until the record of a run has more lines than that."""
    record = config.directory / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (record.exists() and record.read_text().count("\n") > count) and time.monotonic() < deadline:
        time.sleep(0.2)


STEPS = 9
SPANS = {1: ("0:9", "6:9"), 2: ("0:9", "0:3"), 4: ("0:9", "3:6")}
"""The steps that so many processes read: all of them, and three of them, as of a run that moves from 2 to 4 to 1."""


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reading]:
    """Concatenated and packed documents, and both in a mixture whose weights and batch sizes change.

    Every token occurs once, so a sequence is known by its tokens; those of the second set begin with 1000.
    """
    root = tmp_path_factory.mktemp("readings")
    for i, count in enumerate((123, 100)):
        starts = np.cumsum([0, *np.random.default_rng(i).integers(1, 9, count)])
        sidecars = {("train", "documents"): starts[starts < count]}
        parts = np.split(1000 * i + np.arange(count), [7, 60])
        write_shards(root / str(i), {"train": parts}, own=tokenizer(), sidecars=sidecars)
    concat, packed = TokenShards(str(root / "0")), TokenShards(str(root / "1"), packing="best_fit")
    components = MixtureComponent(concat, 0.75, ((4, 0.25),)), MixtureComponent(packed, 0.25, ((4, 0.75),))
    plain = ReadSpec(4, 0, 2000, None, False, ((0, BatchSize(8, 2)),))
    masked = replace(plain, with_documents=True)
    staged = replace(masked, batch_schedule=((0, BatchSize(8, 2)), (5, BatchSize(16, 2)), (7, BatchSize(8, 1))))
    four = MeshConfig(data=4)
    return {
        "concat": Reading(concat, plain, four),
        "packed": Reading(replace(concat, packing="best_fit"), masked, MeshConfig(data=2, fsdp=2)),
        "shared rows": Reading(concat, masked, MeshConfig(data=2, tensor=2)),
        "permuted devices": Reading(concat, masked, four, permuted=True),
        "mixture": Reading(Mixture(components), staged, four),
    }


def read_in_processes(file: Path, out: Path, processes: int) -> list[dict[tuple[str, str], dict[str, np.ndarray]]]:
    """What came to lie on the devices of each process, by reading and span."""
    out.mkdir()
    started = start(reader.__file__, file, out, *SPANS[processes], processes=processes, devices=4 // processes)
    codes, outputs = wait_for(started)
    assert codes == [0] * processes, outputs
    return [pickle.loads((out / f"{process}.pickle").read_bytes()) for process in range(processes)]


def join_parts(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The batches of all devices; every place is held by one process, or by several with the same content."""
    stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    for key, arrays in stacked.items():
        assert ((arrays == arrays.max(axis=0)) | (arrays == reader.ABSENT)).all(), key
        assert arrays.max(axis=0).min() > reader.ABSENT, key
    return {key: arrays.max(axis=0) for key, arrays in stacked.items()}


def check_epochs(reading: Reading, batches: dict[str, np.ndarray]) -> None:
    """Every sequence of a set is read once before any comes again."""
    rows = np.concatenate([batches[f"{step}.tokens"].reshape(-1, reading.spec.context_length) for step in range(STEPS)])
    opened = reading.data.open(reading.spec)
    for number, part in enumerate(getattr(opened, "readers", (opened,))):
        assert isinstance(part, SequenceReader)
        sequences = part.sequences
        seen = [tuple(row) for row in rows.tolist() if row[0] // 1000 == number]
        wanted = set(map(tuple, sequences.read(np.arange(len(sequences)))["tokens"].tolist()))
        assert len(wanted) == len(sequences) < len(seen)
        for begin in range(0, len(seen), len(sequences)):
            epoch = seen[begin : begin + len(sequences)]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= wanted


@pytest.mark.slow
def test_one_two_and_four_processes_read_one_sequence(readings: dict[str, Reading], tmp_path: Path) -> None:
    """Their devices hold the same batches, also where a run continues on another number of processes."""
    file = tmp_path / "readings.pickle"
    file.write_bytes(pickle.dumps(readings))
    alone = {(name, span): reader.read(reading, span) for name, reading in readings.items() for span in SPANS[1]}
    found = {1: [alone]} | {count: read_in_processes(file, tmp_path / str(count), count) for count in (2, 4)}
    for name, reading in readings.items():
        whole, *others = [join_parts([part[name, "0:9"] for part in parts]) for parts in found.values()]
        pieces = [join_parts([part[name, SPANS[count][1]] for part in parts]) for count, parts in found.items()]
        resumed = {key: array for piece in pieces for key, array in piece.items()}
        assert len(whole) == STEPS * (4 if reading.spec.with_documents else 2)
        for other in (*others, resumed):
            np.testing.assert_equal(other, whole)
        check_epochs(reading, whole)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """All that draws from a key, follows a schedule or is a mean, and so could depend on the processes."""
    shards = write_text_shards(tmp_path_factory.mktemp("processes") / "shards")
    return tiny_config(
        shards,
        name="one",
        steps=4,
        model={"dropout": 0.1, "num_layers": 1},
        optimizer=Muon(ns_dtype="float32", schedule=Constant(warmup_steps=2)),
        batch_size=8,
        grad_accum=2,
        ema=EMA(decay=0.5),
        evaluators=(ValidationLoss(every=2),),
        checkpoint=CheckpointConfig(every=2),
    )


def check_same(run: TrainConfig, whole: TrainConfig) -> None:
    """Losses, samples and files are those of the run on one process."""
    for name in ("loss", "val_loss", "val_loss_last", "grad_norm"):
        assert dict(read_lines(run.directory, name)) == pytest.approx(dict(read_lines(whole.directory, name)), abs=1e-5)
    assert read_lines(run.directory, "epoch") == read_lines(whole.directory, "epoch")
    assert read_lines(run.directory, "sample")[-1:] == read_lines(whole.directory, "sample")[-1:]
    files = [{path.name for path in (one.directory / "checkpoints").iterdir()} for one in (run, whole)]
    assert files[0] == files[1]
    files = [{path.name for path in one.directory.iterdir()} - {"config.py", "console.log"} for one in (run, whole)]
    assert files[0] == files[1]


def test_two_processes_train_as_one_does(config: TrainConfig, tmp_path: Path) -> None:
    """They resume from what one process saved, on another mesh. Only the first prints; one process reads the result."""
    assert train(config) == 0
    two = replace(config, name="two", mesh=MeshConfig(fsdp=2))
    shutil.copytree(config.directory, two.directory)
    shutil.rmtree(two.directory / "checkpoints" / "4")
    codes, outputs = wait_for(start_training(write_config(tmp_path / "two.py", two), devices=1))
    assert codes == [0, 0], outputs
    assert "on 2 hosts" in outputs[0]
    assert f"resuming {two.directory} at step 2" in outputs[0]
    assert "loss" not in outputs[1]
    check_same(two, config)
    for ema in (False, True):
        found, wanted = (flatten_by_name(RunDir.open(one.directory).load_model(ema=ema)) for one in (two, config))
        for name, array in found.items():  # Adam magnifies what rounding leaves of a key bias's gradient, which is zero
            np.testing.assert_allclose(np.asarray(array), np.asarray(wanted[name]), atol=1e-3, err_msg=name)


@pytest.fixture(scope="module")
def staged(config: TrainConfig) -> TrainConfig:
    """Eight steps of 8, 16 and 8 rows, with weights and rows over two devices each."""
    evaluators = (ValidationLoss(every=2), Samples(every=8, prompt="1", max_new_tokens=5))
    stages = (Stage(3, batch_size=16, lr_scale=0.5), Stage(5, batch_size=8))
    return replace(config, name="staged", steps=8, stages=stages, evaluators=evaluators, mesh=MeshConfig(fsdp=2))


@pytest.mark.slow
def test_run_moves_between_numbers_of_processes(staged: TrainConfig, tmp_path: Path) -> None:
    """It starts on two, continues on four that share rows, on two with another mesh, and on one: as on one alone."""
    whole, run = replace(staged, name="whole", mesh=SINGLE), replace(staged, name="moved")
    assert train(whole) == 0
    file = write_config(tmp_path / "moved.py", run)
    for processes, *words in (
        (2, "--steps=2"),
        (4, "--steps=4", "--mesh.tensor=2"),
        (2, "--steps=6", "--mesh.fsdp=1"),
    ):
        codes, outputs = wait_for(start_training(file, *words, processes=processes, devices=4 // processes))
        assert codes == [0] * processes, outputs
        assert f"on {processes} hosts" in outputs[0]
        assert not any("loss" in output for output in outputs[1:])
    assert train(replace(run, mesh=SINGLE)) == 0
    check_same(run, whole)


@pytest.mark.slow
def test_impossible_run_is_refused_by_all_processes(staged: TrainConfig, tmp_path: Path) -> None:
    """None is left to wait for the others."""
    file = write_config(tmp_path / "refused.py", replace(staged, name="refused"))
    wanted = {
        "--grad-accum=4": "2 sequences per micro-batch do not split over 4 devices",
        "--mesh.data=1": "uses 2 of the 4 devices of 4 processes",
        "--name=held": "another process is training this run",
    }
    with run_lock(staged.directory.with_name("held")):
        for word, reason in wanted.items():
            codes, outputs = wait_for(start_training(file, word, processes=4, devices=1))
            assert codes == [2] * 4, outputs
            assert all(output.splitlines()[-1].startswith("error: ") and reason in output for output in outputs), (
                outputs
            )


LACKS_DATA = """
import dataclasses, os

if os.environ["JAX_PROCESS_ID"] == "{}":
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path="missing"))
"""
"""What follows a config."""
LACKS_EVALUATOR = """
import dataclasses, os
from gptjax.core.errors import UserError

@dataclasses.dataclass(frozen=True)
class Own:
    def should_run(self, step, *, steps):
        return step == steps

    def open(self, context):
        if os.environ["JAX_PROCESS_ID"] == "{}":
            raise UserError("missing: no such directory of shards, for an evaluator")
        return lambda model: {{}}

config = dataclasses.replace(config, evaluators=(Own(),))
"""
"""The same; the directory is held by then."""
LACKS_STATE = """
import os
from gptjax.runs import startup

def fail(*arguments, **options):
    raise FileNotFoundError(2, "no such directory of shards", "missing")

if os.environ["JAX_PROCESS_ID"] == "{}":
    startup.initialize_state = fail
"""
"""The same; process 0 has its state by then."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refused", "lacks"), [(0, LACKS_DATA), (1, LACKS_DATA), (1, LACKS_EVALUATOR), (1, LACKS_STATE)]
)
def test_start_that_one_process_refuses_ends_both_and_writes_nothing(
    staged: TrainConfig, tmp_path: Path, refused: int, lacks: str
) -> None:
    run = replace(staged, name=f"refused by {refused}")
    file = write_config(tmp_path / "refused.py", run)
    file.write_text(file.read_text() + lacks.format(refused))
    codes, outputs = wait_for(start_training(file))
    assert codes == [2, 2], outputs
    assert all("missing: no such directory of shards" in output for output in outputs), outputs
    assert f"process {refused} of 2" in outputs[1 - refused]
    assert not run.directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "signaled"), [(signal.SIGTERM, [1]), (signal.SIGINT, [1]), (signal.SIGINT, [0, 1])])
def test_signal_stops_both_processes_after_the_same_step(
    staged: TrainConfig, tmp_path: Path, number: signal.Signals, signaled: list[int]
) -> None:
    long = replace(staged, name=f"long{number}-{len(signaled)}", steps=100_000, evaluators=(), log=LogConfig(every=1))
    file = write_config(tmp_path / "long.py", long)
    processes = start_training(file)
    wait_for_steps(long, 20)
    for i in signaled:
        processes[i].send_signal(number)
    codes, outputs = wait_for(processes)
    assert codes == [128 + number] * 2, outputs
    stopped = RunDir.open(long.directory).find_step("latest")
    assert stopped >= 20
    codes, outputs = wait_for(start_training(file, f"--steps={stopped + 2}"))
    assert codes == [0, 0], outputs
    assert [step for step, _ in read_lines(long.directory)] == list(range(1, stopped + 3))


LOST = {
    "killed": (signal.SIGKILL, 1),
    "the first one killed": (signal.SIGKILL, 0),
    "stopped": (signal.SIGSTOP, 1),
    "killed in an evaluation": (signal.SIGKILL, 1),
    "killed while saving": (signal.SIGKILL, 1),
    "the first one killed while saving": (signal.SIGKILL, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", LOST)
def test_lost_process_ends_the_other_and_the_command_resumes(staged: TrainConfig, tmp_path: Path, how: str) -> None:
    """It names the one that is gone, in a line, with a status on which a scheduler starts both again."""
    number, lost = LOST[how]
    long = replace(
        staged, name=how.replace(" ", "-"), steps=100_000, evaluators=(), checkpoint=CheckpointConfig(every=5)
    )
    if "saving" in how:
        long = replace(long, checkpoint=CheckpointConfig(every=1))
    if "evaluation" in how:
        long = replace(long, evaluators=(ValidationLoss(every=1, batch_size=4),))
    file = write_config(tmp_path / "lost.py", long)
    processes = start_training(file)
    wait_for_steps(long, 20)
    saved = RunDir.open(long.directory).find_step("latest")
    processes[lost].send_signal(number)
    left = processes[1 - lost]
    said, _ = left.communicate(timeout=240)
    processes[lost].kill()  # one that is stopped
    codes, _ = wait_for([processes[lost]])
    assert codes == [-signal.SIGKILL]
    check_end(left, said, long, {lost}, processes=2)
    resumed = RunDir.open(long.directory).find_step("latest")
    assert resumed >= saved
    codes, outputs = wait_for(start_training(file, f"--steps={resumed + 2}"))
    assert codes == [0, 0], outputs
    assert f"at step {resumed}" in outputs[0]


def check_end(left: subprocess.Popen, said: str, config: TrainConfig, lost: set[int], *, processes: int) -> None:
    """One line names a process that is gone, another the command, the last one the file of the stacks."""
    assert left.returncode == 75, said
    line, command, stacks = said.splitlines()[-3:]
    names = [f"error: process {i} of {processes} on {socket.gethostname()} is gone" for i in lost]
    assert line.startswith(tuple(names)), said
    assert "gptjax.train" in command
    assert Path(stacks.split()[4]).parent == config.directory
    assert "Traceback" not in said


DIES_IN_RESTORE = """
import os, signal
from gptjax.checkpoints.checkpoint import CheckpointManager

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["JAX_PROCESS_ID"] == "1":
    CheckpointManager.restore = die
"""
"""What follows a config."""


@pytest.mark.slow
def test_process_that_is_lost_in_a_restore_is_named_and_no_checkpoint_is_blamed(
    staged: TrainConfig, tmp_path: Path
) -> None:
    run = replace(staged, name="restored", steps=2, evaluators=())
    file = write_config(tmp_path / "restored.py", run)
    codes, outputs = wait_for(start_training(file))
    assert codes == [0, 0], outputs
    text = file.read_text()
    file.write_text(text + DIES_IN_RESTORE)
    left, lost = start_training(file, "--steps=4")
    said, _ = left.communicate(timeout=240)
    assert wait_for([lost])[0] == [-signal.SIGKILL]
    check_end(left, said, run, {1}, processes=2)
    file.write_text(text)
    codes, outputs = wait_for(start_training(file, "--steps=4"))
    assert codes == [0, 0], outputs


@pytest.mark.slow
def test_two_of_four_processes_are_lost_and_the_others_end(staged: TrainConfig, tmp_path: Path) -> None:
    """One is killed, one is stopped. Each of the others names one of them."""
    long = replace(staged, name="two-lost", steps=100_000, evaluators=(), checkpoint=CheckpointConfig(every=5))
    file = write_config(tmp_path / "lost.py", long)
    processes = start_training(file, processes=4, devices=1)
    wait_for_steps(long, 12)
    processes[1].kill()
    processes[2].send_signal(signal.SIGSTOP)
    said = {i: processes[i].communicate(timeout=240)[0] for i in (0, 3)}
    wait_for(processes[1:3], kill=True)
    for i, text in said.items():
        check_end(processes[i], text, long, {1, 2}, processes=4)


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["updates were skipped", "times its median"])
def test_two_processes_go_back_as_one_does(config: TrainConfig, tmp_path: Path, reason: str) -> None:
    """To the same step, and over the same rows."""
    changes: dict[str, Any] = {"rollback": RollbackConfig(1, spike_factor=1.5)}
    if "skipped" in reason:
        changes = {"rollback": RollbackConfig(1), "max_consecutive_skips": 2, "objective": Fragile()}
    assert isinstance(config.data, TokenShards)
    assert config.data.path is not None
    one = replace(
        config,
        name=f"one {reason}",
        steps=32,
        grad_accum=1,
        data=Spoiled(config.data.path, (25, 27)),
        optimizer=AdamW(learning_rate=2e-2, schedule=Constant()),
        evaluators=(),
        checkpoint=CheckpointConfig(every=12),
        **changes,
    )
    two = replace(one, name=f"two {reason}", mesh=MeshConfig(fsdp=2))
    assert train(one) == 0
    file, place = write_config(tmp_path / "two.py", two), str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": os.pathsep.join([place, os.environ.get("PYTHONPATH", "")])}
    codes, outputs = wait_for(start_training(file, devices=1, **environment))
    assert codes == [0, 0], outputs
    assert reason in outputs[0]
    assert "Going back to step 24" in outputs[0]
    assert "Going back" not in outputs[1]
    assert dict(read_lines(two.directory)) == pytest.approx(dict(read_lines(one.directory)), abs=1e-3, nan_ok=True)
    for name in ("rolled_back_from", "row_offset", "rollbacks"):
        assert read_lines(two.directory, name) == read_lines(one.directory, name) != []
    assert RunDir.open(two.directory).content["row_offsets"] == RunDir.open(one.directory).content["row_offsets"]


def read_until(process: subprocess.Popen, words: str) -> list[str]:
    """The lines that it prints, to one with these words."""
    lines: list[str] = []
    assert process.stdout is not None
    while (line := process.stdout.readline()) and words not in line:
        lines.append(line)
    assert words in line, lines
    return [*lines, line]


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_disk_of_one_process_is_full_and_both_save_later(staged: TrainConfig, tmp_path: Path, full: int) -> None:
    """A limit of its files' size stands for the disk. The arrays are larger, all else is smaller."""
    often = CheckpointConfig(every=10)
    run = replace(staged, name=f"full{full}", steps=100_000, evaluators=(), checkpoint=often, log=LogConfig(every=10))
    file = write_config(tmp_path / "full.py", run)
    processes = start_training(file, devices=1)
    try:
        read_until(processes[0], "compiled")
        resource.prlimit(processes[full].pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        said = read_until(processes[0], "warning: ")
        assert "File too large (ulimit -f unlimited raises the limit)" in said[-1]
        assert ("process 1 of 2" in said[-1]) == bool(full)
        assert "Training goes on, and the save is tried again" in said[-1]
        read_until(processes[0], "step")
        assert complete_steps(run.directory / "checkpoints") == []
        resource.prlimit(processes[full].pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        while not complete_steps(run.directory / "checkpoints"):
            said += read_until(processes[0], "step")
        processes[0].terminate()
    except BaseException:
        wait_for(processes, kill=True)
        raise
    codes, outputs = wait_for(processes)
    assert codes == [143, 143], outputs
    outputs[0] += "".join(said)
    assert [output.count("not saved") for output in outputs] == [1, 0]
    assert "Traceback" not in "".join(outputs)
    saved = complete_steps(run.directory / "checkpoints")
    assert {path.name for path in (run.directory / "checkpoints").iterdir()} == set(map(str, saved))


@pytest.mark.slow
def test_two_processes_agree_on_the_clock_and_on_patience(config: TrainConfig, tmp_path: Path) -> None:
    """They save and stop at the same steps, although each has its own clock. A start makes steps in any case."""
    still = AdamW(learning_rate=1e-12, schedule=Constant())
    base = replace(config, mesh=MeshConfig(), steps=30, evaluators=())
    by_time = CheckpointConfig(every=None, keep=10, every_minutes=1e-6)
    runs = {
        "minutes": (replace(base, checkpoint=by_time), 0, [10, 20, 30]),
        "time": (replace(base, steps=100_000, max_time="1s", checkpoint=by_time), 75, [10]),
        "patience": (replace(base, optimizer=still, patience=3, evaluators=(ValidationLoss(every=1),)), 0, [2, 3]),
    }
    for name, (run, status, saved) in runs.items():
        run = replace(run, name=name)
        codes, outputs = wait_for(start_training(write_config(tmp_path / f"{name}.py", run), devices=1))
        assert codes == [status] * 2, outputs
        assert ("stopped: " in outputs[0]) == (name != "minutes")
        assert complete_steps(run.directory / "checkpoints") == saved
