"""What becomes of the directories of a run's checkpoints: deleted, passed over because of damage, or set aside."""

import re
import shutil
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
    kept = {*steps[-keep:], *([find_best_step(directory)] if keep_best else [])}
    if keep_every is not None:
        kept |= {step for step in steps if step % keep_every == 0}
    for step in set(steps) - kept:
        renamed = directory / f"{step}{_DELETED}"
        (directory / str(step)).rename(renamed)
        sync_path(directory)
        shutil.rmtree(renamed)


def clear_unfinished(directory: Path) -> None:
    """Delete the remains of killed saves and deletions; rename an incomplete step, such as an unfinished copy.

    Checkpoints that a killed process was setting aside are set aside.
    """
    for marker in _list_begun(directory):
        step, why, _ = marker.name.split(".")
        set_aside_after(directory, int(step), why=why)
    for path in directory.iterdir():
        if path.is_dir() and (_ORBAX_TEMPORARY in path.name or path.name.endswith((_DELETED, UNFINISHED))):
            shutil.rmtree(path)
        elif path.name.isdecimal() and (problem := describe_incomplete(path)):
            print_once(f"warning: {problem}. This checkpoint is passed over and kept as {path.name}.incomplete.")
            _set_aside(path, "incomplete")


def choose_step(directory: Path) -> int | None:
    """The newest undamaged step; None without any, `ALL_DAMAGED` if none is left. Damaged ones are renamed."""
    existing = list_steps(directory)
    for step in reversed(existing):
        if not (damage := find_damage_once(directory / str(step))):
            return step
        for line in damage:
            print_once(f"warning: {line}. Checkpoint {step} is passed over and kept as {step}.damaged.")
        _set_aside(directory / str(step), "damaged")
    return ALL_DAMAGED if list_passed_over(directory) else None


def roll_back_to(directory: Path, step: int) -> None:
    """Set aside what comes after a step, and leave the mark `STEP.after_STEP`, so that it happens once.

    Raises a UserError if there is no such checkpoint, or if it is damaged. Nothing has moved then.
    """
    if aside := _list_gone_back(directory, step):
        print_once(
            f"note: this run has gone back to step {step} before ({', '.join(aside)}); it goes on. To go back again, "
            "remove these"
        )
        return
    check_roll_back(directory, step)
    set_aside_after(directory, step, why=f"after_{step}")


def check_roll_back(directory: Path, step: int) -> None:
    """Raise a UserError if there is no such checkpoint, or if it is damaged, unless the run has gone back to it."""
    if _list_gone_back(directory, step):
        return
    if step not in (existing := list_steps(directory)):
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


def _list_begun(directory: Path) -> list[Path]:
    """The files that are there while checkpoints are being set aside; other people's files are left alone."""
    return [path for path in directory.glob(f"*{_BEGUN}") if re.fullmatch(r"[0-9]+\.\w+\.\w+", path.name)]


def _set_aside(path: Path, why: str) -> None:
    renamed = path.with_name(f"{path.name}.{why}")
    shutil.rmtree(renamed, ignore_errors=True)
    path.rename(renamed)
    sync_path(path.parent)
