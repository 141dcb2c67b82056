"""Ctrl-C reaches one thread of one process: the main thread of the process that a person started."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_CHECKS = 0.1


@contextlib.contextmanager
def block_sigint() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block; processes started inside never receive it.

    A process inherits the blocked signal before it runs a line of Python. The system may deliver the signal to another
    thread of this process, so the handler is replaced, too.
    """
    received: list[tuple[Any, ...]] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main_thread else None
    if callable(handler):
        signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
            if received:
                handler(*received[0])


def call_interruptibly(function: Callable[[], T], *, on_wait: Callable[[], object] = lambda: None) -> T:
    """Call a function that runs for minutes without a line of Python, so that Ctrl-C interrupts it.

    It runs in a daemon thread, which after Ctrl-C continues until the process exits. `on_wait` is called every tenth of
    a second, in this thread.
    """
    future = Future[T]()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(SECONDS_BETWEEN_CHECKS)  # a lock without a timeout might not notice the signal
        on_wait()
    return future.result()
