"""What processes that wait for others learn from their markers, and that no marker stays."""

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from jax._src import distributed
from tiny import python

from gptjax.process import process_end
from gptjax.sharding.start_judge import SILENCE_SECONDS, Judge, Mark, Process
from gptjax.sharding.start_marker import TWIN_BEATS, StartMarker, find_start

PLACE = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3"}


def make_mark(id: str = "x", *, beat: int = 1, time: float = 100.0, **changes: object) -> Mark:
    mark = Mark(id, beat, "node1", Process("another machine", 7, "1"), made=0, end=None, cause=None, time=time)
    return mark._replace(**changes)  # pyright: ignore[reportArgumentType]


def judge(*looks: Mark | None, seconds: float = 1.0, is_alive: bool | None = None) -> tuple[str, int] | None:
    """What process 0 of three learns of process 1, whose marker it sees so at each look."""
    found = Judge(0, 3, "own", is_alive=lambda *_: is_alive)
    for i, mark in enumerate(looks):
        if failure := found.look({} if mark is None else {1: mark}, now=i * seconds, own_time=100.0):
            return failure.message, failure.status
    return None


LONG = int(SILENCE_SECONDS) + 2
LIVE = [make_mark(beat=i) for i in range(LONG)]
STANDS = [make_mark()] * LONG
IS_GONE = ("process 1 of 3 on node1 is gone: it was killed or stopped before all had joined.", 75)


def test_only_what_was_seen_to_live_and_stands_still_is_dead():
    assert judge(*LIVE) is None
    assert judge(*[None] * LONG) is None  # late
    assert judge(*LIVE[:2], *[LIVE[1]] * LONG) == IS_GONE
    assert judge(*STANDS) == IS_GONE  # killed shortly before this process came
    assert judge(*STANDS[:4]) is None
    assert judge(*[make_mark(time=60.0)] * LONG) is None  # of an earlier start
    assert judge(*[make_mark(time=60.0)] * 5, *LIVE[:5], *[LIVE[5]] * LONG) == IS_GONE  # it has come anew
    assert judge(*STANDS[:5], None, make_mark("y"), *[make_mark("y", beat=2)] * 5) is None  # so has this one
    assert judge(*STANDS[:10], seconds=60.0) is None  # this process was stopped itself
    assert judge(*LIVE[:2], *[LIVE[1]] * 4, is_alive=False) == IS_GONE  # on this machine that is known at once
    assert judge(*LIVE[:2], *[LIVE[1]] * LONG, is_alive=True) is None  # it imports, from a slow disk


@pytest.mark.parametrize(("status", "repeated"), [(2, 2), (1, 1), (130, 75), (75, 75)])
def test_process_that_has_ended_is_told_with_its_error(status: int, repeated: int):
    ended = make_mark(beat=9, end=(status, "There is no flag --stepps."))
    said = ("process 1 of 3 on node1 has ended: There is no flag --stepps.", repeated)
    assert judge(None, ended) == judge(make_mark(), ended) == said
    assert judge(*[ended] * LONG) is None  # one that lives tells it to those that come later by new beats
    assert judge(ended, ended._replace(beat=10)) == said


def test_end_because_of_an_earlier_start_of_this_process_does_not_count():
    ended = make_mark(beat=9, end=(75, "process 0 of 3 on node0 is gone: …"), cause=(0, "an earlier one"))
    assert judge(None, ended) is None
    assert judge(None, ended._replace(cause=(0, "own"))) == ("process 0 of 3 on node0 is gone: …", 75)
    assert judge(None, ended._replace(cause=(2, "z"))) == ("process 0 of 3 on node0 is gone: …", 75)


