"""What processes that wait for others learn from their markers, and that no marker stays."""

import errno
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from tiny import find_free_port, python

from gptjax.process import process_end
from gptjax.sharding import joining, start_marker, start_place
from gptjax.sharding.joining import JoinWatch
from gptjax.sharding.start_judge import Failure
from gptjax.sharding.start_marker import StartMarker, _find_network, find_start
from gptjax.sharding.start_place import TWIN_BEATS, Start

PLACE = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3"}


def test_start_is_known_before_a_config_is_read():
    found = find_start(["--config=x", "--output_dir", "/data/runs"], PLACE | {"JAX_PROCESS_ID": "2"})
    assert found is not None
    assert (found.index, found.count) == (2, 3)
    assert found.directory.parent == Path("/data/runs")
    job = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    for change in ({"JAX_COORDINATOR_ADDRESS": "b:1"}, {"JAX_NUM_PROCESSES": "4"}):
        other = find_start(["--output-dir=/data/runs"], PLACE | {"JAX_PROCESS_ID": "2"} | change)
        assert other is not None
        assert other.directory != found.directory
    starts = [find_start([], job | {"SLURM_JOB_ID": name}) for name in "778"]
    assert starts[0] == starts[1] != starts[2]
    assert starts[0] is not None
    assert starts[0].directory.parent == Path.cwd() / "runs"
    many = PLACE | {"JAX_PROCESS_ID": "2", "JAX_NUM_PROCESSES": "257"}
    alone = PLACE | {"JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "1"}
    no_place = {"JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "3"}
    for wrong in ({}, many, alone, PLACE, PLACE | {"JAX_PROCESS_ID": "3"}, no_place):
        assert find_start([], wrong) is None
    assert find_start(["--output-dir=gs://a"], PLACE | {"JAX_PROCESS_ID": "2"}) is None


def test_address_of_one_machine_alone_means_that_machine(monkeypatch: pytest.MonkeyPatch):
    place = PLACE | {"JAX_PROCESS_ID": "2", "JAX_COORDINATOR_ADDRESS": "[::1]:1"}
    here = find_start([], place)
    assert [bool(_find_network(f"{host}:1")) for host in ("localhost", "127.0.0.5", "[::1]", "node1", "")] == [
        *[True] * 3,
        *[False] * 2,
    ]
    monkeypatch.setattr(start_marker, "_find_network", lambda address: "another machine")
    assert find_start([], place) != here


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


class Members:
    """Markers of the processes of one start, without threads. Time passes while one of them sleeps."""

    def __init__(self, directory: Path) -> None:
        self.now, self.directory = 0.0, directory
        self.others: list[StartMarker] = []
        """They exchange while one sleeps."""

    def begin(self, index: int, *, is_away: bool = False) -> StartMarker:
        """A marker, which is written; one that `is_away` is of a machine that cannot be asked."""
        marker = StartMarker(Start(self.directory / "runs" / ".start-0123456789ab", index, 3))
        if is_away:
            marker._content["machine"] = "another machine"
        marker._exchange()
        return marker

    def exchange(self, *markers: StartMarker, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.now += 1.0
            for marker in markers:
                marker._exchange()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for marker in self.others:
            marker._exchange()

    def measure_end(self, marker: StartMarker, *arguments: Any, **options: Any) -> float:
        """The seconds that one took to tell the others of its end."""
        begun = self.now
        marker.announce_end(*arguments, **options)
        return self.now - begun


@pytest.fixture
def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Members:
    made = Members(tmp_path)
    clock = SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep, strftime=time.strftime, gmtime=time.gmtime)
    for module in (start_marker, start_place):
        monkeypatch.setattr(module, "time", clock)
    return made


def list_left(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_one_that_ends_tells_those_that_wait_for_a_minute(members: Members, capsys: pytest.CaptureFixture[str]):
    first, other = members.begin(0), members.begin(1)
    members.exchange(first, other)
    members.others = [other]
    assert members.measure_end(first, 2, "There is no flag.\nmore") == 60.0
    failure = other.find_failure()
    assert failure is not None
    assert (failure.index, failure.status) == (0, 2)
    assert failure.message.endswith("has ended: There is no flag.")
    assert capsys.readouterr().err.count("tells the others why it ends") == 1
    assert list_left(members.directory) == ["runs/.start-0123456789ab/1"]
    assert members.measure_end(first, 2, "again") == 0.0
    first._exchange()
    assert list_left(members.directory) == ["runs/.start-0123456789ab/1"]


@pytest.mark.parametrize(
    ("others", "waits", "seconds", "wanted"),
    [
        (0, False, None, 10.0),  # those that begin a little later
        (0, False, 3.0, 3.0),
        (0, True, None, 0.0),
        (1, True, None, 8.0),  # the end of a process that waits takes no longer
        (1, False, 3.0, 3.0),
    ],
)
def test_one_that_ends_waits_for_late_ones_and_no_longer_than_it_may(
    others: int, waits: bool, seconds: float | None, wanted: float, members: Members
):
    first, *members.others = (members.begin(i) for i in range(others + 1))
    members.exchange(first, *members.others)
    if waits:
        assert first.find_failure() is None
    assert members.measure_end(first, 2, "", **({} if seconds is None else {"seconds": seconds})) == wanted


def test_one_that_ends_waits_for_nobody_who_has_ended_too(members: Members):
    first, second, third = (members.begin(i) for i in range(3))
    members.exchange(first, second, third)
    for marker in (second, third):
        marker._content["end"] = [75, "the same"]
    members.others = [second, third]
    assert members.measure_end(first, 75, "") == 0.5
    lone = members.begin(0)
    lone.start.directory.rename(members.directory / "moved")
    lone.start.directory.write_text("")  # it cannot write any more, and nobody reads
    assert members.measure_end(lone, 75, "") == 0.0


@pytest.mark.parametrize(("status", "resumes"), [(75, True), (2, False)])
def test_one_that_ends_for_another_names_it_and_removes_its_marker(
    status: int, resumes: bool, members: Members, monkeypatch: pytest.MonkeyPatch
):
    ends: list[tuple[str, int]] = []

    def end(message: str, *, status: int) -> NoReturn:
        ends.append((message, status))
        raise SystemExit(status)

    monkeypatch.setattr(start_marker, "end_process", end)
    first, gone, third = members.begin(0), members.begin(1, is_away=True), members.begin(2)
    members.exchange(first, gone, third)
    with pytest.raises(SystemExit):
        first.end_for(Failure(1, "gone", status))
    with pytest.raises(SystemExit):
        third.end_for(Failure(2, "its own end", 75))
    assert ends == [
        ("gone\nResume with, on all: the same command" if resumes else "gone", status),
        ("its own end", 75),
    ]
    members.exchange(first, third, rounds=2)
    assert first._content["cause"] == [1, gone._content["id"]]
    third.close()
    assert list_left(members.directory) == [f"runs/.start-0123456789ab/{i}" for i in (0, 1)]
    members.exchange(first, rounds=3)
    first.close()
    assert list(members.directory.iterdir()) == []


def test_marker_of_one_that_lives_is_left(members: Members):
    first, other = members.begin(0), members.begin(1, is_away=True)
    members.exchange(first, other)
    first._content["cause"] = [1, other._content["id"]]
    (first.start.directory / "0").unlink()
    twin = members.begin(0)
    first.close()
    assert list_left(members.directory) == [f"runs/.start-0123456789ab/{i}" for i in (0, 1)]
    other.close()
    twin.close()
    assert list(members.directory.iterdir()) == []


def test_directories_of_the_user_stay_and_those_that_were_made_go_with_the_last_marker(members: Members):
    (members.directory / "mine").mkdir()
    members.directory /= "mine"
    killed = members.begin(1, is_away=True)
    again = StartMarker(killed.start)
    members.exchange(again, rounds=7)
    assert again._places[0].is_written  # it has the place of one that stood still
    again.close()
    assert list(members.directory.parent.iterdir()) == [members.directory]
    assert list(members.directory.iterdir()) == []


@pytest.mark.parametrize("is_away", [False, True])
def test_place_of_one_that_may_live_is_taken_only_where_it_stands_still(is_away: bool, members: Members):
    first = members.begin(1, is_away=is_away)
    second = StartMarker(first.start)
    members.exchange(second, rounds=5)
    assert not second._places[0].is_written
    members.exchange(second, rounds=2)
    assert second._places[0].is_written == is_away
    assert second.find_failure() is None


def test_place_of_one_that_is_known_to_be_dead_is_taken_at_once(members: Members):
    killed = members.begin(1)
    killed._content["began"] = "of a process that had this number before"
    killed._exchange()
    second = StartMarker(killed.start)
    second._exchange()
    assert second._places[0].is_written or not second._places[0].judge.own_process.machine  # not Linux


def test_one_whose_number_another_renews_is_refused_after_three_beats(members: Members):
    first = members.begin(1, is_away=True)
    second, third = StartMarker(first.start), StartMarker(first.start)
    third._places[0].failure = known = Failure(0, "process 0 has ended", 75)
    for marker in (second, third):
        marker._exchange()
    for beat in range(1, 8):
        members.exchange(first, second, third)
        members.exchange(second, third, rounds=2)
        failure = second.find_failure()
        assert (failure is None) == (beat < 3)
        assert failure is None or (failure.index, failure.status) == (1, 2)
        assert not second._places[0].is_written
    assert third.find_failure() is known


def test_marker_is_left_where_the_config_says_too_and_either_place_tells_of_the_others(members: Members):
    local, shared = members.directory / "mine/runs", members.directory / "shared/runs"
    first = members.begin(0)
    other = StartMarker(replace(first.start, index=1, directory=local / first.start.directory.name))
    for marker in (first, other):
        marker.add_place(shared)
        marker.add_place(shared)
    members.exchange(first, other)
    assert (first.list_absent(), first.hosts) == ([2], {1: socket.gethostname()})
    assert len(list_left(members.directory)) == 4
    members.others = [first]
    other.announce_end(2, "There is no data.", seconds=1.0)
    failure = first.find_failure()
    assert failure is not None
    assert failure.message.endswith("has ended: There is no data.")
    first.close()
    first.add_place(members.directory / "late")
    assert list(members.directory.iterdir()) == []


def test_process_whose_number_only_jax_knows_leaves_its_marker_once_jax_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    state = SimpleNamespace(client=None, coordinator_address="node1:1", process_id=1, num_processes=3)
    monkeypatch.setattr(joining.distributed, "global_state", state)
    monkeypatch.setattr(StartMarker, "_exchange_forever", lambda self: None)  # a file would have its other name a while
    monkeypatch.setattr(StartMarker, "_latest", None)
    watch = JoinWatch(address=None, index=None, count=None, seconds=300, command="train again", runs=tmp_path / "runs")
    watch._leave_marker()
    assert list(tmp_path.iterdir()) == []
    assert watch.hosts == {0: "node1"}
    state.client = object()
    watch._leave_marker()
    marker = StartMarker._latest
    assert marker is not None
    assert (marker.start.index, marker.start.count, marker.command) == (1, 3, "train again")
    watch._present = Counter(node1=1)
    assert "process 0 is there" in (watch.describe_progress(30.0) or "")
    watch._index, watch._present = 0, Counter(node1=1, node2=1)
    assert (watch.describe_progress(30.0) or "").startswith("2 of 3 processes are here (from node1, node2) after 30 s")
    assert list_left(tmp_path) == [f"runs/{marker.start.directory.name}/1"]
    watch.__exit__(None)
    assert list(tmp_path.iterdir()) == []
    watch._leave_marker()
    assert list(tmp_path.iterdir()) == [], "the process has joined"


def test_first_failure_stays_known_and_a_lone_process_misses_nobody(members: Members):
    first, other = members.begin(0), members.begin(1)
    assert first.list_absent() == []
    assert first.count_seen() == 1
    members.exchange(first, other)
    assert first.list_absent() == [2]
    assert first.count_seen() == 2
    other._content["end"] = [2, "refused"]
    members.exchange(other, first)
    known = first.find_failure()
    assert known is not None
    other.close()
    members.exchange(first)
    assert first.find_failure() == known
    first.close()
    assert list(members.directory.iterdir()) == []


def test_marker_is_written_in_one_piece_and_what_is_none_is_passed_over(
    members: Members, monkeypatch: pytest.MonkeyPatch
):
    first = members.begin(0)
    for i, content in enumerate(("", "[]", '{"id": "x"}', json.dumps(first._content | {"end": [1]})), 1):
        (first.start.directory / str(i)).write_text(content)
        assert first._places[0].read_mark(i) is None
        (first.start.directory / str(i)).unlink()

    def fail(path: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = (first.start.directory / "0").read_text()
    assert json.loads(before)["beat"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        first._exchange()
    assert not first._places[0].is_written
    assert list_left(members.directory) == ["runs/.start-0123456789ab/0"]
    assert (first.start.directory / "0").read_text() == before
    first._exchange()
    assert first._places[0].is_written
    assert json.loads((first.start.directory / "0").read_text())["beat"] == 3


def test_start_removes_directories_of_markers_that_are_older_than_an_hour(start_of, tmp_path: Path):
    names = {".start-000000000001": 7200, ".start-000000000002": 1800, "a run": 7200}
    for name, age in names.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        then = time.time() - age
        os.utime(tmp_path / "runs" / name, (then, then))
    marker = start_of(0)
    left = {path.name for path in (tmp_path / "runs").iterdir()} - {marker.start.directory.name}
    assert left == {".start-000000000002", "a run"}
    marker.close()


def test_marker_renews_itself_and_hears_of_the_end_of_the_process(start_of, monkeypatch: pytest.MonkeyPatch):
    at_exit: list[object] = []
    monkeypatch.setattr(start_marker.atexit, "register", at_exit.append)
    monkeypatch.setattr(start_marker.atexit, "unregister", at_exit.remove)
    threads = [thread for thread in threading.enumerate() if thread.name == "start marker"]
    marker = start_of(0)
    assert [one for one in threading.enumerate() if one.name == "start marker" and one not in threads]
    assert process_end.has_peers()
    assert at_exit == [marker.close]
    marker.close()
    assert not process_end.has_peers()
    assert at_exit == []


def test_marker_is_removed_once_a_slow_file_system_allows_it(start_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(start_marker, "CLOSE_SECONDS", 0.01)
    others = threading.enumerate()
    marker = start_of(0)
    (thread,) = [one for one in threading.enumerate() if one.name == "start marker" and one not in others]
    is_held, is_free = threading.Event(), threading.Event()

    def hold() -> None:
        with marker._lock:
            is_held.set()
            is_free.wait()

    exchange = threading.Thread(target=hold)
    exchange.start()
    is_held.wait()
    marker.close()
    assert not process_end.has_peers()
    assert list_left(tmp_path / "runs") != []
    is_free.set()
    for one in (exchange, thread):
        one.join(timeout=300)
    assert list(tmp_path.iterdir()) == []


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
    assert again._places[0].is_written
    teller.join(timeout=300)
    assert not teller.is_alive()  # its place was taken
    StartMarker._latest = again
    monkeypatch.delenv("JAX_PROCESS_ID")
    assert StartMarker.begin([]) is None  # a later call in a notebook
    assert again._closed.is_set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [True, False])
def test_process_that_ends_before_it_joins_ends_the_others(is_killed: bool, tmp_path: Path):
    address = f"localhost:{find_free_port()}"
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
        outputs = [member.communicate(timeout=240)[0] for member in members]
    finally:
        for member in members:
            member.kill()
    what = "is gone: it was killed" if is_killed else "has ended: There is no flag --stepps."
    assert f"error: process 1 of 3 on {socket.gethostname()} {what}" in outputs[0]
    assert members[0].returncode == (75 if is_killed else 2)
    assert not (tmp_path / "runs").exists()
