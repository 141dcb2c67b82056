"""One directory in which the processes of a start leave their markers (`start_marker`)."""

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.sharding.start_judge import Failure, Judge, Mark, describe_twin

PREFIX = ".start-"
DIRECTORIES = PREFIX + 12 * "[0-9a-f]"
"""The pattern of the names of directories of markers."""
ABANDONED_SECONDS = 3600
"""A directory of markers in which nobody wrote for so long is removed by the next start."""
TWIN_BEATS = 3
"""One that sees another process of its number renew a marker so often is refused. The first one has the place."""
STILL_BEATS = 5
"""A marker of its number that stands still for so many looks is of an earlier start, and is replaced."""


@dataclass(frozen=True)
class Start:
    """A start of `count` processes, of which this is `index`. Its markers are in `directory`."""

    directory: Path
    index: int
    count: int


class Place:
    """The marker of this process in the directory of a start, and what those of the others say there."""

    def __init__(self, start: Start, content: Mapping[str, Any]) -> None:
        """`content` is that of this process's marker; its owner changes it."""
        self.start, self._content, self._id = start, content, content["id"]
        self.judge = Judge(start.index, start.count, self._id)
        self.failure: Failure | None = None
        self.is_written = False
        self._made = 0
        """The directories that the processes of this start had to make. The last one removes them."""
        self._twin: Mark | None = None
        self._twin_beats, self._twin_looks = 0, 0

    def exchange(self) -> None:
        """Renew the marker and look at those of the others. A directory that cannot be written tells nothing."""
        self.is_written = False
        with contextlib.suppress(OSError):
            if not self._has_place():
                return
            self._write()
            self.is_written = True
            own = (self.start.directory / str(self.start.index)).stat().st_mtime
            marks = self._read()
            self._made = max((mark.made for mark in marks.values()), default=0)
            failure = self.judge.look(marks, now=time.monotonic(), own_time=own)
            self.failure = self.failure or failure

    def read_mark(self, index: int) -> Mark | None:
        """The marker of a process; None for one that is missing or cut short."""
        path = self.start.directory / str(index)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            return Mark.parse(json.loads(path.read_text(encoding="utf-8")), time=path.stat().st_mtime)
        return None

    def clear(self) -> None:
        """Remove the marker, that of a process whose end is told, and the directories that were made for them."""
        directory, cause = self.start.directory, self._content["cause"]
        with contextlib.suppress(OSError):
            for i in (self.start.index, *([] if cause is None else cause[:1])):
                mark = self.read_mark(i)
                if mark is not None and (mark.id == self._id or self.judge.is_dead(mark)):
                    (directory / str(i)).unlink(missing_ok=True)
            for folder in [directory, *directory.parents][: max(1, self._made)]:
                folder.rmdir()

    def remove_abandoned(self) -> None:
        """Remove the markers of other starts, all of whose processes were killed."""
        with contextlib.suppress(OSError):
            now = self.start.directory.stat().st_mtime
            for path in self.start.directory.parent.glob(DIRECTORIES):
                if now - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _has_place(self) -> bool:
        """Whether no other living process has this one's number. The second of two leaves no marker, and is refused.

        So a command that is tried in another shell with the variables of this start does not end it.
        """
        mark = self.read_mark(self.start.index)
        if mark is not None:
            self._made = max(self._made, mark.made)
        is_alive = None if mark is None else mark.process.is_alive(self.judge.own_process)
        if mark is None or mark.id == self._id or mark.end is not None or is_alive is False:
            return True
        is_renewed = self._twin is not None and (mark.id, mark.beat) != (self._twin.id, self._twin.beat)
        self._twin_beats, self._twin_looks = self._twin_beats + is_renewed, 0 if is_renewed else self._twin_looks + 1
        self._twin = mark
        if self._twin_beats >= TWIN_BEATS and self.failure is None:
            who = f"process {self.start.index} of {self.start.count}"
            self.failure = Failure(self.start.index, describe_twin(who), 2)
        return not is_alive and self._twin_looks > STILL_BEATS

    def _write(self) -> None:
        """Renew the marker by a rename, after which a network file system looks into the directory anew."""
        directory = self.start.directory
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        self._made = max(self._made, len(missing))
        unfinished = directory / f"{self.start.index}.{self._id}"
        try:
            unfinished.write_text(json.dumps({**self._content, "made": self._made}), encoding="utf-8")
            unfinished.replace(directory / str(self.start.index))
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _read(self) -> dict[int, Mark]:
        """The markers of all processes, by their numbers."""
        marks = {i: self.read_mark(i) for i in range(self.start.count)}
        return {i: mark for i, mark in marks.items() if mark is not None}
