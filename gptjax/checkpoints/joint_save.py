"""One save by all processes of a run. All of them learn how it ended, and none waits for one that has failed.

Orbax's own barriers hold a process forever if another one fails before it comes to them, as on a full disk. Here a
save has stages. A process that fails says so at the next stage, and all others fail there, too.
"""

import errno
import logging
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from gptjax.checkpoints.checkpoint_format import ARRAY_ITEMS, ARRAY_OPTIONS, describe_cause
from gptjax.checkpoints.integrity import METADATA
from gptjax.core.directory_identity import DirectoryIdentity
from gptjax.core.lazy import LazyModule
from gptjax.process.diagnosis import shows_tracebacks
from gptjax.sharding.distributed import collect_failures

if TYPE_CHECKING:
    import orbax.checkpoint as ocp
else:
    ocp = LazyModule("orbax.checkpoint")  # half a second

STAGES = ("directories", "written", "merged", "named")
"""What is there when all processes have passed the stage: directories, arrays of all, Orbax's index, the checkpoint."""
_BARRIERS = {"async_write_complete": "written", "async_commit_complete": "merged"}
"""Which stages stand for the barriers of Orbax's thread."""


class JointSave:
    """The stages of one save, on one of the processes."""

    def __init__(self, name: str) -> None:
        """`name` is the same on all processes and is used once in a run."""
        self._name, self._to_come = name, list(STAGES)
        self._failure: OSError | None = None

    def reach(self, stage: str) -> None:
        """Wait until all processes come to this stage; raises an OSError if one of them has failed before."""
        while self._failure is None and stage in self._to_come:
            if self._to_come.pop(0) == stage:
                self._meet(stage, None)
        if self._failure is not None:
            raise self._failure

    def fail(self, error: Exception) -> None:
        """Tell the others why this process does not come to the next stage, unless the save has failed already."""
        if self._failure is None and self._to_come:
            with suppress(OSError):
                self._meet(self._to_come.pop(0), describe_cause(error))

    def _meet(self, stage: str, error: str | None) -> None:
        if failures := collect_failures(f"{self._name} {stage}", error):
            name, cause = min(failures.items())
            self._failure = OSError(errno.EIO, f"{cause} ({name})" if name else cause)


class JointCheckpointer:
    """Orbax's checkpointer, whose processes agree on the outcome of each save."""

    def __init__(self) -> None:
        self._save = JointSave("")
        # The barriers among "all processes of this checkpointer" are none. Its thread calls `barrier_sync_fn`.
        own = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={jax.process_index()})
        # In the background, a directory that cannot be created is noticed only after minutes of waiting for it.
        options = ocp.AsyncOptions(barrier_sync_fn=self._pass_barrier, create_directories_asynchronously=False)
        composite = ocp.CompositeOptions(multiprocessing_options=own, async_options=options)
        registry = _make_registry(lambda: self._save.reach("directories"))
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=composite, handler_registry=registry),
            async_options=options,
            multiprocessing_options=own,
        )
        # absl has its own class of logger, so only once Orbax has imported it. Adding a filter twice changes nothing.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_not_of_orbax)

    def save(
        self, directory: Path, args: "ocp.args.Composite", *, name: str, run: DirectoryIdentity | None = None
    ) -> None:
        """Begin to write this directory, and return once the arrays may be donated. `name` is that of the save.

        `run` must be in its place: Orbax would make another one, without its config. The first process gives it.
        """
        self._save = JointSave(name)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # of one that fails
        try:
            if run is not None:
                run.check()
            self._orbax.save(directory, args=args, force=True)
        except Exception as error:
            self._save.fail(error)
            raise

    def finish(self, commit: Callable[[], None]) -> None:
        """Wait until all processes have written; then the first one calls `commit`. Raises in all if one has failed."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                commit()
            self._save.reach("named")
        except Exception as error:
            self._save.fail(error)
            raise

    def settle(self) -> None:
        """Let the threads of a failed save end. Orbax raises once in each, and would raise at the next save."""
        with suppress(Exception):
            self._orbax.wait_until_finished()

    def close(self) -> None:
        self._orbax.close()

    def _pass_barrier(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's time limit is not used: `ProcessWatch` and the watchdog end a wait."""
        self._save.reach(_BARRIERS[key.partition(".")[0].lstrip("_")])


def _make_registry(await_directories: Callable[[], None]) -> Any:
    """Orbax's handlers of all items. They write arrays once the first process has made the directories."""

    class ArrayHandler(ocp.PyTreeCheckpointHandler):
        async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
            await_directories()
            return await super().async_save(directory, *args, **kwargs)

    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ARRAY_ITEMS:
        registry.add(item, ocp.args.PyTreeSave, ArrayHandler(**ARRAY_OPTIONS))
    registry.add(METADATA, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return registry


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """A filter of logs. Orbax logs a traceback in each thread that fails, and asyncio one for each array; `finish`
    raises the same error. asyncio's name the temporary directory that Orbax writes to or its source, or only their
    traceback leads there."""
    text = record.getMessage()
    frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else ()
    places = [record.pathname, *(frame.filename for frame in frames)]
    is_of_orbax = any("orbax" in Path(place).parts for place in places)
    is_of_orbax |= "/orbax/" in text or ".orbax-checkpoint-tmp" in text
    return not is_of_orbax or shows_tracebacks()
