"""A save of several processes ends for all of them at the same stage, whichever has failed and when."""

import errno
import logging
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from gptjax.checkpoints.joint_save import STAGES, JointCheckpointer, JointSave


class Meeting:
    """Threads in the place of processes. One that waits for another that never comes breaks the barrier."""

    def __init__(self, count: int) -> None:
        self.barriers = defaultdict(lambda: threading.Barrier(count, timeout=300))
        self.failures: dict[str, dict[str, str]] = defaultdict(dict)
        self.lock = threading.Lock()

    def collect_failures(self, place: str, error: str | None) -> dict[str, str]:
        with self.lock:
            barrier = self.barriers[place]
            if error is not None:
                self.failures[place][threading.current_thread().name] = error
        barrier.wait()
        return dict(self.failures[place])


def save(failing: str | None) -> str:
    """What one process learns of a save in which it cannot come to this stage."""
    one = JointSave("save 1 0")
    try:
        for stage in STAGES:
            if stage == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            one.reach(stage)
            one.reach(stage)  # each item's handler comes to the first one
    except OSError as error:
        one.fail(error)
        with pytest.raises(OSError, match="No space"):
            one.reach("named")  # of a second item's handler
        return str(error.strerror)
    return "saved"


@pytest.mark.parametrize("first", [None, *STAGES])
@pytest.mark.parametrize("second", [None, *STAGES])
def test_two_processes_learn_the_same_outcome(first: str | None, second: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gptjax.checkpoints.joint_save.collect_failures", Meeting(2).collect_failures)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(save, [first, second]))
    if first == second is None:
        assert outcomes == ["saved", "saved"]
    else:
        assert all(outcome.startswith("No space left on device") for outcome in outcomes)


def test_tracebacks_of_orbax_are_left_out_of_the_output():
    JointCheckpointer().close()
    logger = logging.getLogger("asyncio")
    lost = "Task exception was never retrieved: coro=<write() at /lib/site-packages/orbax/checkpoint/a.py:1>"
    left = "Future exception was never retrieved: writing /runs/x/checkpoints/4.unfinished.orbax-checkpoint-tmp/model"
    make = partial(logger.makeRecord, "asyncio", logging.ERROR, "base_events.py", 1, args=())
    assert [bool(logger.filter(make(msg=text, exc_info=None))) for text in (lost, left, "x")] == [False, False, True]
    for place, is_shown in (("/lib/orbax/checkpoint/path/async_path.py", False), ("/home/own.py", True)):
        with pytest.raises(OSError) as raised:
            exec(compile("raise OSError(28, 'No space left on device')", place, "exec"))
        record = make(msg="Future exception was never retrieved", exc_info=(OSError, raised.value, raised.tb))
        assert bool(logger.filter(record)) == is_shown
