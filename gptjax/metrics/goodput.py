"""Where the time of a run goes, over all its starts: goodput.jsonl in the run directory.

Each line is a span of time that has ended: `kind`, `time` (its end, in seconds since 1970), `seconds`, and `step`, the
completed steps at its end. A line of the kind `step` sums up the steps after `first`; `data` is the part of it that
waited for data. A line of the kind `start` begins each process of the run, and each time that it goes back. Steps that
are repeated after a start were lost.

Goodput is the share of the time that was spent computing steps which remained.
"""

import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptjax.core.directory_identity import DirectoryIdentity
from gptjax.metrics.console import format_duration
from gptjax.process.console import print_once

GOODPUT_FILE = "goodput.jsonl"
KINDS = ("step", "data wait", "start", "compile", "evaluate", "checkpoint", "lost steps")
"""In the order in which they are told; a run may have others."""
SHORT_SECONDS = 300.0
"""Of a run that takes less, the share of steps says nothing."""
MAX_SECONDS = 60.0
"""Steps are written together, once this much time has passed or something else is measured."""


@dataclass(frozen=True)
class Span:
    """A part of a run's time that was spent on one thing."""

    kind: str
    time: float
    """When it ended, in seconds since 1970."""
    seconds: float
    step: int
    """Completed steps at its end."""
    first: int = 0
    """Of a span of steps, the completed steps before it."""
    data: float = 0.0
    """Of a span of steps, the seconds that waited for data."""


class GoodputLog:
    """Appends spans to goodput.jsonl. What cannot be written is reported once and ends nothing."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = directory / GOODPUT_FILE, clock
        self._directory = DirectoryIdentity.read(directory)
        self._steps: Span | None = None
        self._has_failed = False

    def add(self, kind: str, seconds: float, *, step: int) -> None:
        """A span that ends now."""
        self.flush()
        self._write(Span(kind, self._clock(), seconds, step))

    def add_step(self, step: int, seconds: float, *, data_seconds: float) -> None:
        """The step that has just been completed, as number `step`."""
        done = self._steps or Span("step", 0.0, 0.0, step - 1, first=step - 1)
        self._steps = replace(
            done, time=self._clock(), seconds=done.seconds + seconds, step=step, data=done.data + data_seconds
        )
        if self._steps.seconds >= MAX_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the steps that are not written yet."""
        steps, self._steps = self._steps, None
        if steps is not None:
            self._write(steps)

    def _write(self, span: Span) -> None:
        line: dict[str, Any] = {"kind": span.kind, "time": round(span.time, 3), "seconds": round(span.seconds, 4)}
        line["step"] = span.step
        if span.kind == "step":
            line |= {"first": span.first, "data": round(span.data, 4)}
        try:
            self._directory.check()  # a new run may have the name of one that was moved
            with self._path.open("a", encoding="utf-8") as file:  # a line that a kill has cut is left behind
                file.write(("\n" if self._ends_cut() else "") + json.dumps(line) + "\n")
        except OSError as error:
            if not self._has_failed:
                print_once(f"warning: {self._path} cannot be written ({error.strerror}); training goes on")
            self._has_failed = True

    def _ends_cut(self) -> bool:
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) != b"\n"
        return False


def read_spans(directory: Path) -> list[Span]:
    """The spans of a run in order; [] where there is no file. What is no span is left out."""
    try:
        lines = (directory / GOODPUT_FILE).read_bytes().splitlines()
    except OSError:
        return []
    return [span for line in lines if (span := _parse(line)) is not None]


def _parse(line: bytes) -> Span | None:
    try:
        content = json.loads(line)
        numbers = [float(content.get(name, 0.0)) for name in ("time", "seconds", "data")]
        if not all(math.isfinite(number) for number in numbers) or not isinstance(content["kind"], str):
            return None
        ended, seconds, data = numbers
        return Span(content["kind"], ended, seconds, int(content["step"]), int(content.get("first", 0)), data)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def split_spans(spans: Sequence[Span]) -> list[tuple[str, float]]:
    """(kind, seconds) in order of time, with steps divided into `step`, `data wait` and `lost steps`.

    A start at step k takes back the steps after k of all spans before it.
    """
    kept = _find_kept_steps(spans)
    found: list[tuple[str, float]] = []
    for span, end in zip(spans, kept, strict=True):
        if span.kind != "step":
            found.append((span.kind, span.seconds))
            continue
        share = (end - span.first) / max(1, span.step - span.first)
        data = min(span.data, span.seconds)
        parts = (("step", share * (span.seconds - data)), ("data wait", share * data))
        found += [part for part in (*parts, ("lost steps", (1 - share) * span.seconds)) if part[1] > 0]
    return found


def _find_kept_steps(spans: Sequence[Span]) -> Iterator[int]:
    """For each span the last of its steps that no later start repeats, but at least its first."""
    limit, kept = math.inf, []
    for span in reversed(spans):
        kept.append(int(max(span.first, min(span.step, limit))))
        if span.kind == "start":
            limit = min(limit, span.step)
    return reversed(kept)


def sum_kinds(spans: Sequence[Span]) -> dict[str, float]:
    """Seconds of each kind, in the order of `KINDS`, then others."""
    totals: dict[str, float] = defaultdict(float)
    for kind, seconds in split_spans(spans):
        totals[kind] += seconds
    names = [*KINDS, *sorted(totals.keys() - set(KINDS))]
    return {name: totals[name] for name in names if name in totals}


def describe_goodput(spans: Sequence[Span]) -> str | None:
    """A line such as `goodput 93% of 2 h 10 min in 3 starts: step …`; None if nothing was recorded.

    A short run spends most of its time on its start, so there the line has no share.
    """
    totals = sum_kinds(spans)
    if not (total := sum(totals.values())):
        return None
    starts = sum(span.kind == "start" for span in spans)
    parts = ", ".join(f"{kind} {format_duration(seconds)}" for kind, seconds in totals.items())
    many = "1 start" if starts == 1 else f"{starts} starts"
    share = "time" if total < SHORT_SECONDS else f"goodput {totals.get('step', 0.0) / total:.0%} of"
    return f"{share} {format_duration(total)} in {many}: {parts}"
