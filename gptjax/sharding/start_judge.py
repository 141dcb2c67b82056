"""Decides from the markers of the others (`start_marker`) whether one has ended or died before all had joined.

Only what a reader has seen change counts. So clocks may differ, and a marker that an earlier start has left is nothing.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.process.early_exit import REQUEUE_STATUS

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 40.0
"""A process whose marker stands still for so long is gone. Imports from a slow disk may keep one silent for a while."""
DEAD_SECONDS = 3.0
"""The same, if it ran on this machine and does not exist there."""
YOUNG_SECONDS = 30.0
"""A marker that stood still before this process came is of the same start if it is not older; else of an earlier one.
The times are those of the file system, for all of them."""
_REPEATED = (1, 2)
"""Statuses of faults that stay. After any other a scheduler should start all again."""


def describe_twin(who: str) -> str:
    return f"another process has come as {who}, too. Give each its own JAX_PROCESS_ID, from 0 on."


class Process(NamedTuple):
    """What tells a process from all others: its machine and namespace, its number, and when it began."""

    machine: str
    pid: int
    began: str

    @classmethod
    def own(cls) -> "Process":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        except OSError:  # not Linux
            machine = ""
        return cls(machine, os.getpid(), (_read_state(os.getpid()) or ("", ""))[1])

    def is_alive(self, own: "Process") -> bool | None:
        """Whether it exists and was not stopped; None for a process that does not show here."""
        if not self.machine or self.machine != own.machine:
            return None
        state = _read_state(self.pid)
        return state is not None and state[1] == self.began and state[0] not in "ZXTt"

    def is_stopped(self, own: "Process") -> bool:
        state = _read_state(self.pid) if self.machine == own.machine else None
        return state is not None and state[1] == self.began and state[0] in "Tt"


def _read_state(pid: int) -> tuple[str, str] | None:
    """(state, when it began in ticks) of a process of this machine; None without one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]


class Mark(NamedTuple):
    """What a marker says. `end` are a status and an error; `cause` are the process for which this one has ended,
    and the id of its marker."""

    id: str
    beat: int
    host: str
    process: Process
    made: int
    end: tuple[int, str] | None
    cause: tuple[int, str] | None
    time: float

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, time: float) -> "Mark":
        """Raises a LookupError, a TypeError or a ValueError for another file."""
        process = Process(str(content["machine"]), int(content["pid"]), str(content["began"]))
        end = content["end"] and (int(content["end"][0]), str(content["end"][1]))
        cause = content["cause"] and (int(content["cause"][0]), str(content["cause"][1]))
        id, beat, made = str(content["id"]), int(content["beat"]), int(content["made"])
        return cls(id, beat, str(content["host"]), process, made, end, cause, time)


@dataclass(frozen=True)
class Failure:
    """Why the wait for process `index` is over, and the status with which those that wait end."""

    index: int
    message: str
    status: int


@dataclass
class _Seen:
    mark: Mark
    is_fresh: bool
    """It has changed while this process looked."""
    silent: float = 0.0


class Judge:
    """Knows the newest marker of each other process, and for how long it has stood still."""

    def __init__(
        self, index: int, count: int, id: str, *, is_alive: Callable[[Process, Process], bool | None] = Process.is_alive
    ) -> None:
        self.own_process = Process.own()
        self.interval = max(BEAT_SECONDS, count / 32)
        self.seen: dict[int, str] = {}
        """The hosts of those that have come in this start."""
        self._index, self._count, self._id, self._is_alive = index, count, id, is_alive
        self._marks: dict[int, _Seen] = {}
        self._last: float | None = None

    def look(self, marks: Mapping[int, Mark], *, now: float, own_time: float) -> Failure | None:
        """The first failure that these markers tell, if any does. `now` is this process's steady clock.

        `own_time` is when this process's own marker was written, by the clock of the file system.
        """
        # Time in which this process was stopped itself does not count.
        seconds = 0.0 if self._last is None else min(now - self._last, 2 * self.interval)
        others = {i: mark for i, mark in marks.items() if i != self._index}
        self._marks = {i: seen for i, seen in self._marks.items() if i in others}
        for i, mark in others.items():
            seen = self._marks.get(i)
            if seen is not None and seen.mark.id == mark.id and seen.mark.beat == mark.beat:
                seen.silent += seconds
            elif self._last is not None:
                self._marks[i] = _Seen(mark, is_fresh=True)
            else:
                self._add_first(i, mark, own_time - mark.time)
        self._last = now
        # Another thread may be reading the one before.
        self.seen = self.seen | {i: seen.mark.host for i, seen in self._marks.items() if seen.is_fresh}
        return next(filter(None, map(self._judge, sorted(self._marks))), None)

    def _add_first(self, i: int, mark: Mark, age: float) -> None:
        is_old = age > YOUNG_SECONDS and not mark.process.is_stopped(self.own_process)
        self._marks[i] = _Seen(mark, is_fresh=False, silent=float("-inf") if is_old else 0.0)

    def _judge(self, i: int) -> Failure | None:
        mark, is_fresh, silent = self._marks[i].mark, self._marks[i].is_fresh, self._marks[i].silent
        name = f"process {i} of {self._count} on {mark.host}"
        if mark.end is not None:
            status, text = mark.end
            of_earlier = mark.cause is not None and mark.cause[0] == self._index and mark.cause[1] != self._id
            if not is_fresh or of_earlier:
                return None
            status = status if status in _REPEATED else REQUEUE_STATUS
            if mark.cause is not None:
                return Failure(mark.cause[0], text, status)
            return Failure(i, f"{name} has ended: {text}", status)
        is_alive = self._is_alive(mark.process, self.own_process)
        if is_alive:
            self._marks[i].silent = min(silent, 0.0)  # it may import, or its disk hang
            return None
        is_dead = is_alive is False and not mark.process.is_stopped(self.own_process)
        if silent < (DEAD_SECONDS if is_dead and is_fresh else SILENCE_SECONDS):
            return None
        return Failure(i, f"{name} is gone: it was killed or stopped before all had joined.", REQUEUE_STATUS)

    def is_dead(self, mark: Mark) -> bool:
        """Whether nobody will remove this marker."""
        known = next((seen for seen in self._marks.values() if seen.mark.id == mark.id), None)
        return known is not None and (mark.end is not None or known.silent >= DEAD_SECONDS)

    def list_waiting(self) -> list[int]:
        """Those that have not read yet why this process ends."""
        limit = 5 * self.interval
        return [
            i
            for i, seen in self._marks.items()
            if seen.is_fresh
            and seen.mark.end is None
            and (seen.silent < limit or self._is_alive(seen.mark.process, self.own_process))
        ]
