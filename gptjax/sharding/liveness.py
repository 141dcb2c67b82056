"""Notices within a minute that another process of a run is gone, and ends this one with a line that names it.

Each process writes a beat into the key-value store of JAX's coordination service, which process 0 runs, and reads those
of the others. It is gone if it does not beat: killed, stopped, or its machine does not answer. A process that ends too
early by itself writes why, and the others repeat it. JAX's own heartbeats would end all of them later by an abort.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gptjax.process.diagnosis import is_lost_peer
from gptjax.process.early_exit import REQUEUE_STATUS
from gptjax.process.native_output import NativeOutput
from gptjax.process.process_end import end_process

SILENCE_SECONDS = 35.0
"""A process that does not beat for so long is gone."""
SUSPICION_SECONDS = 3.0
"""The same, once an error or an abort says that some process is lost; longer where beats are rarer."""
ABORT_SECONDS = 3.5
"""An abort is a library's own fault if so long after it nobody is gone. Then the process has 6 s to live."""
POLL_SECONDS = 1.0
GRACE_SECONDS = 8.0
"""After another process has ended by itself, this one may end for the same reason, with its own message."""
ROOT = "gptjax"
END = f"{ROOT}/end/"


class Liveness:
    """Decides which process is gone, from the beats of all."""

    def __init__(self, index: int, count: int) -> None:
        self._others = [i for i in range(count) if i != index]
        self._beats: dict[int, str | None] = dict.fromkeys(self._others)
        self._silent = dict.fromkeys(self._others, 0.0)
        self._unread = 0.0
        self.interval = max(POLL_SECONDS, count / 32)
        """Seconds between two exchanges: all read what all write."""

    def look(self, beats: Mapping[int, str] | None, seconds: float, *, suspicious: bool = False) -> int | None:
        """The process that is gone, if one is.

        `beats` are those of the newest exchange; None if there was none in the `seconds` since the last look. Then
        only process 0, which runs the store, is silent. Time in which this process was stopped itself does not count.
        """
        seconds = min(seconds, 2 * POLL_SECONDS)
        self._unread += seconds
        for i in self._others:
            beat = None if beats is None else beats.get(i)
            if beat is not None and beat != self._beats[i]:
                self._beats[i], self._silent[i] = beat, 0.0
            elif i == 0:
                self._silent[i] += seconds
            elif beats is not None:
                self._silent[i] += self._unread
        self._unread = self._unread if beats is None else 0.0
        most = max(self._others, key=self._silent.__getitem__)
        limit = SUSPICION_SECONDS + 2 * (self.interval - POLL_SECONDS) if suspicious else SILENCE_SECONDS
        return most if self._silent[most] >= limit else None


def measure_clock() -> float:
    """The seconds between the clock of the machine, which may be set, and one that only goes on.

    Where there is one, that goes on while the machine is suspended, too.
    """
    steady = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.time() - time.clock_gettime(steady)


