"""Where the time of a training step goes: a trace of JAX's profiler, joined with the scopes of the compiled program.

Durations are those of leaf operations: the time of an operation inside another one is taken off the outer one. Control
flow (`while`, `call`) and the profiler's "end:" marks are left out. Threads and devices work at the same time, so the
sum may exceed the time that passed.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gptjax.benchmark.hlo_scopes import CATEGORIES, DIRECTIONS, Place, Program, parse_program

NUM_OPERATIONS = 10
"""Operations that a breakdown lists by name."""


class Event(NamedTuple):
    """An operation in a trace; times are in nanoseconds."""

    operation: str
    """The instruction of the program."""
    name: str
    """What the profiler calls it: on GPUs the kernel."""
    start: float
    duration: float


@dataclass(frozen=True)
class Row:
    """Milliseconds of a step in one category and one pass."""

    category: str
    direction: str
    milliseconds: float


@dataclass(frozen=True)
class Operation:
    """Milliseconds of a step in all runs of one instruction."""

    name: str
    kernel: str
    category: str
    direction: str
    milliseconds: float


@dataclass(frozen=True)
class Breakdown:
    """The time of a step by category and pass. All numbers are milliseconds a step."""

    rows: tuple[Row, ...]
    total: float
    """Sum over all threads and devices. The rows add up to it."""
    passed: float
    """Time that passed, with the profiler on."""
    operations: tuple[Operation, ...]
    """The largest operations."""

    @property
    def unscoped_share(self) -> float:
        """The share of `total` that no scope of the model names."""
        return sum(row.milliseconds for row in self.rows if row.category == "outside any scope") / (self.total or 1.0)


def profile_step(run: Callable[[int], Any], text: str, *, steps: int) -> Breakdown:
    """Trace `run(steps)`, which waits for its steps, and join the trace with the text of its compiled program.

    The program must have been compiled without a hit of the compile cache: metadata is no part of the cache's key, so a
    hit may carry the scopes of older code.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch, profiler_options=options):
            began_at = time.perf_counter()
            run(steps)
            passed = time.perf_counter() - began_at
        lines = [list(line) for path in Path(scratch).rglob("*.xplane.pb") for line in read_trace(path)]
    return join_events(lines, parse_program(text), steps=steps, passed=passed)


def read_trace(path: Path) -> Iterator[Iterator[Event]]:
    """The operations in a trace, by thread or stream."""
    data = jax.profiler.ProfileData.from_file(str(path))
    for plane in data.planes:
        lines = list(plane.lines)
        if plane.name.startswith("/device:"):  # other lines of a device sum up these
            streams = [line for line in lines if line.name.startswith("Stream")]
            lines = streams or [line for line in lines if line.name == "XLA Ops"]
        elif not plane.name.startswith("/host:CPU"):
            continue
        for line in lines:
            yield _read_line(line, is_device=plane.name.startswith("/device:"))


def _read_line(line: Any, *, is_device: bool) -> Iterator[Event]:
    for event in line.events:
        if event.name.startswith("end: "):
            continue
        operation = dict(event.stats).get("hlo_op")
        if operation is None and not is_device:
            continue
        operation = str(operation or event.name.removeprefix("%").partition(" = ")[0])
        yield Event(operation, event.name, event.start_ns, event.duration_ns)


def join_events(lines: Iterable[list[Event]], program: Program, *, steps: int, passed: float) -> Breakdown:
    """Sum the events of each line by their places in the program. `passed` is in seconds, over all steps."""
    sums: Counter[Place] = Counter()
    operations: Counter[tuple[str, str, Place]] = Counter()
    for line in lines:
        located = [(event, place) for event in line if (place := _locate(event, program)) is not None]
        for (event, place), exclusive in zip(located, _exclusive_durations([e for e, _ in located]), strict=True):
            milliseconds = exclusive / 1e6 / steps
            sums[place] += milliseconds  # pyright: ignore[reportArgumentType]
            operations[event.operation, event.name, place] += milliseconds  # pyright: ignore[reportArgumentType]
    order = lambda place: (CATEGORIES.index(place.category), DIRECTIONS.index(place.direction))
    return Breakdown(
        rows=tuple(Row(place.category, place.direction, sums[place]) for place in sorted(sums, key=order)),
        total=float(sum(sums.values())),
        passed=1000 * passed / steps,
        operations=tuple(
            Operation(name, kernel, place.category, place.direction, float(milliseconds))
            for (name, kernel, place), milliseconds in operations.most_common(NUM_OPERATIONS)
        ),
    )


def _locate(event: Event, program: Program) -> Place | None:
    """The place of an event; None for control flow. Copies and NCCL's kernels of a GPU have no instruction."""
    if event.operation in program.instructions:
        return program.locate(event.operation)
    if event.name.lower().startswith(("memcpy", "memset")):
        return Place("copies", "update")
    if event.name.lower().startswith("nccl"):
        return Place("collectives", "update")
    return Place("outside any scope", "update")


def _exclusive_durations(events: list[Event]) -> list[float]:
    """The duration of each event of a thread without that of the events inside it."""
    own = [event.duration for event in events]
    open_events: list[int] = []
    for index in sorted(range(len(events)), key=lambda i: (events[i].start, -events[i].duration)):
        event = events[index]
        while open_events and _end(events[open_events[-1]]) <= event.start:
            open_events.pop()
        if open_events:
            parent = events[open_events[-1]]
            own[open_events[-1]] -= min(event.duration, _end(parent) - event.start)
        open_events.append(index)
    return [max(0.0, duration) for duration in own]


def _end(event: Event) -> float:
    return event.start + event.duration
