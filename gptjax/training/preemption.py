"""Ends a run in order when Ctrl-C or SIGTERM asks for it."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class GracefulShutdown:
    """Catches SIGINT and SIGTERM, to be handled between two steps. A second signal stops the process at once.

    In a run of several processes, they agree on the step through JAX's own handler of SIGTERM. There, only a second
    SIGINT stops at once.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():  # Python sets handlers only there
            self._set_handler(signal.SIGINT)
            if jax.process_count() == 1:  # otherwise SIGTERM belongs to JAX
                self._set_handler(signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def get_signal(self, step: int) -> int | None:
        """The signal to stop for before this step, agreed on by all processes; None if there is none."""
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self._received

    def _set_handler(self, number: int) -> None:
        self._previous_handlers[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        several = jax.process_count() > 1
        if self._received is not None and several:  # an orderly exit would wait for the other processes
            os._exit(128 + number)
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        # On any process that receives the signal. Not by print: the signal may have interrupted one.
        os.write(1, f"{signal.Signals(number).name}: saving after this step; send it again to stop at once\n".encode())
        if several:
            signal.raise_signal(signal.SIGTERM)