class ProcessWatch:
    """The other processes of a run. Threads watch them from `start` to the end of this process."""

    def __init__(
        self,
        client: Any,
        *,
        index: int,
        count: int,
        resume: str,
        native: NativeOutput,
        hosts: Mapping[int, str] = MappingProxyType({}),
        end: Callable[[str, int], object] = lambda message, status: end_process(message, status=status),
    ) -> None:
        """`client` is JAX's, `resume` the command that resumes the run. `end` ends the process: message, status.

        `hosts` are known for those that have not told theirs yet.
        """
        self._client, self._index, self._count, self._resume = client, index, count, resume
        self._native, self._hosts, self._end, self._clock = native, hosts, end, measure_clock()
        self._liveness = Liveness(index, count)
        self.announce_seconds = 2 * self._liveness.interval + 2
        """Time that the others need to read why process 0 ends."""
        self._entries: dict[str, str] = {}
        self._beat = self._exchanges = 0
        self._has_lost_store = False
        self._suspected_at: float | None = None
        self._decided = threading.Event()

    def start(self) -> None:
        self._client.key_value_set(f"{ROOT}/host/{self._index}", socket.gethostname())
        threading.Thread(target=self._exchange_forever, daemon=True, name="beats").start()
        threading.Thread(target=self.monitor, daemon=True, name="liveness").start()

    def announce_end(self, status: int, message: str) -> None:
        """Tell the others that this process ends, and why. Process 0 waits until they have read it.

        A library that aborts process 0 leaves no time for that, and its store may have failed. They notice it anyway.
        """
        if self._has_lost_store or (self._index == 0 and self._native.find_abort() is not None):
            return
        text = f"{status} {message.splitlines()[0] if message else ''}"
        if not self._decided.is_set():  # else the others read of the same process that this one ends for
            try:
                self._client.key_value_set(f"{END}{self._index}", text, allow_overwrite=True)
            except RuntimeError:  # process 0 is gone
                return
        if self._index == 0:
            time.sleep(self.announce_seconds)

    def wait_for_failure_report(self, seconds: float) -> None:
        """After an error that another process may have caused: end as soon as it is known which, or return.

        The seconds count from the first call: an error that passes several places is waited for once.
        """
        now = time.monotonic()
        self._suspected_at = now if self._suspected_at is None else self._suspected_at
        if self._decided.wait(max(0.0, self._suspected_at + seconds - now)):
            threading.Event().wait()  # another thread ends the process

    def name(self, index: int) -> str:
        """A process with its host."""
        host = self._entries.get(f"{ROOT}/host/{index}") or self._hosts.get(index, "an unknown host")
        return f"process {index} of {self._count} on {host}"

    def exchange(self) -> None:
        """Write a beat and read those of all; raises nothing if process 0 does not answer."""
        self._beat += 1
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{ROOT}/beat/{self._index}", str(self._beat), allow_overwrite=True)
            self._entries = dict(self._client.key_value_dir_get(f"{ROOT}/"))
            self._exchanges += 1

    def _exchange_forever(self) -> None:
        while True:
            self.exchange()
            time.sleep(self._liveness.interval)

    def monitor(self) -> None:
        """Look at the others once a second, until one of them is gone."""
        last, exchanges, ended_at, aborted_at = time.monotonic(), 0, None, None
        while True:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            abort = self._native.find_abort()
            is_fresh, exchanges = self._exchanges != exchanges, self._exchanges
            gone = self._look(is_fresh, now - last, suspicious=self._suspected_at is not None or abort is not None)
            last, ended = now, self._find_ended()
            ended_at = now if ended_at is None and ended else ended_at
            aborted_at = now if aborted_at is None and abort is not None else aborted_at
            if gone is not None and gone not in ended:
                self._end_for_gone(gone)
            elif ended and ended_at is not None and (gone is not None or now - ended_at >= GRACE_SECONDS):
                index = gone if gone in ended else min(ended)
                self._end_as(index, ended[index])
            elif abort is None:
                self._native.pass_on(now)
            elif aborted_at is not None and now - aborted_at >= ABORT_SECONDS:
                self._end_for_abort(abort)

    def _look(self, is_fresh: bool, seconds: float, *, suspicious: bool) -> int | None:
        entries = self._entries
        if (reported := entries.get(f"{ROOT}/gone")) is not None and int(reported) != self._index:
            return int(reported)
        beats = {int(key.rpartition("/")[2]): beat for key, beat in entries.items() if key.startswith(f"{ROOT}/beat/")}
        return self._liveness.look(beats if is_fresh else None, seconds, suspicious=suspicious)

    def _find_ended(self) -> dict[int, str]:
        """Why the others that have ended by themselves did so, by their number."""
        found = {int(key[len(END) :]): text for key, text in self._entries.items() if key.startswith(END)}
        return {i: text for i, text in found.items() if i != self._index}

    def _end_for_gone(self, gone: int) -> None:
        self._decided.set()
        self._has_lost_store = gone == 0
        if gone != 0:
            with contextlib.suppress(RuntimeError):  # another process was first
                self._client.key_value_set(f"{ROOT}/gone", str(gone))
        self._end(
            f"{self.name(gone)} is gone: it was killed or stopped, or its machine does not answer.\n"
            f"Resume with, on all: {self._resume}",
            REQUEUE_STATUS,
        )

    def _end_for_abort(self, abort: str) -> None:
        """While all others live. JAX's service aborts all of them when the clock of its machine is set."""
        is_lost, moved = is_lost_peer(RuntimeError(abort)), measure_clock() - self._clock
        is_set = is_lost and abs(moved) >= 1
        why = f"\nThe clock of this machine was set by {moved:+,.0f} s, which JAX does not stand." * is_set
        resume = f"\nResume with, on all: {self._resume}" * is_lost
        self._end(f"a library aborts {self.name(self._index)}: {abort}{why}{resume}", REQUEUE_STATUS if is_lost else 1)

    def _end_as(self, index: int, text: str) -> None:
        self._decided.set()
        self._has_lost_store = index == 0  # the others have read why, and it waits for nobody now
        status, _, message = text.partition(" ")
        resume = "" if status in ("1", "2") else f"\nResume with, on all: {self._resume}"  # those come again
        self._end(f"{self.name(index)} has ended: {message}{resume}", int(status))
