"""A function applied in many processes, whichever of them dies.

The one idea: every worker has a pipe to itself, of which nobody else holds an end. So its death is the end of that
pipe, whenever it comes: while the worker starts, waits, or is in the middle of sending a result; and the death of who
started it is the end of the pipe for the worker. (The workers of `concurrent.futures` share one queue: of a result
that was begun by one which died, the others would keep the rest awaited for ever.)

Workers are spawned, never forked (a fork of a process that has started JAX or threads may hang), one whenever there is
something to do and nobody free.
"""

import contextlib
import functools
import multiprocessing
import os
import pickle
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from data_pipelines.runtime.sigint import deaf_to_ctrl_c

AHEAD = 2
"""Arguments that a worker has at most: one is worked on, the other is there when that is done."""

T = TypeVar("T")
R = TypeVar("R")


class WorkerDied(Exception):
    """A process ended that was not told to."""


class Workers(Generic[T, R]):
    """Applies `function` in at most so many processes, used as a context; what was not done at its end is forgotten.

    `function` is sent to each worker once; it, its arguments and results are pickled.
    """

    def __init__(self, function: Callable[[T], R], processes: int) -> None:
        self._function, self._most = pickle.dumps(function), processes
        self._workers: dict[Connection, _Worker[R]] = {}
        self._pending: deque[tuple[T, _Result[R]]] = deque()

    def __enter__(self) -> "Workers[T, R]":
        return self

    def __exit__(self, *_: object) -> None:
        with deaf_to_ctrl_c():
            for worker in self._workers.values():
                worker.process.kill()
            for pipe, worker in self._workers.items():
                worker.process.join()
                pipe.close()

    def submit(self, argument: T) -> Callable[[], R]:
        """What waits for the result, and raises what the function raised, or `WorkerDied`."""
        result = _Result[R]()
        self._pending.append((argument, result))
        if len(self._workers) < self._most and all(worker.busy for worker in self._workers.values()):
            self._start()
        self._attend(block=False)

        def get() -> R:
            while not result.there:
                self._attend(block=True)
            return result.get()

        return get

    def _start(self) -> None:
        resource_tracker.ensure_running()  # or the first process would start it, which makes it hear Ctrl-C
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs,), daemon=True)
        with theirs, deaf_to_ctrl_c():
            process.start()
            self._workers[ours] = _Worker(process)

    def _attend(self, *, block: bool) -> None:
        """Take what has come, and hand out what is pending."""
        for pipe in wait(self._workers, None if block else 0):
            assert isinstance(pipe, Connection)
            worker = self._workers[pipe]
            with _alive():
                content = pipe.recv_bytes()
            if worker.ready:
                worker.results.popleft().put(*pickle.loads(content))
            else:  # only now, for a send waits for the other end to read
                worker.ready = True
                with _alive():
                    pipe.send_bytes(self._function)
        ready = [(pipe, worker.results) for pipe, worker in self._workers.items() if worker.ready]
        while self._pending and ready:
            pipe, results = min(ready, key=lambda one: len(one[1]))
            if len(results) == AHEAD:
                break
            argument, result = self._pending.popleft()
            content = pickle.dumps(argument)
            with _alive():
                pipe.send_bytes(content)
            results.append(result)


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    """Of a pipe to a worker: its end is that of the worker."""
    try:
        yield
    except (EOFError, OSError):
        raise WorkerDied from None


class _Result(Generic[R]):
    """What a function returned or raised, once it is there."""

    def __init__(self) -> None:
        self.there = False

    def put(self, value: R | None, error: Exception | None) -> None:
        self.there, self._value, self._error = True, value, error

    def get(self) -> R:
        if self._error is not None:
            raise self._error
        return self._value  # pyright: ignore[reportReturnType]


@dataclass
class _Worker(Generic[R]):
    """`results` are those of the arguments that it has, in their order."""

    process: SpawnProcess
    results: deque[_Result[R]] = field(default_factory=deque)
    ready: bool = False

    @property
    def busy(self) -> bool:
        return not self.ready or bool(self.results)


def _work(pipe: Connection) -> None:
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, messages), daemon=True).start()
    with contextlib.suppress(OSError):  # nobody is there any more
        pipe.send_bytes(b"ready")
        function = messages.get()
        load = functools.lru_cache(maxsize=1)(pickle.loads)
        while True:
            pipe.send_bytes(_reply(lambda argument: load(function)(pickle.loads(argument)), messages.get()))


def _receive(pipe: Connection, messages: "queue.SimpleQueue[bytes]") -> None:
    """At once, so that nobody waits while a worker works; and a worker without a parent ends at once."""
    try:
        while True:
            messages.put(pipe.recv_bytes())
    finally:
        os._exit(1)


def _reply(function: Callable[[bytes], Any], argument: bytes) -> bytes:
    """What it returns or raises, pickled: `_Result.put`'s arguments."""
    try:
        return pickle.dumps((function(argument), None))
    except BaseException as error:
        place = f"In a worker process:\n{traceback.format_exc()}"
        if isinstance(error, Exception):
            error.add_note(place)
            with contextlib.suppress(Exception):  # not every one can be pickled, or be made of what was
                pickle.loads(content := pickle.dumps((None, error)))
                return content
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(place)
        return pickle.dumps((None, plain))
