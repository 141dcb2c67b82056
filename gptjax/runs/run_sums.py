"""Sums of what a run writes beside its checkpoints, so that a changed byte of it is named.

Lines are only added to logs. Each checkpoint has the sums of what they held when it was saved. At its end a run adds
the sums of the whole logs and of its picture to its own `checksums.json`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gptjax.checkpoints.integrity import list_steps, measure_logs, read_log_sums, sum_logs
from gptjax.core.file_sums import DamagedFileError, FileSum, read_sums, sum_files, sum_prefixes, write_sums
from gptjax.metrics.goodput import GOODPUT_FILE
from gptjax.process.console import print_once
from gptjax.runs.run_dir import CHECKPOINTS, CONSOLE_LOG, METRICS, REPORTS

_LOGS = (METRICS, GOODPUT_FILE, CONSOLE_LOG, "tensorboard/*")
_LAST_FILES = ("loss.png", f"{METRICS}.broken", *REPORTS)
"""Files beside the logs that a run may have written before its end."""
_END = "the run ended"


def list_logs(directory: Path) -> list[Path]:
    """The files of a run to which lines are only added."""
    return [path for pattern in _LOGS for path in sorted(directory.glob(pattern)) if path.is_file()]


def seal_run(directory: Path) -> None:
    """Add the sums of the logs and of the picture to those of the run, once nothing more is written.

    What cannot be written is reported. The run is complete without them.
    """
    try:
        if (found := read_sums(directory)) is None:
            return
        names = sorted(path.name for pattern in _LAST_FILES for path in directory.glob(pattern))
        sums = found[0] | sum_files(directory, [name for name in names if name not in found[0]])
        write_sums(directory, sums, extra=sum_logs(measure_logs(list_logs(directory)), directory))
    except (OSError, DamagedFileError) as error:
        print_once(f"warning: what was written since the last checkpoint has no sums: {error}")


class _Mark(NamedTuple):
    """What a log held at a moment."""

    when: str
    found: FileSum


def find_log_damage(directory: Path) -> Iterator[str]:
    """Yield a line for each log of a run that is missing or has changed, with the steps between which it differs.

    Prints which are unchanged, and which have more than was ever summed: of a run that goes on, or that was killed.
    """
    unchanged, open_logs = [], []
    marks = _collect_marks(directory)
    for name, found in marks.items():
        path = directory / name
        if not path.is_file():
            yield f"{path} is missing; it had {found[-1].found.bytes:,} bytes when {found[-1].when}"
        elif (problem := _describe_change(path, found)) is not None:
            yield problem
        else:
            unchanged.append(name)
            if more := path.stat().st_size - found[-1].found.bytes:
                open_logs.append(f"{more:,} bytes of {name}")
    open_logs += [name for path in list_logs(directory) if (name := str(path.relative_to(directory))) not in marks]
    if unchanged:
        print(f"{directory}: {', '.join(unchanged)} are unchanged")
    if open_logs:
        print(f"{directory}: not summed yet: {', '.join(open_logs)}, written since the last checkpoint")


def _collect_marks(directory: Path) -> dict[str, list[_Mark]]:
    """What each log held when a checkpoint was saved and when the run ended, from the shortest to the longest."""
    marks: dict[str, list[_Mark]] = {}
    checkpoints = directory / CHECKPOINTS
    moments = [(f"step {step} was saved", checkpoints / str(step)) for step in list_steps(checkpoints)]
    for when, place in (*moments, (_END, directory)):
        for name, found in read_log_sums(place).items():
            marks.setdefault(name, []).append(_Mark(when, found))
    return {name: sorted(found, key=lambda mark: mark.found.bytes) for name, found in marks.items()}


def _describe_change(path: Path, marks: Iterable[_Mark]) -> str | None:
    before, start = "it began", 0
    found = sum_prefixes(path, [mark.found.bytes for mark in marks])
    for when, wanted in marks:
        if found[wanted.bytes].bytes < wanted.bytes:
            return f"{path} has {found[wanted.bytes].bytes:,} bytes; {wanted.bytes:,} were written when {when}"
        if found[wanted.bytes] != wanted:
            return (
                f"{path} has changed since it was written: between its bytes {start:,} and {wanted.bytes:,}, of the "
                f"time from when {before} until {when}"
            )
        before, start = when, wanted.bytes
    return None
