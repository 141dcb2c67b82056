"""What the error says, and the exit status, once the time to wait for other processes is over."""

import contextlib
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from gptjax.core.errors import UserError
from gptjax.sharding import joining
from gptjax.sharding.joining import JoinWatch, check_listening, find_peers


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_connections_are_found_on_both_sides(family: socket.AddressFamily):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = server.getsockname()[1]
    if find_peers(port, is_server=True) is None:
        pytest.skip("this system does not list connections")
    with server:
        assert find_peers(port, is_server=True) == find_peers(port, is_server=False) == {}
        ours = [socket.create_connection((host, port)) for _ in range(2)]
        theirs = [server.accept()[0] for _ in ours]  # until then the system may still be at it
        with contextlib.ExitStack() as stack:
            for connection in (*ours, *theirs):
                stack.enter_context(connection)
            assert find_peers(port, is_server=True) == find_peers(port, is_server=False) == {host: 2}


@pytest.mark.parametrize(
    ("index", "peers", "words", "status"),
    [
        (0, {}, "not all 4 processes came within 9 s. Start the command once each", 2),
        (0, {"10.0.0.1": 1}, "not all 4 processes came within 9 s. Start the command once each", 2),
        (0, {"10.0.0.1": 1, "10.0.0.7": 2}, "within 9 s. Those that came are on 10.0.0.1, 10.0.0.7. Look at the", 75),
        (2, {"10.0.0.1": 1}, "not all 4 processes came within 9 s. Process 0 was there, and answers no more.", 75),
        (2, {}, "process 0 did not answer at localhost:12 within 9 s.", 2),
    ],
)
def test_error_says_who_came(
    index: int, peers: dict[str, int], words: str, status: int, monkeypatch: pytest.MonkeyPatch
):
    """A process that is alone was probably not meant to wait, but may be the first to come back to a run."""
    monkeypatch.setattr(joining, "find_peers", lambda port, *, is_server: joining.Counter(peers))
    waiting = JoinWatch(address="localhost:12", index=index, count=4, seconds=9)
    waiting.look()
    peers = {}  # the others give up at the same moment
    waiting.look()
    message, found = waiting.explain()
    assert words in message
    assert found == status
    again = JoinWatch(address="localhost:12", index=index, count=4, seconds=9, resumes=True)
    assert again.explain()[1] == 75


@pytest.mark.parametrize(
    ("index", "peers", "line"),
    [
        (0, {"::1": 1}, "1 of 4 processes are here (from ::1) after 30 s. {}; missing: 1 to 3, {}"),
        (0, {"::1": 1, "10.0.0.7": 2}, "3 of 4 processes are here (from 10.0.0.7, ::1) after 30 s. {}"),
        (2, {}, "process 0 does not answer at localhost:12 after 30 s. {}"),
        (2, {"10.0.0.1": 1}, "process 0 is there, but not all others are, after 30 s. {}"),
        (0, None, None),
    ],
)
def test_wait_says_for_whom_and_how_long(
    index: int, peers: dict[str, int] | None, line: str | None, monkeypatch: pytest.MonkeyPatch
):
    """Also of one that came and was killed."""
    found = [joining.Counter({"::1": 1, "10.0.0.7": 3}), None if peers is None else joining.Counter(peers)]
    monkeypatch.setattr(joining, "find_peers", lambda port, *, is_server: found.pop(0))
    waiting = JoinWatch(address="localhost:12", index=index, count=4, seconds=300)
    waiting.look()
    waiting.look()
    assert waiting.describe_progress(30.0) == (
        line and line.format("The wait ends after 300 s", "late or dead, as their output may say")
    )


@pytest.mark.parametrize(
    ("index", "counts", "message"),
    [
        (0, [*[3] * 30, *[2] * 15], "a connection from 10.0.0.7 has ended before all 4 had joined."),
        (0, [*[3] * 30, *[2] * 14], None),
        (0, [*[3] * 29, *[2] * 30], None),  # someone has tried the port by hand
        (0, [*[3] * 30, *[2] * 14, 3, *[2] * 14], None),  # it has connected again
        (0, [1, 2, 2, 3, *[3] * 30], None),
        (2, [1, *[0] * 15], "Process 0 was there, and answers no more."),
        (2, [1, *[0] * 14], None),
        (2, [0] * 30, None),
    ],
)
def test_process_whose_connection_has_ended_is_gone(
    index: int, counts: list[int], message: str | None, monkeypatch: pytest.MonkeyPatch
):
    """Also where no directory is shared, and where only JAX knows the numbers."""
    left = [joining.Counter({"::1": min(count, 1), "10.0.0.7": max(count - 1, 0)}) for count in counts]
    monkeypatch.setattr(joining, "find_peers", lambda port, *, is_server: +left.pop(0))
    waiting = JoinWatch(address="localhost:12", index=index, count=4, seconds=300)
    for _ in counts:
        waiting.look()
    lost = waiting.find_lost()
    whose = "its output" if index else "the output of the process there"
    assert lost == (message and f"{message} Look at {whose}, and give the same command again on all.")
    for seen in (2, 3):  # of three that were connected; if all have markers, those know its number
        waiting._marker = SimpleNamespace(count_seen=lambda seen=seen: seen)  # pyright: ignore[reportAttributeAccessIssue]
        assert waiting.find_lost() == (None if index == 0 and seen == 3 else lost)


