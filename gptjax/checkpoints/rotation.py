"""What becomes of the directories of a run's checkpoints: deleted, passed over because of damage, or set aside."""

import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gptjax.checkpoints.checkpoint_format import find_best_step
from gptjax.checkpoints.integrity import (
    UNFINISHED,
    complete_steps,
    describe_incomplete,
    find_damage_once,
    list_passed_over,
    list_steps,
    suggest_other,
)
from gptjax.core.errors import UserError
from gptjax.core.files import sync_path
from gptjax.process.console import print_once

ALL_DAMAGED = -2
_ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"
_DELETED = ".deleted"
_BEGUN = ".begun"
"""Ends the name of an empty file that is there while checkpoints are being set aside: `STEP.WHY.begun`."""


def prune(directory: Path, *, keep: int, keep_best: bool, keep_every: int | None) -> None:
    """Delete all checkpoints but the newest `keep`, the best, and those of steps that `keep_every` divides.

    Each is renamed first: a deletion in place that is killed would leave a directory that looks complete.
    """
    steps = complete_steps(directory)
    best = find_best_step(directory) if keep_best else None
    for step in set(steps) - list_kept(steps, best=best, keep=keep, keep_every=keep_every):
        renamed = directory / f"{step}{_DELETED}"
        (directory / str(step)).rename(renamed)
        sync_path(directory)
        shutil.rmtree(renamed)


def list_kept(steps: Iterable[int], *, best: int | None, keep: int, keep_every: int | None) -> set[int]:
    """Those of these steps whose checkpoints stay: the newest `keep`, the best, and all that `keep_every` divides."""
    existing = set(steps)
    for_good = {step for step in existing if step == best or (keep_every is not None and step % keep_every == 0)}
    return for_good.union(sorted(existing)[-keep:])


def clear_unfinished(directory: Path, *, reported: Collection[int] = ()) -> None:
    """Delete the remains of killed saves and deletions; rename an incomplete step, such as an unfinished copy.

    Checkpoints that a killed process was setting aside are set aside. Steps that are `reported` are left alone.
    """
    for marker in _list_begun(directory):
        step, why, _ = marker.name.split(".")
        set_aside_after(directory, int(step), why=why)
    for path in list_remains(directory):
        shutil.rmtree(path)
    for path in directory.iterdir():
        if path.name.isdecimal() and int(path.name) not in reported and (problem := describe_incomplete(path)):
            print_once(f"warning: {problem}. This checkpoint is passed over and kept as {path.name}.incomplete.")
            _set_aside(path, "incomplete")


def list_remains(directory: Path) -> list[Path]:
    """The directories of saves and deletions that did not come to their end, as long as none is under way."""
    marks = (_DELETED, UNFINISHED)
    found = [path for path in directory.iterdir() if _ORBAX_TEMPORARY in path.name or path.name.endswith(marks)]
    return [path for path in found if path.is_dir()]


@dataclass(frozen=True)
class Choice:
    """The checkpoint from which a run goes on, and what becomes of those after it once training begins."""

    step: int | None = None
    """None without any; `ALL_DAMAGED` if none is left."""
    passed_over: dict[int, str] = field(default_factory=dict)
    """Why later ones are: `incomplete` or `damaged`."""
    goes_back: bool = False
    """A person has asked for the step."""


def choose_step(directory: Path, back_to: int | None = None) -> Choice:
    """The newest undamaged step, or `back_to` unless the run has gone back to it before. Moves nothing.

    Raises a UserError if there is no checkpoint `back_to`, or if it is damaged.
    """
    if back_to is not None:
        check_roll_back(directory, back_to)
        if not (aside := _list_gone_back(directory, back_to)):
            return Choice(back_to, goes_back=True)
        print_once(
            f"note: this run has gone back to step {back_to} before ({', '.join(aside)}); it goes on. To go back "
            "again, remove these"
        )
    passed_over: dict[int, str] = {}
    for step in reversed(_list_remaining(directory)):
        path = directory / str(step)
        problem = describe_incomplete(path)
        if not (damage := [problem] if problem else find_damage_once(path)):
            return Choice(step, passed_over)
        why = passed_over[step] = "incomplete" if problem else "damaged"
        for line in damage:
            print_once(f"warning: {line}. Checkpoint {step} is passed over; training keeps it as {step}.{why}.")
    return Choice(ALL_DAMAGED if passed_over or list_passed_over(directory) else None, passed_over)


