"""What the processes of a run know of each other before they are connected: a file of each in a shared directory.

Each process leaves a marker as its first act, renews it every second, and removes it once all have joined. Those that
wait so learn within a minute that one was killed, and at once that one was refused. One without a marker is late, and
is waited for. A directory that cannot be written or is not shared tells nothing.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.process.early_exit import REQUEUE_STATUS, set_early_announcement
from gptjax.process.process_end import end_process, set_peers
from gptjax.sharding.start_judge import Failure, Judge, Mark, describe_twin

_PREFIX = ".start-"
DIRECTORIES = _PREFIX + 12 * "[0-9a-f]"
"""The pattern of the names of directories of markers."""
ABANDONED_SECONDS = 3600
"""A directory of markers in which nobody wrote for so long is removed by the next start."""
LATE_SECONDS = 10.0
"""One that is refused waits so long for others that begin a little later, to tell them why."""
TELL_SECONDS = 60.0
"""The same for those that have begun. They read it once they wait."""
WAITING_SECONDS = 8.0
"""The same for one that waits: so do others, and they read every second."""
SIGNAL_SECONDS = 3.0
"""The same after a signal, whose sender waits for the end."""
TWIN_BEATS = 3
"""One that sees another process of its number renew a marker so often is refused. The first one has the place."""
STILL_BEATS = 5
"""A marker of its number that stands still for so many looks is of an earlier start, and is replaced."""
MOST = 256
"""More processes leave no markers: they would read each other's faster than a shared file system gives them."""
_JOB = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
_PLACE = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST")


@dataclass(frozen=True)
class Start:
    """A start of `count` processes, of which this is `index`. Its markers are in `directory`."""

    directory: Path
    index: int
    count: int


