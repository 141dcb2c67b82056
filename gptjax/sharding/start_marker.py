"""What the processes of a run know of each other before they are connected: a file of each in a shared directory.

Each process leaves a marker as its first act, renews it every second, and removes it once all have joined. Those that
wait so learn within a minute that one was killed, and at once that one was refused. One without a marker is late, and
is waited for. A directory that cannot be written or is not shared tells nothing.

Before the config is read, the directory is that of `--output-dir` or the default. Then that of the config is added.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.process.early_exit import REQUEUE_STATUS, set_early_announcement
from gptjax.process.process_end import end_process, set_peers
from gptjax.sharding.start_judge import Failure, Process
from gptjax.sharding.start_place import PREFIX, Place, Start

LATE_SECONDS = 10.0
"""One that is refused waits so long for others that begin a little later, to tell them why."""
TELL_SECONDS = 60.0
"""The same for those that have begun. They read it once they wait."""
WAITING_SECONDS = 8.0
"""The same for one that waits: so do others, and they read every second."""
SIGNAL_SECONDS = 3.0
"""The same after a signal, whose sender waits for the end."""
CLOSE_SECONDS = 2.0
"""One that goes on waits so long for its file system, to remove its marker. Later the marker's thread does it."""
MOST = 256
"""More processes leave no markers: they would read each other's faster than a shared file system gives them."""
_JOB = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
_PLACE = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST")


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
    job = [environment.get(name) for name in _JOB]
    return _make_start(output, [*place, count, *job, _find_network(place[0])], index=int(index), count=int(count))


def _make_start(output: str, key: Sequence[str | None], *, index: int, count: int) -> Start | None:
    """A start in this directory for runs, with a name that comes from the key; None where that is no path."""
    try:
        directory = expand_path(output).absolute()
    except (UserError, OSError):
        return None
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return Start(directory / f"{PREFIX}{name}", index, count)


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
        self._content: dict[str, Any] = {
            "id": secrets.token_hex(8),
            "host": socket.gethostname(),
            **Process.own()._asdict(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "beat": 0,
            "end": None,
            "cause": None,
        }
        self._places = [Place(start, self._content)]
        self._lock = threading.RLock()  # the handler of a signal may come while its thread holds it
        self._closed = threading.Event()
        self._is_cleared = False
        self._waits = False

    @classmethod
    def begin(cls, words: Sequence[str]) -> "StartMarker | None":
        """Leave the marker of this process; None if it is alone."""
        if cls._latest is not None:  # a notebook may have called a start that was refused
            cls._latest.close()
        return None if (start := find_start(words)) is None else cls._begin(start)

    @classmethod
    def begin_late(cls, output: Path, address: str, *, index: int, count: int) -> "StartMarker | None":
        """The same for a process whose number only JAX knows, once it does. `output` is the directory for runs."""
        start = _make_start(str(output), [address, str(count), _find_network(address)], index=index, count=count)
        return cls._begin(start) if start is not None and 1 < count <= MOST else None

    @classmethod
    def _begin(cls, start: Start) -> "StartMarker":
        cls._latest = marker = cls(start)
        marker._exchange()
        marker._places[0].remove_abandoned()
        threading.Thread(target=marker._exchange_forever, daemon=True, name="start marker").start()
        set_peers(marker)
        announce = functools.partial(marker.announce_end, seconds=SIGNAL_SECONDS)
        set_early_announcement(announce, seconds=SIGNAL_SECONDS)
        atexit.register(marker.close)
        return marker

    def add_place(self, output: Path) -> None:
        """Leave the marker in this directory for runs, too: that of the config may be shared where `runs` is not.

        It stays where it was, for those that have not read the config yet.
        """
        with contextlib.suppress(OSError):
            place = Place(replace(self.start, directory=output.absolute() / self.start.directory.name), self._content)
            with self._lock:
                if self._closed.is_set() or place.start in [other.start for other in self._places]:
                    return
                self._places.append(place)
                place.exchange()
            place.remove_abandoned()

    @property
    def hosts(self) -> dict[int, str]:
        """The hosts of the other processes that have left a marker in this start."""
        return {i: host for place in self._places for i, host in place.judge.seen.items()}

    def find_failure(self) -> Failure | None:
        """Which process has ended or died. From now on this one waits."""
        self._waits = True
        return next(filter(None, (place.failure for place in self._places)), None)

    def count_seen(self) -> int:
        """The processes that have left a marker in this start, with this one."""
        return len(self.hosts) + 1

    def list_absent(self) -> list[int]:
        """The processes that have left no marker; empty if no other process has, for the place may not be shared."""
        seen = self.hosts
        return [i for i in range(self.start.count) if i != self.start.index and i not in seen] if seen else []

    def end_for(self, failure: Failure) -> None:
        """End this process, too."""
        mark = next(filter(None, (place.read_mark(failure.index) for place in self._places)), None)
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
            is_late = len(self.hosts) < self.start.count - 1 and waited < late_seconds
            written = [place for place in self._places if place.is_written]
            if waited >= seconds or not (any(place.judge.list_waiting() for place in written) or (written and is_late)):
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
        """Remove the marker from all places. No other process is told of anything from now on."""
        if self._closed.is_set():
            return
        self._closed.set()
        set_peers(None)
        set_early_announcement(None)
        atexit.unregister(self.close)
        self._clear(timeout=CLOSE_SECONDS)

    def _clear(self, *, timeout: float) -> None:
        if not self._lock.acquire(timeout=timeout):
            return
        try:
            for place in [] if self._is_cleared else self._places:
                place.clear()
            self._is_cleared = True
        finally:
            self._lock.release()

    def _exchange_forever(self) -> None:
        while not self._closed.wait(self._places[0].judge.interval):
            self._exchange()
        self._clear(timeout=-1.0)  # without a limit

    def _exchange(self) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            self._content["beat"] += 1
            for place in self._places:
                if not self._closed.is_set():  # another thread may close it meanwhile
                    place.exchange()