def make_way(directory: Path, choice: Choice) -> None:
    """Set aside what comes after the chosen step.

    A step to go back to gets the mark `STEP.after_STEP`, so that it happens once.
    """
    for step, why in choice.passed_over.items():
        _set_aside(directory / str(step), why)
    if choice.goes_back and choice.step is not None:
        set_aside_after(directory, choice.step, why=f"after_{choice.step}")


def check_roll_back(directory: Path, step: int) -> None:
    """Raise a UserError if there is no such checkpoint, or if it is damaged, unless the run has gone back to it."""
    if _list_gone_back(directory, step):
        return
    if step not in (existing := _list_remaining(directory)):
        listed = ", ".join(map(str, existing)) or "none"
        raise UserError(f"--resume={step}: {directory} has no checkpoint of this step. There are: {listed}.")
    if damage := find_damage_once(directory / str(step)):
        raise UserError(f"--resume={step}: {damage[0]}. {suggest_other(directory, step, flag='resume')}")


def _list_gone_back(directory: Path, step: int) -> list[str]:
    """The marks of a run that has gone back to a step."""
    return sorted(path.name for path in directory.glob(f"*.after_{step}"))


def set_aside_after(directory: Path, step: int, *, why: str) -> int:
    """Keep all later checkpoints as `STEP.WHY`. Returns the newest that is left; 0 if there is none.

    After a kill, `clear_unfinished` does the rest. An empty file of such a name stays for the step itself where a
    person has asked for it.
    """
    existing = list_steps(directory)
    marker = directory / f"{step}.{why}{_BEGUN}"
    marker.touch()
    sync_path(directory)
    for later in reversed(existing):
        if later > step:
            _set_aside(directory / str(later), why)
    if why == f"after_{step}":
        marker.rename(directory / f"{step}.{why}")
    else:
        marker.unlink()
    sync_path(directory)
    return max((earlier for earlier in existing if earlier <= step), default=0)


def list_set_aside(directory: Path) -> list[Path]:
    """The checkpoints after a step to which a run went back. Those that were damaged then are not among them."""
    return [path for path in _list_after(directory) if path.is_dir()]


def list_marks(directory: Path) -> list[Path]:
    """The empty files by which a run knows that it has gone back."""
    return [path for path in _list_after(directory) if path.is_file()]


def _list_after(directory: Path) -> list[Path]:
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in found if re.fullmatch(r"\d+\.(after_\d+|rolled_back)", path.name))


def find_last_kept(directory: Path) -> int | None:
    """The step after which a killed process was setting checkpoints aside; None if there was none."""
    return min((int(path.name.split(".")[0]) for path in _list_begun(directory)), default=None)


def _list_remaining(directory: Path) -> list[int]:
    """The steps, ascending, without those that a killed process was setting aside."""
    last = find_last_kept(directory)
    return [step for step in list_steps(directory) if last is None or step <= last]


def _list_begun(directory: Path) -> list[Path]:
    """The files that are there while checkpoints are being set aside; other people's files are left alone."""
    return [path for path in directory.glob(f"*{_BEGUN}") if re.fullmatch(r"[0-9]+\.\w+\.\w+", path.name)]


def _set_aside(path: Path, why: str) -> None:
    renamed = path.with_name(f"{path.name}.{why}")
    shutil.rmtree(renamed, ignore_errors=True)
    path.rename(renamed)
    sync_path(path.parent)
