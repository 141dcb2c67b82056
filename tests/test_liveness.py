"""Of several processes, those that are left name the one that is gone, and end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import find_free_port

from gptjax.process import process_end
from gptjax.process.native_output import NativeOutput
from gptjax.sharding import liveness
from gptjax.sharding.liveness import GRACE_SECONDS, ROOT, SILENCE_SECONDS, SUSPICION_SECONDS, Liveness, ProcessWatch


def beat(silent: set[int], *, count: int = 4) -> Callable[[int], dict[int, str]]:
    """The beats of all at each look; those in `silent` have stopped."""
    return lambda look: {i: "1" if i in silent else str(look) for i in range(count)}


def count_looks(beats: Callable[[int], dict[int, str] | None], **words: bool) -> tuple[int, int]:
    """(look, one each second, process that is gone then) as process 1 of 4 sees it."""
    watched = Liveness(1, 4)
    for look in range(1, 1000):
        gone = watched.look(beats(look), 1.0, **words)
        if gone is not None:
            return look, gone
    raise AssertionError("nobody is gone")


def test_process_that_does_not_beat_is_gone():
    assert count_looks(beat({3})) == (1 + SILENCE_SECONDS, 3)
    assert count_looks(beat({3}), suspicious=True) == (1 + SUSPICION_SECONDS, 3)


def test_store_that_does_not_answer_says_that_process_0_is_gone():
    assert count_looks(lambda look: None) == (SILENCE_SECONDS, 0)


def test_process_that_was_stopped_itself_accuses_nobody():
    watched = Liveness(0, 2)
    assert watched.look({1: "1"}, 1.0) is None
    assert watched.look({1: "1"}, 3600.0) is None


def test_lost_process_of_many_is_noticed_as_soon_and_living_ones_are_not_suspected():
    """128 processes exchange beats every 4 s; each look but those sees none."""
    for suspicious in (False, True):
        watched = Liveness(1, 128)
        assert watched.interval == 4.0
        read = lambda look: None if look % 4 else {i: "1" if i == 3 else str(look) for i in range(128)}
        gone = [watched.look(read(look), 1.0, suspicious=suspicious) for look in range(60)]
        assert set(gone) == {None, 3}
        assert gone.index(3) == (12 if suspicious else 36)


class Store:
    """What a process reads of the coordination service. Process 2 beats."""

    def __init__(self, entries: dict[str, str]) -> None:
        self.entries = {f"{ROOT}/host/{i}": f"node{i}" for i in range(3)} | entries
        self.reads = 0

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        if key in self.entries and not allow_overwrite:
            raise RuntimeError("ALREADY_EXISTS")
        self.entries[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        self.reads += 1
        return [*self.entries.items(), (f"{ROOT}/beat/2", str(self.reads))]


class Output(NativeOutput):
    """Libraries write nothing, or abort with this line."""

    def __init__(self, abort: str | None = None) -> None:
        self._abort = abort

    def find_abort(self) -> str | None:
        return self._abort

    def pass_on(self, now: float) -> None:
        return None


def watch(store: Store, monkeypatch: pytest.MonkeyPatch, *, abort: str | None = None) -> list[tuple[str, int]]:
    """With what message and status process 0 of 3 ends; its seconds pass at once."""
    seconds, ends = iter(range(10_000)), []

    def end(message: str, status: int) -> None:
        ends.append((message, status))
        raise SystemExit

    others = ProcessWatch(store, index=0, count=3, resume="gptjax train x", native=Output(abort), end=end)
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), sleep=lambda _: others.exchange())
    monkeypatch.setattr(liveness, "time", clock)  # not the module's functions, which other threads call, too
    with pytest.raises(SystemExit):
        others.monitor()
    return ends


def test_silent_process_is_named_with_its_host(monkeypatch: pytest.MonkeyPatch):
    store = Store({f"{ROOT}/beat/1": "7"})
    ((message, status),) = watch(store, monkeypatch)
    assert message.startswith("process 1 of 3 on node1 is gone")
    assert message.endswith("gptjax train x")
    assert status == 75
    assert store.entries[f"{ROOT}/gone"] == "1"


@pytest.mark.parametrize("status", [2, 143])
def test_process_that_ended_by_itself_is_repeated_with_its_status(status: int, monkeypatch: pytest.MonkeyPatch):
    ((message, found),) = watch(Store({f"{ROOT}/end/2": f"{status} its data is missing"}), monkeypatch)
    resume = "\nResume with, on all: gptjax train x" if status == 143 else ""  # else it would be refused again
    assert message == f"process 2 of 3 on node2 has ended: its data is missing{resume}"
    assert found == status
    assert GRACE_SECONDS < SILENCE_SECONDS


def test_first_of_many_processes_ends_once_the_others_have_read_why(monkeypatch: pytest.MonkeyPatch):
    """256 processes exchange beats every 8 s."""
    store, slept = Store({}), []
    others = ProcessWatch(store, index=0, count=256, resume="gptjax train x", native=Output())
    monkeypatch.setattr(liveness, "time", SimpleNamespace(sleep=slept.append))
    others.announce_end(143, "SIGTERM")
    assert store.entries[f"{ROOT}/end/0"] == "143 SIGTERM"
    assert slept == [others.announce_seconds] == [18.0]
    assert others.announce_seconds < process_end.ANNOUNCE_SECONDS
    del store.entries[f"{ROOT}/end/0"]
    others._decided.set()  # it ends for another one, which has told itself why
    others.announce_end(143, "process 3 of 256 on node3 has ended: SIGTERM")
    assert f"{ROOT}/end/0" not in store.entries
    assert len(slept) == 2


def test_error_is_waited_for_once(monkeypatch: pytest.MonkeyPatch):
    others = ProcessWatch(Store({}), index=0, count=3, resume="", native=Output(), hosts={1: "node1"})
    assert [others.name(i) for i in (1, 2)] == ["process 1 of 3 on node1", "process 2 of 3 on an unknown host"]
    now, waits = iter([100.0, 106.0, 170.0]), []
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(others, "_decided", SimpleNamespace(wait=waits.append))
    for seconds in (6.0, 60.0, 60.0):
        others.wait_for_failure_report(seconds)
    assert waits == [6.0, 54.0, 0.0]


def test_of_two_processes_that_ended_the_silent_one_was_not_killed(monkeypatch: pytest.MonkeyPatch):
    """Process 1 beats no more because it has ended, as process 2 has."""
    ends = {f"{ROOT}/beat/1": "7", f"{ROOT}/end/1": "2 its disk is full", f"{ROOT}/end/2": "2 its data is missing"}
    ((message, status),) = watch(Store(ends), monkeypatch)
    assert message.startswith("process 1 of 3 on node1 has ended: its disk is full")
    assert status == 2


@pytest.mark.parametrize(
    ("abort", "moved", "rest", "status"),
    [
        ("F1129 cuda.cc:7] no kernel", 60.0, "", 1),
        ("F1129 x] UNAVAILABLE: lost", 0.5, "\nResume with, on all: gptjax train x", 75),
        (
            "F1129 x] UNAVAILABLE: lost",
            -86400.0,
            "\nThe clock of this machine was set by -86,400 s, which JAX does not stand."
            "\nResume with, on all: gptjax train x",
            75,
        ),
    ],
)
def test_abort_while_all_others_live_is_said(
    abort: str, moved: float, rest: str, status: int, monkeypatch: pytest.MonkeyPatch
):
    clock = iter([7.0, 7.0 + moved])
    monkeypatch.setattr(liveness, "measure_clock", lambda: next(clock))
    beats = iter(range(1000))
    store = Store({})
    alive = store.key_value_dir_get
    beat_too = lambda key: [*alive(key), (f"{ROOT}/beat/1", str(next(beats)))]
    monkeypatch.setattr(store, "key_value_dir_get", beat_too)
    said = f"a library aborts process 0 of 3 on node0: {abort}{rest}"
    assert watch(store, monkeypatch, abort=abort) == [(said, status)]


MEMBER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so their children
from gptjax.process.console import safe_console
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.process.early_exit import exit_early
with safe_console(), exit_on_user_error(keeps_early_handler=True), exit_early():
    from gptjax.sharding.distributed import initialize_distributed
    initialize_distributed(command="the same command", resumes=sys.argv[1:] == ["resumes"])
    print("joined", flush=True)
    if sys.argv[1:] == ["fails"]:
        time.sleep(2)  # until the others have joined, too
        raise UserError("its data is missing")
    time.sleep(300)
"""


