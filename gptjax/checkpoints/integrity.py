"""Whether a checkpoint on disk is what was written, and the order in which a new one reaches the disk.

A checkpoint is written as `STEP.unfinished`. `commit_checkpoint` syncs all of it, adds the sizes and sums of its files
as `checksums.json`, and only then gives it its name. A step is complete if it has its name and every file has its size.
Checkpoints of an earlier gptjax have no sums; they are complete if Orbax says so.
"""

import itertools
import json
import shlex
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError
from gptjax.core.file_sums import (
    SUMS_FILE,
    DamagedFileError,
    FileSum,
    find_damage,
    find_wrong_size,
    list_files,
    read_sums,
    sum_file,
    sum_files,
    write_sums,
)
from gptjax.core.files import shorten_path, sync_path, sync_tree

METADATA = "metadata"
UNFINISHED = ".unfinished"
"""Ends the name of a checkpoint that is being written."""
_COMMITTED = "commit_success.txt"
"""A file that Orbax adds to a step after everything else."""

_unchanged: dict[Path, tuple[int, int]] = {}
"""Times of change of files that this process has read and found as they were written."""


def measure_logs(logs: Iterable[Path]) -> dict[Path, int]:
    """The sizes of the files that are there."""
    found: dict[Path, int] = {}
    for path in logs:
        with suppress(FileNotFoundError):
            found[path] = path.stat().st_size
    return found


def sum_logs(logs: Mapping[Path, int], run: Path) -> dict[str, dict[str, list[Any]]]:
    """The field `records` of a `checksums.json`: sizes and sums of the first bytes of logs, by their path in the run.

    These bytes are on the disk afterwards.
    """
    found = {path: sum_file(path, size=size) for path, size in logs.items() if path.is_file()}
    for path in found:
        sync_path(path)
    for directory in {path.parent for path in found}:
        sync_path(directory)
    return {"records": {str(path.relative_to(run)): list(record) for path, record in found.items()}}


def read_log_sums(directory: Path) -> dict[str, FileSum]:
    """What `sum_logs` has added to a `checksums.json`; {} where that is missing or damaged."""
    try:
        found = read_sums(directory)
    except DamagedFileError:
        return {}
    return {name: FileSum(*values) for name, values in (found[1].get("records", {}) if found else {}).items()}


def commit_checkpoint(unfinished: Path, step_directory: Path, *, logs: Mapping[Path, int] | None = None) -> None:
    """Let a checkpoint `RUN/checkpoints/STEP` count that has been written beside this directory.

    `logs` are files of the run, with their sizes when the step was done. They reach the disk first, and their sums
    are kept too.
    """
    extra = sum_logs(logs or {}, step_directory.parents[1])
    with ThreadPoolExecutor(1) as pool:  # the disk writes while sums are computed
        synced = pool.submit(sync_tree, unfinished)
        sums = sum_files(unfinished, list_files(unfinished))
        synced.result()
    write_sums(unfinished, sums, extra=extra)
    unfinished.rename(step_directory)
    sync_path(step_directory.parent)


def list_steps(directory: Path) -> list[int]:
    """Return the steps that have a directory, ascending, whole or not."""
    if not Path(directory).is_dir():
        return []
    return sorted(int(path.name) for path in Path(directory).iterdir() if path.name.isdecimal() and path.is_dir())


def complete_steps(directory: Path, *, items: Collection[str] | None = None) -> list[int]:
    """Return the steps of which these items (by default all) are complete, ascending."""
    return [step for step in list_steps(directory) if is_complete(Path(directory) / str(step), items=items)]


def is_complete(path: Path, *, items: Collection[str] | None = None) -> bool:
    """Whether the directory of a step was written to the end and has all files of these items (by default of all)."""
    return describe_incomplete(path, items=items) is None