@pytest.mark.parametrize(
    ("came", "names", "words"),
    [
        ("3/4", "2\n", "process 2 of 4 did not come"),
        ("1/4", "3\n1\n2\n", "processes 1, 2 and 3 of 4 did not come"),
        ("5/32", "20\n/job:jax_worker/replica:0/task:2\n", "27 of 32 processes did not come, among them 2 and 20"),
    ],
)
def test_error_names_who_is_missing(came: str, names: str, words: str):
    said = f"# of tasks that reached the barrier: {came}.\nThe first: 0. Some timed out task names:\n{names}\nRPC: 7"
    message, status = JoinWatch(address="localhost:12", index=3, count=4, seconds=9).explain(said)
    assert message.startswith(f"{words} within 9 s. Look at the output of those that are missing")
    assert status == 75


def test_a_coordinator_starts_where_jax_knows_no_limit(monkeypatch: pytest.MonkeyPatch):
    """Also where jax keeps the function elsewhere."""
    calls: list[dict[str, Any]] = []

    def make(address: str, processes: int) -> None:
        calls.append({"address": address, "processes": processes})

    monkeypatch.setattr(joining.distributed, "_jax", SimpleNamespace(get_distributed_runtime_service=make))
    with joining.end_registration(9):
        joining.distributed._jax.get_distributed_runtime_service("[::]:1", processes=2)  # pyright: ignore
    assert calls == [{"address": "[::]:1", "processes": 2}]
    monkeypatch.delattr(joining.distributed, "_jax")
    with joining.end_registration(9):
        pass


def test_coordinator_does_not_share_its_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"process 0 cannot wait for the others at 127\.0\.0\.1:{port}: Address"):
            check_listening(f"127.0.0.1:{port}", seconds=0.0)
    check_listening(f"127.0.0.1:{port}", seconds=0.0)
    with pytest.raises(UserError, match=r"at 192\.0\.2\.1:9: Cannot assign requested address"):
        check_listening("192.0.2.1:9")


def test_process_0_that_was_there_and_is_gone_ends_the_wait(monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()
    messages: list[str] = []

    def end(message: str, *, status: int) -> None:
        messages.append(f"{status} {message}")
        ended.set()

    present = [{"10.0.0.1": 1}, {}, {"10.0.0.1": 1}]  # once lost, and connected again
    monkeypatch.setattr(
        joining, "find_peers", lambda port, *, is_server: joining.Counter(present.pop(0) if present else {})
    )
    monkeypatch.setattr(joining, "end_process", end)
    monkeypatch.setattr(joining, "LOOK_SECONDS", 0.001)
    with JoinWatch(address="localhost:12", index=2, count=4, seconds=9):
        assert ended.wait(timeout=300)
    assert present == []
    assert messages[0] == (
        "75 Process 0 was there, and answers no more. Look at its output, and give the same command again on all."
    )


def test_number_that_came_twice_is_a_mistake():
    said = "absl::Status: ALREADY_EXISTS: Aborted connect attempt as there is a request from a newer incarnation."
    message, status = JoinWatch(address="localhost:12", index=1, count=2, seconds=9).explain(said)
    assert message.endswith(" of 2, too. Give each its own JAX_PROCESS_ID, from 0 on.")
    assert status == 2


def test_unknown_host_is_a_mistake(monkeypatch: pytest.MonkeyPatch):
    def find_no_host(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_no_host)
    message, status = JoinWatch(address="nowhere.invalid:12", index=1, count=2, seconds=9).explain()
    assert message.startswith("process 0 did not answer at nowhere.invalid:12 within 9 s.")
    assert message.endswith("(Name or service not known)")
    assert status == 2
