"""Sums of what a run writes beside its checkpoints, so that a changed byte of it is named.

Lines are only added to logs. Each checkpoint has the sums of what they held when it was saved. At its end a run adds
the sums of the whole logs and of its picture to its own `checksums.json`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from gptjax.checkpoints.integrity import list_steps, measure_logs, read_log_sums, sum_logs
from gptjax.config import TrainConfig
from gptjax.core.file_sums import (
    DamagedFileError,
    FileSum,
    FileSums,
    describe_unchanged,
    read_sums,
    sum_files,
    sum_prefixes,
    write_sums,
)
from gptjax.metrics.goodput import GOODPUT_FILE
from gptjax.process.console import print_once
from gptjax.runs.run_dir import CHECKPOINTS, CONSOLE_LOG, METRICS, REPORTS, warn_of_changed_files, write_run_files
from gptjax.tokenization.tokenizer import Tokenizer

_LOGS = (METRICS, GOODPUT_FILE, CONSOLE_LOG, "tensorboard/*")
DISPOSABLE = ("loss.png", f"{METRICS}.broken", f"{METRICS}.before", *REPORTS)
"""Patterns of files beside the logs that a run may have written before its end. They may be deleted: no result depends
on them."""
_NEEDED = {METRICS, GOODPUT_FILE}
"""Logs that the run reads itself. The others may be deleted."""
_OWN_CHANGE = "If you changed it yourself, the next start of the run sums it anew"
_END = "the run ended"
_STEPS = "steps"
"""The field of `checksums.json` that lists the checkpoints at the end of a run, until its next start."""


def begin_run(config: TrainConfig, tokenizer: Tokenizer | None, *, source: str | None) -> None:
    """Write the files of a run that begins or goes on, after a warning for each that has changed.

    `source` is the text of the config file. The first process does this for all.
    """
    if jax.process_index() == 0:
        warn_of_changed_files(config.directory)
        warn_of_changed_logs(config.directory)
        write_run_files(config.directory, config, tokenizer, source=source)


def list_logs(directory: Path) -> list[Path]:
    """The files of a run to which lines are only added."""
    return [path for pattern in _LOGS for path in sorted(directory.glob(pattern)) if path.is_file()]


def seal_run(directory: Path) -> None:
    """Add the sums of the logs and of the picture, and the checkpoints, to the sums of the run once it writes no more.

    What cannot be written is reported. The run is complete without them.
    """
    try:
        if (found := read_sums(directory)) is None:
            return
        names = sorted(path.name for pattern in DISPOSABLE for path in directory.glob(pattern))
        sums = found[0] | sum_files(directory, [name for name in names if name not in found[0]])
        extra = sum_logs(measure_logs(list_logs(directory)), directory)
        write_sums(directory, sums, extra=extra | {_STEPS: list_steps(directory / CHECKPOINTS)})
    except (OSError, DamagedFileError) as error:
        print_once(f"warning: what was written since the last checkpoint has no sums: {error}")


def describe_lost_steps(directory: Path) -> dict[int, str]:
    """What to say of each checkpoint that was there when the run ended and is gone; empty if it has gone on since.

    One that a command has set aside, such as `STEP.damaged`, is still there.
    """
    try:
        _, extra = read_sums(directory) or ({}, {})
    except DamagedFileError:
        return {}
    checkpoints = directory / CHECKPOINTS
    lost = set(extra.get(_STEPS, ())).difference(list_steps(checkpoints))
    lost = sorted(step for step in lost if not any(checkpoints.glob(f"{step}.*")))
    return {step: f"{checkpoints / str(step)} is missing; it was there when {_END}" for step in lost}


class _Moment(NamedTuple):
    """When logs were summed, and their sums by name."""

    when: str
    sums: FileSums


class _Mark(NamedTuple):
    """What a log held at a moment."""

    when: str
    found: FileSum


def report_logs(directory: Path) -> Iterator[str]:
    """Yield a line for each log of a run that is missing or has changed, with the steps between which it differs.

    Prints which are unchanged since their last sum, which have more than was ever summed, and which have no sum. A note
    tells of logs that were deleted, or begun anew or repaired before their last sum.
    """
    unchanged, open_logs = [], []
    marks = _collect_marks(_read_moments(directory))
    for name, found in marks.items():
        path, last = directory / name, found[-1]
        if not path.is_file():
            line = f"{path} is missing; it had {last.found.bytes:,} bytes when {last.when}"
            if name in _NEEDED:
                yield line
            else:
                print(f"note: {line}")
            continue
        is_same = _compare_marks(path, found)
        if not is_same[-1]:
            yield f"{_describe_change(path, found, is_same)}. {_OWN_CHANGE}"
            continue
        if not all(is_same):
            print(f"note: {path} {_describe_new_start(found, is_same)}")
        unchanged.append(name)
        if more := path.stat().st_size - last.found.bytes:
            open_logs.append(f"{more:,} bytes of {name}")
    if unchanged:
        print(f"{directory}: {describe_unchanged(unchanged)}")
    if open_logs:
        print(f"{directory}: not summed yet: {', '.join(open_logs)}, written since the last checkpoint")
    names = (str(path.relative_to(directory)) for path in list_logs(directory))
    if unsummed := [name for name in names if name not in marks]:
        why = "begun since the last checkpoint, or by an earlier gptjax"
        print(f"{directory}: without sums: {', '.join(unsummed)} ({why})")


def warn_of_changed_logs(directory: Path) -> None:
    """Print a warning for each log that is not as it was when a checkpoint was saved or the run ended, also a cut one.

    A run that goes on sums it anew, so `verify` could not tell later. One line names the logs that are gone since the
    newest of these moments. Newer checkpoints that are gone since the end of the run are named, too.
    """
    newest = max(list_steps(directory / CHECKPOINTS), default=-1)
    for step, line in describe_lost_steps(directory).items():
        if step > newest:
            print_once(f"warning: {line}. The run goes on without it")
    moments = _read_moments(directory)
    missing = [name for name in (moments[-1].sums if moments else ()) if not (directory / name).is_file()]
    for name, marks in _collect_marks(moments).items():
        path = directory / name
        if not path.is_file():
            continue
        if not (is_same := _compare_marks(path, marks))[-1]:
            print_once(f"warning: {_describe_change(path, marks, is_same)}. The run goes on, and sums it anew")
    if missing:
        kind = "note" if _NEEDED.isdisjoint(missing) else "warning"
        verb = "is" if len(missing) == 1 else "are"
        names = ", ".join(missing)
        print_once(f"{kind}: {names} of {directory} {verb} missing, and there when {moments[-1].when}. The run goes on")


def _read_moments(directory: Path) -> list[_Moment]:
    """The sums of logs at each checkpoint and at the end of the run, in this order, without moments that have none."""
    checkpoints = directory / CHECKPOINTS
    places = [(f"step {step} was saved", checkpoints / str(step)) for step in list_steps(checkpoints)]
    moments = (_Moment(when, read_log_sums(place)) for when, place in (*places, (_END, directory)))
    return [moment for moment in moments if moment.sums]


def _collect_marks(moments: Iterable[_Moment]) -> dict[str, list[_Mark]]:
    """What each log held at these moments, in their order."""
    marks: dict[str, list[_Mark]] = {}
    for moment in moments:
        for name, found in moment.sums.items():
            marks.setdefault(name, []).append(_Mark(moment.when, found))
    return marks


def _compare_marks(path: Path, marks: Sequence[_Mark]) -> list[bool]:
    """Whether a log begins with what it held at each moment."""
    found = sum_prefixes(path, [mark.found.bytes for mark in marks])
    return [found[mark.found.bytes] == mark.found for mark in marks]


def _describe_new_start(marks: Sequence[_Mark], is_same: Sequence[bool]) -> str:
    """In words, how a log differs from its earlier sums that is as its last one says."""
    last = max(index for index, same in enumerate(is_same) if not same)
    return (
        f"was begun anew, or repaired, after {marks[last].when} and before {marks[last + 1].when}; since then it is "
        "unchanged"
    )


def _describe_change(path: Path, marks: Sequence[_Mark], is_same: Sequence[bool]) -> str:
    """In words, how a log differs that is not as its last sum says: what is cut, and where it has changed."""
    size, last = path.stat().st_size, marks[-1]
    fitting = [(mark, same) for mark, same in zip(marks, is_same, strict=True) if mark.found.bytes <= size]
    changed = ""
    if fitting and not fitting[-1][1]:
        changed = f"has changed since it was written: {_describe_place(*zip(*fitting, strict=True))}"
    if size >= last.found.bytes:
        return f"{path} {changed}"
    cut = f"{path} has {size:,} bytes; {last.found.bytes:,} were written when {last.when}"
    return f"{cut}. What is left {changed}" if changed else cut


def _describe_place(marks: Sequence[_Mark], is_same: Sequence[bool]) -> str:
    """In words, where a log has changed that is as long as at the last of these moments."""
    first = next((index for index in range(len(marks) - 1, 0, -1) if _begins_anew(marks, index)), 0)
    index = max((index + 1 for index, same in enumerate(is_same) if same), default=first)
    index = max(index, first)
    before, start = (marks[index - 1].when, marks[index - 1].found.bytes) if index > first else ("it began", 0)
    return (
        f"between its bytes {start:,} and {marks[index].found.bytes:,}, of the time from when {before} until "
        f"{marks[index].when}"
    )


def _begins_anew(marks: Sequence[_Mark], index: int) -> bool:
    """Whether a log had fewer bytes than at the moment before."""
    return marks[index].found.bytes < marks[index - 1].found.bytes
