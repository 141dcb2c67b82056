"""What is known of the others while the processes of a run wait until all of them have started.

The coordinator, which process 0 runs, names those that are missing at the end of the time, in the text with which JAX
aborts all that have come. Before, on Linux, the connections to it say how many there are and from where.
"""

import contextlib
import errno
import os
import re
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

from jax._src import distributed  # its place is in no public module

from gptjax.core.errors import UserError
from gptjax.process.early_exit import REQUEUE_STATUS
from gptjax.process.process_end import end_process
from gptjax.sharding.start_judge import describe_twin
from gptjax.sharding.start_marker import StartMarker

LOOK_SECONDS = 1.0
PROGRESS_SECONDS = 30
"""Process 0 cannot tell one that was killed before it came from one that starts late. So it says who is there."""
LOST_LOOKS = 15
"""Looks without its connection after which a process that was there is gone. gRPC connects again within seconds."""
HELD_LOOKS = 30
"""Looks with a connection after which it is of another process of the run, and not of someone who tries the port."""
GONE = "Process 0 was there, and answers no more"
LISTEN_SECONDS = 15.0
"""A process 0 that ends may hold its port for so long."""
CLIENT_SECONDS = 5
"""So much later the clients would end the wait. They do not know who is missing."""
_ESTABLISHED = "01"
_IS_TWICE = "newer incarnation"
_MISSING = re.compile(r"reached the barrier: (\d+)/(\d+).*?timed out task names:\s*\n((?:\S*\d+\n)+)", re.DOTALL)


