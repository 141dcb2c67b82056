"""What is known of the others while the processes of a run wait until all of them have started.

JAX tells nobody who has come: at the end of its time it aborts. On Linux the connections to the coordinator, which
process 0 runs, say how many there are and from where.
"""

import socket
import sys
import threading
from collections import Counter
from pathlib import Path

from jax._src import distributed  # its place is in no public module

from gptjax.process.early_exit import REQUEUE_STATUS

LOOK_SECONDS = 1.0
PROGRESS_SECONDS = 60
_ESTABLISHED = "01"


class JoinWatch:
    """Watches the connections of one process inside a `with` block."""

    def __init__(self, *, address: str | None, index: int | None, count: int | None, seconds: int) -> None:
        """`index` of `count` processes waits `seconds` at an address; None: JAX finds out, and it is known later."""
        self._address, self._index, self._count, self._seconds = address, index, count, seconds
        self._peers: Counter[str] = Counter()
        self._done = threading.Event()

    def __enter__(self) -> "JoinWatch":
        threading.Thread(target=self._watch, daemon=True, name="join").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def look(self) -> None:
        """Keep the connections at the moment when there were most."""
        address = self._address or distributed.global_state.coordinator_address or ""
        port = address.rpartition(":")[2]
        if port.isdecimal():
            found = find_peers(int(port), is_server=self._is_first)
            self._peers = max(self._peers, found or self._peers, key=Counter.total)

    def explain(self) -> tuple[str, int]:
        """(why the wait is over, the exit status): 75 if others have come, 2 if this process seems to be alone."""
        total, came = self._count or "", self._peers.total()
        address = self._address or distributed.global_state.coordinator_address or "the coordinator's address"
        advice = (
            "Start the command once each, or, for a single process, unset the variables of the launcher (SLURM_*, "
            "JAX_COORDINATOR_ADDRESS)."
        )
        if not self._is_first and not came:
            missing = f"process 0 did not answer at {address} within {self._seconds} s. {advice}"
            try:
                socket.getaddrinfo(address.rpartition(":")[0].strip("[]"), None)
            except OSError as error:
                return f"{missing} ({error.strerror})", 2
            return missing, REQUEUE_STATUS
        if came <= self._is_first:  # its own connection
            return f"not all {total} processes came within {self._seconds} s. {advice}", 2
        known = (
            f" Only {came} came, from {', '.join(sorted(self._peers))}." if self._is_first else " Process 0 is there."
        )
        return (
            f"not all {total} processes came within {self._seconds} s.{known} Look at the output of the others, and "
            "give the same command again on all.",
            REQUEUE_STATUS,
        )

    @property
    def _is_first(self) -> bool:
        index = distributed.global_state.process_id if self._index is None else self._index
        return index == 0

    def _watch(self) -> None:
        waited = 0.0
        while not self._done.wait(LOOK_SECONDS):
            waited += LOOK_SECONDS
            self.look()
            if waited % PROGRESS_SECONDS == 0 and self._is_first and self._peers:
                came = f"{self._peers.total()} of {self._count or '?'} processes are here after {waited:.0f} s"
                print(f"{came} (from {', '.join(sorted(self._peers))})", file=sys.stderr, flush=True)


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
