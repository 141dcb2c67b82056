"""Ends a run in order when a signal asks for it.

These signals mean the end: SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal was closed), SIGUSR1 (a scheduler's warning)
and SIGXCPU (a limit of CPU time). SIGUSR2 and others are added by `GPTJAX_STOP_SIGNALS=USR2`. After those of
`GPTJAX_REQUEUE_SIGNALS=TERM` a run ends with status 75.

A thread hears a signal even while the main thread computes. It says what will happen, and it ends the process where
the main thread cannot: at a second Ctrl-C or SIGTERM, and before training, when there is nothing to save.
"""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from gptjax.core.errors import UserError
from gptjax.process.early_exit import REQUEUE_VARIABLE, STOP_VARIABLE, read_signals, stop_status
from gptjax.process.lost_signals import hear_again, unwrap
from gptjax.process.process_end import exit_process, has_peers
from gptjax.sharding.distributed import count_processes
from gptjax.sharding.preemption import take_jax_handler

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
GRACE_SECONDS = 3.0
"""Time in which the main thread may end by itself when there is nothing to save."""
ANNOUNCE_SECONDS = 1.0
"""Time in which the thread that hears signals says so."""
REPEAT_SECONDS = 0.5
"""A second Ctrl-C or SIGTERM within this time belongs to the first: a launcher may pass one on that all have got."""
_ENDS_AT_ONCE = (signal.SIGINT, signal.SIGTERM)


class StopRequested(BaseException):
    """A signal asks for the end, at a moment when nothing has to be saved or an evaluation can be left out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def list_stop_signals() -> tuple[int, ...]:
    """The signals that end a run, with those that the environment names. Raises a `UserError` for a wrong name."""
    try:
        asked = [*read_signals(STOP_VARIABLE), *read_signals(REQUEUE_VARIABLE)]
    except ValueError as error:
        raise UserError(str(error)) from None
    return tuple(dict.fromkeys([*STOP_SIGNALS, *asked]))


class GracefulShutdown:
    """Catches the signals that end a run. Several processes agree on the step through what JAX does at a SIGTERM."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._may_raise = True
        self._is_training = False
        self.place = "before training"
        """Where a signal ends the run without saving anything."""
        self._previous_handlers: dict[int, Any] = {}
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self._previous_wakeup = -1
        self._previous_hook: Callable[[Any], object] = sys.unraisablehook
        self._tell_jax: Callable[[int], object] | None = None
        self._telling = threading.Lock()
        self._announced = threading.Event()
        self._own_signals = 0
        """How many it has sent itself that the thread has not heard yet: nobody asks a second time by them."""

    def __enter__(self) -> "GracefulShutdown":
        numbers = list_stop_signals()
        if threading.current_thread() is threading.main_thread():  # Python sets handlers only there
            self._tell_jax = take_jax_handler() if count_processes() > 1 else None
            self._start_thread()
            self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._hear_dropped
            for number in numbers:
                is_ignored = number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN  # nohup
                if not is_ignored:
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._wakeup is not None:
            sys.unraisablehook = self._previous_hook
            signal.set_wakeup_fd(self._previous_wakeup)
            self._wakeup[1].close()  # ends the thread

    def begin_training(self) -> None:
        """From now on a signal waits for the end of a step. Before the first step it ends the run where it is."""
        self._may_raise, self._is_training = False, True
        if self._received is not None:
            raise StopRequested(self._received)

    def pause_training(self, place: str) -> None:
        """Until `begin_training` there is nothing to save, and a signal ends the run where it is: at this `place`.

        Of several processes, those that have told the others of a signal end with them at a step.
        """
        self._is_training, self.place = False, place
        if count_processes() == 1:
            self._may_raise = True
            if self._received is not None:
                raise StopRequested(self._received)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside the block a signal of a single process raises `StopRequested`, to leave out what need not be done."""
        if count_processes() > 1:  # the others would wait
            yield
            return
        self._may_raise = True
        try:
            if self._received is not None:
                raise StopRequested(self._received)
            with unwrap(StopRequested):
                yield
        finally:
            self._may_raise = False

    def wait_for_announcement(self) -> None:
        """Let the thread say first which signal it has heard. What follows from it comes after that line."""
        if self._wakeup is not None:
            self._announced.wait(ANNOUNCE_SECONDS)

    def get_signal(self, step: int) -> int | None:
        """The signal to stop for before this step, agreed on by all processes; None if there is none."""
        if count_processes() == 1:
            return self._received
        self._pass_on()
        if not multihost_utils.reached_preemption_sync_point(step):
            return None
        received = multihost_utils.process_allgather(np.asarray(self._received or 0))
        return int(np.max(received)) or signal.SIGUSR1  # only JAX has heard of it: a preemption

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, between two instructions of Python."""
        if self._received is None:
            self._received = number
        if self._may_raise:
            self._may_raise = False
            raise StopRequested(number)

    def _hear_dropped(self, found: Any) -> None:
        """A `sys.unraisablehook`: what the handler raises in a callback of the garbage collector is dropped there."""
        if not isinstance(found.exc_value, StopRequested):
            self._previous_hook(found)
            return
        self._may_raise = True
        self._own_signals += 1
        hear_again(found.exc_value.number)

    def _pass_on(self) -> None:
        """Let JAX tell the other processes, once: the main thread and the one that listens both come here."""
        with self._telling:
            if self._received is not None and self._tell_jax is not None and self._is_training:
                self._tell_jax(signal.SIGTERM)
                self._tell_jax = None

    def _start_thread(self) -> None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._wakeup = reader, writer
        self._previous_wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), daemon=True, name="signals").start()

    def _listen(self, reader: socket.socket) -> None:
        """In a thread of its own, at once, whatever the main thread does."""
        is_announced, asked_at = False, math.inf
        with reader:
            while numbers := reader.recv(1):
                number = numbers[0]
                if number not in self._previous_handlers:
                    continue
                if is_announced and self._own_signals:
                    self._own_signals -= 1
                    continue
                if not is_announced:
                    is_announced = True
                    self._received = self._received or number
                    self._pass_on()
                    self._announce(number)
                    self._announced.set()
                if number not in _ENDS_AT_ONCE:  # a scheduler's warning, which a SIGTERM follows while the run saves
                    continue
                if time.monotonic() - asked_at >= REPEAT_SECONDS and not self._is_over():
                    _write(f"{signal.Signals(number).name} again: stopped at once\n")
                    os._exit(stop_status(number))
                asked_at = min(asked_at, time.monotonic())

    def _is_over(self) -> bool:
        """The handlers of before are back: what the thread has still to hear ends nobody."""
        return self._wakeup is None or self._wakeup[1].fileno() == -1

    def _announce(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._is_training:
            how = "send it again" if number in _ENDS_AT_ONCE else "send SIGTERM twice"
            _write(f"{name}: saving after this step; {how} to stop at once\n")
            return
        _write(f"{name}: stopping {self.place}; there is nothing to save\n")
        timer = threading.Timer(GRACE_SECONDS, self._leave, args=(number,))
        timer.daemon = True
        timer.start()

    def _leave(self, number: int) -> None:
        if not self._is_training and not self._is_over():
            if has_peers():
                exit_process(stop_status(number), f"stopped {self.place} by {signal.Signals(number).name}")
            os._exit(stop_status(number))


def _write(text: str) -> None:
    """Not by print: the main thread may be inside one. A closed terminal is none of our business."""
    with contextlib.suppress(OSError):
        os.write(1, text.encode())
