"""A function applied in several processes, in order.

Workers are spawned, because a fork of a process that has started JAX or threads may hang. Ctrl-C reaches the main
process only.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

ARGUMENTS_PER_WORKER = 4
"""How many arguments are sent to each worker before the oldest result is awaited."""

T = TypeVar("T")
R = TypeVar("R")
_function: Callable[[Any], Any]  # of this worker


def map_in_processes(function: Callable[[T], R], arguments: Iterable[T], *, processes: int) -> Iterator[R]:
    """Yield the results in order; raises what the function raised, or `BrokenProcessPool` if a worker died.

    The function, its arguments and results are pickled.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=_start_worker, initargs=(function,))
    waiting = deque[Future[R]]()
    try:
        for argument in arguments:
            if len(waiting) == ARGUMENTS_PER_WORKER * processes:
                yield waiting.popleft().result()
            with _block_sigint():
                waiting.append(pool.submit(_call, argument))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _block_sigint() -> Iterator[None]:
    """Processes and threads that start in the block inherit that Ctrl-C is blocked, from their first moment on."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(argument: Any) -> Any:
    return _function(argument)


def refuse_in_worker() -> None:
    """Raise where a script without a guard, imported by a spawned worker, would prepare again and wait for itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError('prepare() is called while a worker imports this script; guard it: __name__ == "__main__".')