def start_members(directory: Path, *roles: str) -> list[subprocess.Popen]:
    """A process for each role, once all have joined."""
    place = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{find_free_port()}",
        "JAX_NUM_PROCESSES": str(len(roles)),
        "TMPDIR": str(directory),
    }
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, role],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | place | {"JAX_PROCESS_ID": str(i)},
        )
        for i, role in enumerate(roles)
    ]
    for member in members:
        assert member.stdout is not None
        said = iter(member.stdout.readline, "")
        assert "waiting for all of them" in next(said)
        assert "joined\n" in said, "after lines on who is missing, on a slow machine"
    return members


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stopped", [0, 1])
def test_signal_before_training_ends_both_processes(stopped: int, number: signal.Signals, tmp_path: Path):
    """JAX's handler would wait for the first step."""
    members = start_members(tmp_path, "waits", "waits")
    members[stopped].send_signal(number)
    try:
        outputs = [member.communicate(timeout=240)[0] for member in members]
    finally:
        for member in members:
            member.kill()
    name = "interrupted" if number == signal.SIGINT else "SIGTERM"
    assert outputs[stopped] == f"{name}\n"
    assert f"error: process {stopped} of 2 on {socket.gethostname()} has ended: {name}" in outputs[1 - stopped]
    assert [member.returncode for member in members] == [128 + number] * 2