def find_start(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> Start | None:
    """The start that the environment describes; None for one process, more than `MOST`, or where only JAX knows.

    The directory lies where runs are written: `--output-dir`, else the default. A config is not read, for it may be
    what is refused. Its name comes from the address and the job, so that starts do not meet.
    """
    index = environment.get("JAX_PROCESS_ID", environment.get("SLURM_PROCID", ""))
    count = environment.get("JAX_NUM_PROCESSES", environment.get("SLURM_NTASKS", ""))
    place = [environment.get(name, "") for name in _PLACE]
    if not (index.isdecimal() and count.isdecimal() and any(place) and int(index) < int(count)):
        return None
    if not 1 < int(count) <= MOST:
        return None
    output = "runs"
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == "--output-dir":
            output = value if equals else following
    key = json.dumps([*place, count, *(environment.get(name) for name in _JOB), _find_network(place[0])])
    try:
        directory = expand_path(output).absolute()
    except (UserError, OSError):
        return None
    return Start(directory / f"{_PREFIX}{hashlib.sha256(key.encode()).hexdigest()[:12]}", int(index), int(count))


def _find_network(address: str) -> str:
    """What an address of this machine alone means; empty for others."""
    host = address.rpartition(":")[0].strip("[]")
    if host not in ("localhost", "::1") and not host.startswith("127."):
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/net')}"
    except OSError:  # not Linux
        return socket.gethostname()


class StartMarker:
    """This process's marker, and what those of the others say. It stands for the others until all have joined."""

    _latest: ClassVar["StartMarker | None"] = None

    def __init__(self, start: Start) -> None:
        self.start = start
        self.command = "the same command"
        """It resumes the run."""
        self._host, self._id = socket.gethostname(), secrets.token_hex(8)
        self._judge = Judge(start.index, start.count, self._id)
        self._content: dict[str, Any] = {
            "id": self._id,
            "host": self._host,
            **self._judge.own_process._asdict(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "beat": 0,
            "made": 0,
            "end": None,
            "cause": None,
        }
        self._lock = threading.RLock()  # the handler of a signal may come while its thread holds it
        self._closed = threading.Event()
        self._failure: Failure | None = None
        self._waits, self._is_written = False, False
        self._twin: Mark | None = None
        self._twin_beats, self._twin_looks = 0, 0

    @classmethod
    def begin(cls, words: Sequence[str]) -> "StartMarker | None":
        """Leave the marker of this process; None if it is alone."""
        if cls._latest is not None:  # a notebook may have called a start that was refused
            cls._latest.close()
        if (start := find_start(words)) is None:
            return None
        cls._latest = marker = cls(start)
        marker._exchange()
        marker._remove_abandoned()
        threading.Thread(target=marker._exchange_forever, daemon=True, name="start marker").start()
        set_peers(marker)
        announce = functools.partial(marker.announce_end, seconds=SIGNAL_SECONDS)
        set_early_announcement(announce, seconds=SIGNAL_SECONDS)
        atexit.register(marker.close)
        return marker

    def find_failure(self) -> Failure | None:
        """Which process has ended or died. From now on this one waits."""
        self._waits = True
        return self._failure

    def count_seen(self) -> int:
        """The processes that have left a marker in this start, with this one."""
        return len(self._judge.seen) + 1

    def list_absent(self) -> list[int]:
        """The processes that have left no marker; empty if no other process has, for the place may not be shared."""
        seen = self._judge.seen
        return [i for i in range(self.start.count) if i not in seen | {self.start.index}] if seen else []

    def end_for(self, failure: Failure) -> None:
        """End this process, too."""
        mark = self._read_mark(failure.index)
        if failure.index == self.start.index:
            end_process(failure.message, status=failure.status)
        self._content["cause"] = [failure.index, "" if mark is None else mark.id]
        resume = f"\nResume with, on all: {self.command}" if failure.status == REQUEUE_STATUS else ""
        end_process(f"{failure.message}{resume}", status=failure.status)

    def announce_end(self, status: int, message: str, *, seconds: float = TELL_SECONDS) -> None:
        """Tell those that wait, for up to `seconds`, and leave nothing behind."""
        if self._closed.is_set():
            return
        self._content["end"] = [status, message.splitlines()[0] if message else ""]
        waited, late_seconds = 0.0, LATE_SECONDS
        if self._waits:
            seconds, late_seconds = min(seconds, WAITING_SECONDS), 0.0
        while True:
            self._exchange()
            is_late = len(self._judge.seen) < self.start.count - 1 and waited < late_seconds
            if waited >= seconds or not self._is_written or not (self._judge.list_waiting() or is_late):
                break
            if waited == 1.0:
                with contextlib.suppress(RuntimeError):  # a signal has interrupted another print
                    print("note: this process tells the others why it ends, which takes a while", file=sys.stderr)
            time.sleep(0.5)
            waited += 0.5
        self.close()

    def wait_for_failure_report(self, seconds: float) -> None:
        """No error of this process comes from another one yet."""

    def close(self) -> None:
        """Remove the marker, that of a process whose end is told, and the directories that were made for them."""
        if self._closed.is_set() or not self._lock.acquire(timeout=2.0):
            return
        self._closed.set()
        set_peers(None)
        set_early_announcement(None)
        atexit.unregister(self.close)
        directory, cause = self.start.directory, self._content["cause"]
        with contextlib.suppress(OSError):
            marks = self._read()
            for i in (self.start.index, *([] if cause is None else cause[:1])):
                mark = marks.get(i)
                if mark is not None and (mark.id == self._id or self._judge.is_dead(mark)):
                    (directory / str(i)).unlink(missing_ok=True)
            for folder in [directory, *directory.parents][: max(1, self._content["made"])]:
                folder.rmdir()
        self._lock.release()

    def _exchange_forever(self) -> None:
        while not self._closed.wait(self._judge.interval):
            self._exchange()

    def _exchange(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._closed.is_set():
                return
            self._content["beat"] += 1
            self._is_written = False
            if not self._has_place():
                return
            self._write()
            self._is_written = True
            own = (self.start.directory / str(self.start.index)).stat().st_mtime
            marks = self._read()
            self._content["made"] = max((mark.made for mark in marks.values()), default=0)  # the last one removes them
            failure = self._judge.look(marks, now=time.monotonic(), own_time=own)
            self._failure = self._failure or failure

    def _has_place(self) -> bool:
        """Whether no other living process has this one's number. The second of two leaves no marker, and is refused.

        So a command that is tried in another shell with the variables of this start does not end it.
        """
        mark = self._read_mark(self.start.index)
        if mark is not None:
            self._content["made"] = max(self._content["made"], mark.made)
        is_alive = None if mark is None else mark.process.is_alive(self._judge.own_process)
        if mark is None or mark.id == self._id or mark.end is not None or is_alive is False:
            return True
        is_renewed = self._twin is not None and (mark.id, mark.beat) != (self._twin.id, self._twin.beat)
        self._twin_beats, self._twin_looks = self._twin_beats + is_renewed, 0 if is_renewed else self._twin_looks + 1
        self._twin = mark
        if self._twin_beats >= TWIN_BEATS and self._failure is None:
            who = f"process {self.start.index} of {self.start.count}"
            self._failure = Failure(self.start.index, describe_twin(who), 2)
        return not is_alive and self._twin_looks > STILL_BEATS

    def _write(self) -> None:
        """Renew the marker by a rename, after which a network file system looks into the directory anew."""
        directory = self.start.directory
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        self._content["made"] = max(self._content["made"], len(missing))
        unfinished = directory / f"{self.start.index}.{self._id}"
        try:
            unfinished.write_text(json.dumps(self._content), encoding="utf-8")
            unfinished.replace(directory / str(self.start.index))
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _read(self) -> dict[int, Mark]:
        """The markers of all processes, by their numbers."""
        marks = {i: self._read_mark(i) for i in range(self.start.count)}
        return {i: mark for i, mark in marks.items() if mark is not None}

    def _read_mark(self, index: int) -> Mark | None:
        path = self.start.directory / str(index)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            return Mark.parse(json.loads(path.read_text(encoding="utf-8")), time=path.stat().st_mtime)
        return None

    def _remove_abandoned(self) -> None:
        """Remove the markers of other starts, all of whose processes were killed."""
        with contextlib.suppress(OSError):
            now = self.start.directory.stat().st_mtime
            for path in self.start.directory.parent.glob(DIRECTORIES):
                if now - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