def describe_incomplete(path: Path, *, items: Collection[str] | None = None) -> str | None:
    """What a step lacks, in words; None if it is complete. Reads no arrays."""
    try:
        sums = _read_item_sums(path, items)
    except DamagedFileError as error:
        return str(error)
    if sums is not None:
        return find_wrong_size(path, sums)
    if not (path / _COMMITTED).is_file() or not (path / METADATA / METADATA).is_file():
        return f"{path} was not written to the end"
    return f"{path / SUMS_FILE} is missing" if has_sums_by_metadata(path) else None


def find_checkpoint_damage(path: Path, *, items: Collection[str] | None = None) -> list[str]:
    """A line for each file of a step that is missing or has changed; reads every byte of these items (by default all).

    A step that an earlier gptjax wrote, without sums, can only be incomplete.
    """
    try:
        sums = _read_item_sums(path, items)
    except DamagedFileError as error:
        return [str(error)]
    if sums is None:
        return [problem] if (problem := describe_incomplete(path)) else []
    return find_damage(path, sums)


def _read_item_sums(path: Path, items: Collection[str] | None) -> dict[str, FileSum] | None:
    if (found := read_sums(path)) is None:
        return None
    return {name: file_sum for name, file_sum in found[0].items() if items is None or name.split("/")[0] in items}


def has_sums_by_metadata(path: Path) -> bool:
    """Whether a step was written with sums, as its metadata says; True if that is unreadable."""
    try:
        return bool(json.loads((path / METADATA / METADATA).read_bytes()).get("checksums"))
    except (OSError, ValueError, AttributeError):
        return True


def check_step(directory: Path, step: int, *, items: Collection[str] | None = None) -> None:
    """Raise a UserError that names the first file of these items (by default of all) that has changed.

    What this process has read before and whose times have not changed is not read again.
    """
    path = Path(directory).absolute() / str(step)
    if problems := find_damage_once(path, items=items):
        raise UserError(f"{problems[0]}. {suggest_other(directory, step)}")


def find_damage_once(path: Path, *, items: Collection[str] | None = None) -> list[str]:
    """`find_checkpoint_damage`, remembered while sizes and times of the files stay as they are."""
    try:
        sums = _read_item_sums(path, items)
    except DamagedFileError as error:
        return [str(error)]
    if sums is None or find_wrong_size(path, sums):
        return find_checkpoint_damage(path, items=items)
    times = {path / name: _read_times(path / name) for name in sums}
    new = {name: file_sum for name, file_sum in sums.items() if _unchanged.get(path / name) != times[path / name]}
    if not (problems := find_damage(path, new)):
        _unchanged.update(times)
    return problems


def _read_times(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_ctime_ns


def list_passed_over(directory: Path) -> list[Path]:
    """The checkpoints that a run has kept as `STEP.incomplete` or `STEP.damaged`."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in found if path.name.endswith((".incomplete", ".damaged")))


def suggest_anew(directory: Path) -> str:
    """What to do about a run without a whole checkpoint. It does not begin anew where damaged ones are left."""
    aside = [*map(str, list_steps(directory)), *(path.name for path in list_passed_over(Path(directory)))]
    if not aside:
        return "Nothing was saved yet: its command goes on, and saves."
    run = Path(directory).absolute().parent
    names = (f"{run.name}.damaged{number or ''}" for number in itertools.count())
    free = next(path for name in names if not (path := run.with_name(name)).exists())
    command = shlex.join(["mv", str(shorten_path(run)), str(shorten_path(free))])
    return (
        f"Passed over: {', '.join(aside)}. Put an undamaged copy there. Or move the run away, after which its command "
        f"makes it anew: {command}"
    )


def suggest_other(directory: Path, step: int, *, flag: str = "step") -> str:
    """What to use instead of a step that cannot be read, and the flag for it."""
    others = [other for other in complete_steps(directory) if other != step]
    if not others:
        return "There is no other complete checkpoint."
    earlier = [other for other in others if other < step]
    use = max(earlier) if earlier else max(others)
    return f"Use step {use}, which is complete (--{flag}={use})."