class JoinWatch:
    """Watches the connections of one process inside a `with` block."""

    def __init__(
        self,
        *,
        address: str | None,
        index: int | None,
        count: int | None,
        seconds: int,
        resumes: bool = False,
        marker: StartMarker | None = None,
        command: str = "the same command",
        runs: Path | None = None,
    ) -> None:
        """`index` of `count` processes waits `seconds` at an address; None: JAX finds out, and it is known later.

        `resumes` says that the run has begun before, so that the environment is known to be right. `marker` knows
        more of the others, where it can; without one, it is left in the directory `runs` once the number is known.
        `command` resumes the run.
        """
        self._address, self._index, self._count, self._seconds = address, index, count, seconds
        self._resumes, self._marker, self._command, self._runs = resumes, marker, command, runs
        if marker is not None:
            marker.command = command
        self._peers: Counter[str] = Counter()
        """At the moment when there were most."""
        self._present: Counter[str] | None = None
        self._recent: deque[Counter[str]] = deque(maxlen=HELD_LOOKS)
        self._held: Counter[str] = Counter()
        """Most that have been held."""
        self._lost_looks = 0
        """Since connections have ended, without new ones in their place."""
        self._done, self._closing = threading.Event(), threading.Lock()

    def __enter__(self) -> "JoinWatch":
        threading.Thread(target=self._watch, daemon=True, name="join").start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._closing:
            self._done.set()
        if kind is None and self._marker is not None:
            self._marker.close()

    @property
    def hosts(self) -> dict[int, str]:
        """The hosts of other processes, as far as they are known: of those with a marker, and of the coordinator."""
        address = self._address or distributed.global_state.coordinator_address or ""
        known = {0: address.rpartition(":")[0]} if address else {}
        return known | ({} if self._marker is None else self._marker.hosts)

    def look(self) -> None:
        """Keep the connections of now, and those at the moment when there were most."""
        address = self._address or distributed.global_state.coordinator_address or ""
        port = address.rpartition(":")[2]
        if port.isdecimal():
            found = self._present = find_peers(int(port), is_server=self._is_first)
            self._peers = max(self._peers, found or self._peers, key=Counter.total)
            if found is not None:
                self._recent.append(found)
                held = reduce(Counter.__and__, self._recent) if len(self._recent) == HELD_LOOKS else Counter[str]()
                self._held = max(self._held, held, key=Counter.total)
                known = self._held if self._is_first else self._peers
                is_lost = bool(known) and found.total() < (known.total() if self._is_first else 1)
                self._lost_looks = self._lost_looks + 1 if is_lost else 0

    def find_lost(self) -> str | None:
        """What to say of a process that was there and is gone, if one is.

        Process 0 leaves it to the markers, which know its number, where all that were connected have left one.
        """
        if self._lost_looks < LOST_LOOKS:
            return None
        again = "and give the same command again on all."
        if not self._is_first:
            return f"{GONE}. Look at its output, {again}"
        if self._marker is not None and self._marker.count_seen() >= self._held.total():
            return None
        places = ", ".join(sorted(self._held - (self._present or Counter())))
        return (
            f"a connection from {places} has ended before all {self._count or 'processes'} had joined. Look at the "
            f"output of the process there, {again}"
        )

    def describe_progress(self, waited: float) -> str | None:
        """Whom this process has waited for so many seconds, and how long it will; None where the system does not say.

        Connections do not tell the numbers of processes; markers do, where they are shared.
        """
        more = f"after {waited:.0f} s. The wait ends after {self._seconds} s"
        if self._present is None:
            return None
        came, total = self._present.total(), self._count
        who = [] if self._marker is None else [*map(str, self._marker.list_absent())]
        if self._is_first and total is not None and came == 1 < total:  # its own connection
            who = ["1"] if total == 2 else [f"1 to {total - 1}"]
        more += f"; missing: {', '.join(who)}, late or dead, as their output may say" if who else ""
        if not self._is_first:
            address = self._address or distributed.global_state.coordinator_address
            is_there = "is there, but not all others are," if came else f"does not answer at {address}"
            return f"process 0 {is_there} {more}"
        places = f" (from {', '.join(sorted(self._present))})" if self._present else ""
        return f"{came} of {total or '?'} processes are here{places} {more}"

    def explain(self, said: str = "") -> tuple[str, int]:
        """(why the wait is over, the exit status): 75 if others have come, or if the run has begun before.

        Else this process seems to be alone by mistake: 2. `said` is what JAX's libraries have written.
        """
        if self._marker is not None:
            self._end_for_failure(self._marker)
            self._marker.close()  # the wait of the others is over, too
        total, came = self._count or "", self._peers.total() - self._is_first  # its own connection
        address = self._address or distributed.global_state.coordinator_address or "the coordinator's address"
        advice = (
            "Start the command once each, or, for a single process, unset the variables of the launcher (SLURM_*, "
            "JAX_COORDINATOR_ADDRESS)."
        )
        if _IS_TWICE in said:
            who = f"process {distributed.global_state.process_id} of {total}"
            return describe_twin(who), 2
        missing = describe_missing(said)
        status = REQUEUE_STATUS if self._resumes else 2
        if not self._is_first and not came and not missing:
            text = f"process 0 did not answer at {address} within {self._seconds} s. {advice}"
            try:
                socket.getaddrinfo(address.rpartition(":")[0].strip("[]"), None)
            except OSError as error:
                return f"{text} ({error.strerror})", 2
            return text, status
        if self._is_first and came <= 0:
            return f"not all {total} processes came within {self._seconds} s. {advice}", status
        present = ""
        if self._is_first:
            present = f" Those that came are on {', '.join(sorted(self._peers))}."
        elif missing is None:
            present = f" {GONE}."
        return (
            f"{missing or f'not all {total} processes came'} within {self._seconds} s.{present} Look at the output of "
            "those that are missing, and give the same command again on all.",
            REQUEUE_STATUS,
        )

    @property
    def _is_first(self) -> bool:
        index = distributed.global_state.process_id if self._index is None else self._index
        return index == 0

    def _leave_marker(self) -> None:
        """Leave a marker where only JAX knew the number of this process, and does now."""
        state = distributed.global_state
        if state.client is None:
            return
        self._count = self._count or state.num_processes
        with self._closing:
            if self._marker is None and self._runs is not None and not self._done.is_set():
                marker = StartMarker.begin_late(
                    self._runs, state.coordinator_address or "", index=state.process_id, count=state.num_processes
                )
                self._runs, self._marker = None, marker
                if marker is not None:
                    marker.command = self._command

    @staticmethod
    def _end_for_failure(marker: StartMarker) -> None:
        if (failure := marker.find_failure()) is not None:
            marker.end_for(failure)

    def _watch(self) -> None:
        waited = 0.0
        while not self._done.wait(LOOK_SECONDS):
            waited += LOOK_SECONDS
            self._leave_marker()
            if self._marker is not None:
                self._end_for_failure(self._marker)
            self.look()
            if (lost := self.find_lost()) is not None:
                end_process(lost, status=REQUEUE_STATUS)
            if waited % PROGRESS_SECONDS == 0 and (text := self.describe_progress(waited)):
                print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
    """Inside the block no variable names a proxy. gRPC would look for the other processes through it, in vain.

    A cluster may set `http_proxy` for all that its machines fetch.
    """
    found = {name: os.environ.pop(name) for name in [*os.environ] if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(found)


@contextlib.contextmanager
def end_registration(seconds: int) -> Iterator[None]:
    """Inside the block a coordinator that is started ends the wait of all by itself, and so names who is missing.

    JAX passes no such limit on; without it the wait ends at a deadline of each client, which knows nothing. So it does
    with a version of JAX that has no such limit.
    """
    library: Any = getattr(distributed, "_jax", None)
    make = getattr(library, "get_distributed_runtime_service", None)
    if make is None:
        yield
        return

    def start(*args: Any, **options: Any) -> Any:
        with contextlib.suppress(TypeError):
            return make(*args, **options, cluster_register_timeout=seconds)
        return make(*args, **options)

    library.get_distributed_runtime_service = start
    try:
        yield
    finally:
        library.get_distributed_runtime_service = make


def check_listening(address: str, *, seconds: float = LISTEN_SECONDS) -> None:
    """Raise a `UserError` unless the coordinator can listen there, once what ran before has had `seconds` to end.

    JAX would crash at an address of another machine, and share a port that is taken with whoever has it.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.bind((host, int(port)))
                found.listen(1)
            return
        except (OSError, ValueError, OverflowError) as error:
            is_taken = getattr(error, "errno", None) == errno.EADDRINUSE
            if host == "::" and not is_taken:  # without IPv6, JAX listens by IPv4
                return
            if is_taken and time.monotonic() < end:
                time.sleep(LOOK_SECONDS)
                continue
            cause = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"process 0 cannot wait for the others at {address}: {cause}. Choose another port in "
                "JAX_COORDINATOR_ADDRESS, the same for all, and unset JAX_COORDINATOR_BIND_ADDRESS."
            ) from None


def describe_missing(said: str) -> str | None:
    """`processes 2 and 3 of 4 did not come`, from what the coordinator says; None if it says nothing.

    It names some of many.
    """
    if (found := _MISSING.search(said)) is None:
        return None
    came, total = int(found[1]), int(found[2])
    named = sorted({int(re.findall(r"\d+", line)[-1]) for line in found[3].splitlines()})
    *most, last = map(str, named)
    names = f"{', '.join(most)} and {last}" if most else last
    if len(named) < total - came:
        return f"{total - came} of {total} processes did not come, among them {names}"
    return f"{'processes' if most else 'process'} {names} of {total} did not come"


def find_peers(port: int, *, is_server: bool) -> Counter[str] | None:
    """How many connections lead to each address, by a TCP port of this machine or, for a client, of the other one.

    None where the system does not say.
    """
    found: Counter[str] = Counter()
    try:
        rows = [row for name in ("tcp", "tcp6") for row in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    except OSError:
        return None
    for row in rows:
        _, local, remote, state, *_ = row.split()
        if state == _ESTABLISHED and int((local if is_server else remote).split(":")[1], 16) == port:
            found[_format_address(remote.split(":")[0])] += 1
    return found


def _format_address(text: str) -> str:
    """An address as the kernel prints it: words of four bytes, each in the order of the machine."""
    words = [int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8)]
    content = b"".join(words)
    if len(content) == 16 and content[:12] == bytes(10) + b"\xff\xff":  # IPv4 in IPv6
        content = content[12:]
    return socket.inet_ntop(socket.AF_INET if len(content) == 4 else socket.AF_INET6, content)