def test_start_is_known_before_a_config_is_read():
    found = find_start(["--config=x", "--output_dir", "/data/runs"], PLACE | {"JAX_PROCESS_ID": "2"})
    assert found is not None
    assert (found.index, found.count) == (2, 3)
    assert found.directory.parent == Path("/data/runs")
    job = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    assert find_start([], PLACE | {"JAX_PROCESS_ID": "2", "JAX_COORDINATOR_ADDRESS": "localhost:1"}) != found
    starts = [find_start([], job | {"SLURM_JOB_ID": name}) for name in "778"]
    assert starts[0] == starts[1] != starts[2]
    assert starts[0] is not None
    assert starts[0].directory.parent == Path.cwd() / "runs"
    many = PLACE | {"JAX_PROCESS_ID": "2", "JAX_NUM_PROCESSES": "257"}
    for wrong in ({}, many, PLACE, PLACE | {"JAX_PROCESS_ID": "3"}, {"JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "3"}):
        assert find_start([], wrong) is None
    assert find_start(["--output-dir=gs://a"], PLACE | {"JAX_PROCESS_ID": "2"}) is None


@pytest.fixture
def start_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def begin(index: int) -> StartMarker:
        for name, value in (PLACE | {"JAX_PROCESS_ID": str(index)}).items():
            monkeypatch.setenv(name, value)
        StartMarker._latest = None  # as in another process
        marker = StartMarker.begin([f"--output-dir={tmp_path / 'runs'}"])
        assert marker is not None
        return marker

    yield begin
    process_end.set_peers(None)
    StartMarker._latest = None


def test_markers_leave_nothing_behind(start_of, tmp_path: Path):
    first, second = start_of(0), start_of(1)
    assert len([*(tmp_path / "runs").rglob("[0-9]")]) == 2
    first._exchange()
    second._exchange()
    assert second.list_absent() == [2]
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    first.close()
    second.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").write_text("not a directory")
    lone = start_of(0)
    assert lone.find_failure() is None
    lone.announce_end(2, "refused", seconds=0.0)


def test_handler_that_jax_has_set_outside_of_python_stays_when_all_have_joined(start_of, monkeypatch):
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    of_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: None)
    address = ctypes.cast(of_jax, ctypes.c_void_p).value
    marker = start_of(0)
    before = libc.signal(signal.SIGTERM, address)
    try:
        monkeypatch.setattr(distributed.global_state, "preemption_sync_manager", object())
        marker.close()
        assert libc.signal(signal.SIGTERM, before) == address
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_second_process_of_a_number_is_refused_and_tells_nothing(start_of, tmp_path: Path):
    first, other = start_of(1), start_of(0)
    second = start_of(1)
    for _ in range(TWIN_BEATS + 1):
        for marker in (first, second, other):
            marker._exchange()
    failure = second.find_failure()
    assert failure is not None
    assert failure.message.startswith("another process has come as process 1 of 3, too.")
    assert failure.status == 2
    second.announce_end(2, "refused")
    other._exchange()
    assert first.find_failure() is None
    assert other.find_failure() is None
    for marker in (first, other):
        marker.close()
    assert list(tmp_path.iterdir()) == []


def test_process_that_ended_is_told_and_makes_way_for_one_that_comes_again(start_of, tmp_path: Path, monkeypatch):
    first, other = start_of(1), start_of(0)
    first._exchange()
    other._exchange()
    teller = threading.Thread(target=first.announce_end, args=(2, "There is no flag --stepps.\nmore"))
    teller.start()
    while (failure := other.find_failure()) is None:
        other._exchange()
        time.sleep(0.01)
    assert (failure.index, failure.status) == (1, 2)
    assert failure.message.endswith("has ended: There is no flag --stepps.")
    other.close()
    again = start_of(1)
    assert again._is_written
    teller.join(timeout=20)
    assert not teller.is_alive()  # its place was taken
    StartMarker._latest = again
    monkeypatch.delenv("JAX_PROCESS_ID")
    assert StartMarker.begin([]) is None  # a later call in a notebook
    assert again._closed.is_set()
    assert list(tmp_path.iterdir()) == []


def test_process_of_this_machine_is_looked_up():
    own = Process.own()
    if not own.machine:
        pytest.skip("this system does not tell")
    began = ""
    child = subprocess.Popen(["sleep", "60"])
    try:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        process = Process(own.machine, child.pid, began := fields[19])
        assert process.is_alive(own)
        assert process._replace(began="1").is_alive(own) is False  # its number was given to another
        assert process._replace(machine="another").is_alive(own) is None
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Process(own.machine, child.pid, began).is_alive(own) is False  # also while its parent has not asked
        child.wait()


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [True, False])
def test_process_that_ends_before_it_joins_ends_the_others(is_killed: bool, tmp_path: Path):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    words = ["-m", "gptjax.train", "--config=quickstart", f"--output-dir={tmp_path / 'runs'}"]
    members = []
    for i in range(2):  # the third is late
        place = PLACE | {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(i), "TMPDIR": str(tmp_path)}
        wrong = ["--stepps=5"] if i == 1 and not is_killed else []
        members.append(python(*words, *wrong, devices=1, **place))
    try:
        if is_killed:
            members[1].stdout.readline()  # it waits for the third
            members[1].kill()
        outputs = [member.communicate(timeout=120)[0] for member in members]
    finally:
        for member in members:
            member.kill()
    what = "is gone: it was killed" if is_killed else "has ended: There is no flag --stepps."
    assert f"error: process 1 of 3 on {socket.gethostname()} {what}" in outputs[0]
    assert members[0].returncode == (75 if is_killed else 2)
    assert not (tmp_path / "runs").exists()