@pytest.mark.slow
def test_signal_ends_a_lone_process_with_a_coordinator(tmp_path: Path):
    (member,) = start_members(tmp_path, "waits")
    member.terminate()
    try:
        assert member.communicate(timeout=240) == ("", None)
    finally:
        member.kill()
    assert member.returncode == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("lost", [0, 2])
def test_lost_process_ends_the_others_in_a_line(lost: int, number: signal.Signals, tmp_path: Path):
    """Of four; `test_processes.py` loses one of two."""
    count = 4
    members = start_members(tmp_path, *["waits"] * count)
    time.sleep(4)
    members[lost].send_signal(number)
    try:
        for i in sorted(set(range(count)) - {lost}):
            said, _ = members[i].communicate(timeout=240)
            first, second, third = said.splitlines()
            assert first.startswith(f"error: process {lost} of {count} on {socket.gethostname()} is gone")
            assert second.endswith("the same command")
            assert "stacks-" in third
            assert members[i].returncode == 75
    finally:
        for member in members:
            member.kill()
            member.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_user_error_of_one_process_ends_all(failing: int, tmp_path: Path):
    members = start_members(tmp_path, *["fails" if i == failing else "waits" for i in range(3)])
    for i, member in enumerate(members):
        with member:
            said = member.stdout.read()  # `communicate` would pass over what came together with "joined"
        place = "" if i == failing else f"process {failing} of 3 on {socket.gethostname()} has ended: "
        assert said.startswith(f"error: {place}its data is missing\n")
        assert member.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(("role", "status"), [("begins", 2), ("resumes", 75)])
def test_process_that_waits_for_others_in_vain_is_a_line(role: str, status: int, tmp_path: Path):
    """At a first start the variables are likelier wrong; of a run that has begun the others may come later."""
    place = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "1"}
    words = [sys.executable, "-c", MEMBER, role]
    environment = os.environ | place | {"GPTJAX_JOIN_SECONDS": "5", "TMPDIR": str(tmp_path)}
    child = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert child.returncode == status
    assert "error: process 0 did not answer at localhost:1 within 5 s." in child.stderr
    assert len(child.stderr.splitlines()) <= 3
