"""A function applied in several processes, in order; the death of a worker at any moment is noticed.

Each worker has a pipe of its own, of which no other process holds an end. The death of a worker is the end of its pipe,
also while it starts or is sending a result; the death of the parent is the end of the pipe for the worker. (The workers
of `concurrent.futures` share one queue, which waits for ever for the rest of a result whose sender died.)

Workers are new interpreters, because a fork of a process that has started JAX or threads may hang. They import what the
function needs and not the script that prepares, as those of `multiprocessing` do: that takes twice as long, and runs
again a script without `if __name__ == "__main__":`.
"""

import contextlib
import functools
import gc
import importlib
import itertools
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from data_pipelines.runtime.sigint import block_sigint
from gptjax.core.errors import UserError
from gptjax.core.garbage import pause_garbage_collection
from gptjax.core.provenance import count_cores

START = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import work; work(*sys.argv[2:])"
"""What a worker runs: its arguments are where modules are found, its end of the pipe, and what to import ahead."""
ARGUMENTS_PER_WORKER = 4
"""How many arguments are sent to each worker before the oldest result is awaited."""

T = TypeVar("T")
R = TypeVar("R")


class WorkerDied(Exception):
    """A worker process ended unexpectedly."""


class Workers:
    """The processes of one `map_in_processes`. They can start before their work is known, while this process loads it.

    Leaving the context kills them.
    """

    def __init__(self) -> None:
        self._running: list[tuple[subprocess.Popen[bytes], Connection]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with block_sigint():
            for process, _ in self._running:
                process.kill()
            for process, pipe in self._running:
                process.wait()
                pipe.close()
            self._running.clear()

    def start(self, count: int, *modules: str) -> list[Connection]:
        """Start workers up to this number, which import the modules at once. Returns the pipes to so many of them."""
        for _ in range(count - len(self._running)):
            with block_sigint():
                self._running.append(_start_worker(modules))
        return [pipe for _, pipe in self._running[:count]]

    def start_ahead(self, size: int, *modules: str, processes: int | None, pool_size: int) -> None:
        """Start those that `map_on_cores` will want for `size` of work."""
        if size >= pool_size and (count := processes or count_cores()) > 1:
            self.start(count, *modules)


def map_in_processes(
    function: Callable[[T], R], arguments: Iterable[T], *, processes: int, workers: Workers | None = None
) -> Iterator[R]:
    """Yield the results in order; raises what the function raised, or `WorkerDied`.

    The function, its arguments and results are pickled, and nothing of them may be defined in the script that runs
    (`__main__`). The processes are killed when the iterator ends or is closed.
    """
    with workers or Workers() as workers:
        yield from _map(workers.start(processes), arguments, function=function)


def map_on_cores(
    function: Callable[[T], R],
    arguments: Iterator[T],
    *,
    processes: int | None,
    size: Callable[[T], int],
    pool_size: int,
    workers: Workers | None = None,
) -> Generator[R, None, None]:
    """Yield the results in order: from `processes`, by default one for each core, or from this one for little work.

    Those of `workers` come first. Little is less than `pool_size` together. Raises `UserError` where a worker dies.
    """
    first, total, processes = list[T](), 0, processes or count_cores()
    while processes > 1 and (total < pool_size or len(first) < processes):
        if (argument := next(arguments, None)) is None:
            break
        first.append(argument)
        total += size(argument)
    everything = itertools.chain(first, arguments)
    if total < pool_size:
        yield from map(function, everything)
        return
    try:
        yield from map_in_processes(function, everything, processes=min(processes, len(first)), workers=workers)
    except WorkerDied:
        raise UserError(
            f"a worker process died, mostly for want of memory: use fewer than --processes={processes}."
        ) from None


def _start_worker(modules: Iterable[str]) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    with theirs:
        places, number = json.dumps([os.path.abspath(path) for path in sys.path]), theirs.fileno()
        command = [sys.executable, *_list_options(), "-c", START, places]
        return subprocess.Popen([*command, str(number), *modules], stdin=subprocess.DEVNULL, pass_fds=[number]), ours


def _list_options() -> list[str]:
    """Python's options of this process, for a worker.

    With `-P`, nothing is imported from the working directory before the worker knows where modules are found.
    """
    flags = sys.flags
    options = {
        "-I": flags.isolated,
        "-E": flags.ignore_environment,
        "-s": flags.no_user_site,
        "-S": flags.no_site,
        "-B": flags.dont_write_bytecode,
    }
    given = [name for name, is_on in options.items() if is_on] + ["-O"] * flags.optimize + ["-b"] * flags.bytes_warning
    extra = [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    return ["-P", *given, *(f"-W{warning}" for warning in sys.warnoptions), *extra]


def _map(pipes: list[Connection], arguments: Iterable[T], *, function: Callable[[T], R]) -> Iterator[R]:
    content = pickle.dumps(function)
    for pipe in pipes:
        _send(pipe, content)
    waiting: deque[Connection] = deque()
    for pipe, argument in zip(itertools.cycle(pipes), arguments, strict=False):
        if len(waiting) == ARGUMENTS_PER_WORKER * len(pipes):
            yield _receive_result(waiting.popleft())
        _send(pipe, pickle.dumps(argument))
        waiting.append(pipe)
    yield from map(_receive_result, waiting)


def _send(pipe: Connection, content: bytes) -> None:
    try:
        pipe.send_bytes(content)
    except OSError:
        raise WorkerDied from None


def _receive_result(pipe: Connection) -> Any:
    try:
        content = pipe.recv_bytes()
    except (EOFError, OSError):
        raise WorkerDied from None
    result, error = pickle.loads(content)
    if error is not None:
        raise error
    return result


def work(descriptor: str, *modules: str) -> None:
    """Apply the function that arrives first to everything that arrives after it, by the pipe of this descriptor.

    The modules are imported while it is awaited.
    """
    pipe = Connection(int(descriptor))
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, messages), daemon=True).start()
    for module in modules:
        with contextlib.suppress(Exception):  # raised again, and told, where the function is loaded
            importlib.import_module(module)
    load, function = functools.cache(_load), messages.get()
    with contextlib.suppress(OSError):  # the parent has ended
        while True:
            pipe.send_bytes(_call(lambda argument: load(function)(pickle.loads(argument)), messages.get()))


def _load(function: bytes) -> Callable[[Any], Any]:
    """Unpickle what stays until the end, so that no search for garbage looks at it again."""
    with pause_garbage_collection():
        loaded = pickle.loads(function)
    gc.freeze()
    return loaded


def _receive(pipe: Connection, messages: "queue.SimpleQueue[bytes]") -> None:
    """Receive at once, so that the parent never waits to send; end the process with its parent."""
    try:
        while True:
            messages.put(pipe.recv_bytes())
    finally:
        os._exit(1)


def _call(function: Callable[[bytes], Any], argument: bytes) -> bytes:
    """Pickle (result, None) or (None, error); an error that is no `UserError` becomes a `RuntimeError`."""
    try:
        return pickle.dumps((function(argument), None))
    except UserError as error:
        return pickle.dumps((None, error))
    except BaseException:
        return pickle.dumps((None, RuntimeError(f"In a worker process:\n{traceback.format_exc()}")))
