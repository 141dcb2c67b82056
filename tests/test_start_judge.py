"""What a process learns from the markers of the others before all have joined."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gptjax.sharding import start_judge
from gptjax.sharding.start_judge import Failure, Judge, Mark, Process

AWAY = Process("another machine", 7, "1")


def make_mark(id: str = "x", *, beat: int = 1, time: float = 100.0, **changes: object) -> Mark:
    mark = Mark(id, beat, "node1", AWAY, made=0, end=None, cause=None, time=time)
    return mark._replace(**changes)  # pyright: ignore[reportArgumentType]


def judge(
    *looks: Mark | None, seconds: float = 1.0, is_alive: Callable[[int], bool | None] = lambda look: None
) -> Failure | None:
    """What process 0 of three learns of process 1, whose marker it sees so at each look, `seconds` apart."""
    found = Judge(0, 3, "own", is_alive=lambda *_: is_alive(look))
    for look, mark in enumerate(looks):
        if failure := found.look({} if mark is None else {1: mark}, now=look * seconds, own_time=100.0):
            return failure
    return None


STANDS = [make_mark()]
LIVES = [make_mark(beat=2)]
"""After `STANDS`, it was seen to live."""
OLD = [make_mark(time=60.0)]
IS_GONE = Failure(1, "process 1 of 3 on node1 is gone: it was killed or stopped before all had joined.", 75)


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ([make_mark(beat=beat) for beat in range(99)], None),  # it lives
        ([None] * 99, None),  # it is late
        ([*STANDS, *LIVES * 60], IS_GONE),  # within a minute
        ([*STANDS, *LIVES * 30], None),  # imports from a slow disk
        (STANDS * 60, IS_GONE),  # killed shortly before this process came
        (STANDS * 30, None),
        ([make_mark(time=75.0)] * 60, IS_GONE),
        (OLD * 99, None),  # of an earlier start
        ([*OLD * 5, *STANDS, *LIVES * 60], IS_GONE),  # it has come anew
        ([*STANDS * 30, *[make_mark("y")] * 30], None),  # so has this one
        ([*STANDS * 30, None, *STANDS * 30], None),
        ([*STANDS, *LIVES, *[None] * 99], None),  # it has left
    ],
)
def test_only_what_was_seen_to_live_and_stands_still_is_gone(looks: list[Mark | None], found: Failure | None):
    assert judge(*looks) == found
    assert judge(*looks[:11], seconds=60.0) is None  # this process was stopped itself


@pytest.mark.parametrize(
    ("looks", "is_alive", "found"),
    [
        ([*STANDS, *LIVES * 5], lambda look: False, IS_GONE),  # known at once
        (STANDS * 9, lambda look: False, None),  # perhaps of an earlier start
        (STANDS * 60, lambda look: False, IS_GONE),
        ([*STANDS, *LIVES * 99], lambda look: True, None),  # its disk hangs
        ([*STANDS, *LIVES * 60], lambda look: look < 50 or None, None),
        ([*STANDS * 60], lambda look: look < 50, None),
        (OLD * 99, lambda look: look < 5, None),  # one of an earlier start lived a little longer
    ],
)
def test_process_of_this_machine_is_asked_whether_it_lives(
    looks: list[Mark], is_alive: Callable[[int], bool | None], found: Failure | None
):
    assert judge(*looks, is_alive=is_alive) == found


def test_stopped_process_is_gone_within_a_minute_and_may_go_on_before(monkeypatch: pytest.MonkeyPatch):
    own = Process.own()
    stopped = make_mark(process=own._replace(machine="m", pid=7, began="5"))
    monkeypatch.setattr(Process, "own", classmethod(lambda cls: Process("m", 1, "1")))
    monkeypatch.setattr(start_judge, "_read_state", {7: ("T", "5"), 1: ("R", "1")}.get)
    renewed = stopped._replace(beat=2)
    no = lambda look: False
    assert judge(stopped, *[renewed] * 9, is_alive=no) is None
    assert judge(stopped, *[renewed] * 60, is_alive=no) == IS_GONE
    assert judge(*[stopped._replace(time=60.0)] * 60, is_alive=no) == IS_GONE  # also before this process came


@pytest.mark.parametrize(
    ("state", "is_alive", "is_stopped"),
    [
        (("S", "5"), True, False),
        (("Z", "5"), False, False),
        (("X", "5"), False, False),
        (("T", "5"), False, True),
        (("t", "5"), False, True),
        (("S", "6"), False, False),  # its number was given to another
        (("T", "6"), False, False),
        (None, False, False),
    ],
)
def test_process_is_known_by_its_number_and_when_it_began(
    state: tuple[str, str] | None, is_alive: bool, is_stopped: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(start_judge, "_read_state", lambda pid: state if pid == 7 else None)
    process, own = Process("m", 7, "5"), Process("m", 1, "1")
    assert (process.is_alive(own), process.is_stopped(own)) == (is_alive, is_stopped)
    for machine in ("other", ""):  # where the system does not tell, both machines are ""
        away = own._replace(machine=machine)
        assert process._replace(machine="" if machine == "" else "m").is_alive(away) is None
    assert process.is_stopped(own._replace(machine="other")) is False


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
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Process(own.machine, child.pid, began).is_alive(own) is False  # also while its parent has not asked
        child.wait()


@pytest.mark.parametrize(("status", "repeated"), [(2, 2), (1, 1), (130, 75), (75, 75)])
def test_process_that_has_ended_is_told_with_its_error(status: int, repeated: int):
    ended = make_mark(beat=9, end=(status, "There is no flag --stepps."))
    said = Failure(1, "process 1 of 3 on node1 has ended: There is no flag --stepps.", repeated)
    assert judge(None, ended) == judge(make_mark(), ended) == said
    assert judge(*[ended] * 99) is None  # one that lives tells it to those that come later by new beats
    assert judge(ended, ended._replace(beat=10)) == said


def test_end_because_of_an_earlier_start_of_this_process_does_not_count():
    text = "process 0 of 3 on node0 is gone: …"
    ended = make_mark(beat=9, end=(75, text), cause=(0, "an earlier one"))
    assert judge(None, ended) is None
    assert judge(None, ended._replace(cause=(0, "own"))) == Failure(0, text, 75)
    assert judge(None, ended._replace(cause=(2, "z"))) == Failure(2, text, 75)


def test_first_of_several_failures_is_told_and_the_own_marker_is_none():
    found = Judge(1, 3, "own")
    ended = {i: make_mark(str(i), end=(2, str(i))) for i in range(3)}
    assert found.look({}, now=0.0, own_time=100.0) is None
    assert found.look({1: ended[1]}, now=1.0, own_time=100.0) is None
    assert found.seen == {}
    failure = found.look(ended, now=2.0, own_time=100.0)
    assert failure is not None
    assert failure.index == 0


def test_judge_knows_who_has_come_who_waits_and_whose_marker_nobody_removes():
    is_alive = False
    found = Judge(0, 8, "own", is_alive=lambda *_: is_alive)
    marks = {i: make_mark(str(i)) for i in (1, 2, 3, 4)}
    looks = [{1: marks[1]}, marks, *[marks] * 2, {i: marks[i] for i in (1, 2, 3)}]
    looks[3:] = [{**each, 3: marks[3]._replace(beat=i, end=(75, ""))} for i, each in enumerate(looks[3:], 2)]
    for now, each in enumerate(looks):
        found.look(each, now=float(now), own_time=100.0)
    assert found.seen.keys() == {2, 3, 4}  # the first stands still, the last one has joined
    assert found.list_waiting() == [2]
    known = {i: found.is_dead(marks[i]) for i in marks}
    assert known == {1: True, 2: True, 3: False, 4: False}
    assert found.is_dead(looks[-1][3])
    for now in (5, 6, 7):
        found.look(looks[-1], now=float(now), own_time=100.0)
    assert found.list_waiting() == []
    is_alive = True
    assert found.list_waiting() == [2]
    young = Judge(0, 8, "own")
    for now in range(2):
        young.look({1: marks[1]} if now else {}, now=float(now), own_time=100.0)
    assert not young.is_dead(marks[1])


def test_many_processes_look_more_seldom():
    assert [Judge(0, count, "own").interval for count in (2, 32, 256)] == [1.0, 1.0, 8.0]
