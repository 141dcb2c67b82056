"""Whether the file system of a run can hold its checkpoints."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from gptjax.checkpoints.integrity import list_steps
from gptjax.checkpoints.rotation import list_remains
from gptjax.core.files import format_bytes
from gptjax.process.console import print_once

_BESIDES = 2**18
"""The bytes of a checkpoint besides its arrays: names, indices, sums, unused parts of blocks."""
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def count_bytes(state: Any) -> int:
    """The bytes of a state's arrays, which are nearly all of a checkpoint."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def find_free_bytes(directory: Path) -> int | None:
    """The bytes that this user may still write; None where the file system does not say. A quota may allow fewer."""
    with suppress(OSError):
        disk = os.statvfs(directory)
        # ext4 keeps a part for root.
        return disk.f_frsize * (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) if disk.f_blocks else None
    return None


def check_space(directory: Path, count: int, *, nbytes: int, savings: Sequence[str] = ()) -> None:
    """Warn if so many more checkpoints may not find room. With a count of 0 nothing is to be saved.

    `nbytes` are those of the arrays of one. `savings` are the options with which fewer are kept. No start is refused:
    some file systems compress, or say that nothing is free.
    """
    free = find_free_bytes(directory)
    if free is None or not count:
        return
    free += sum(_count_file_bytes(path) for path in list_remains(directory))
    size = nbytes + _BESIDES
    if count * size <= free:
        return
    many = "No save may find room."
    if size <= free:
        many = f"Up to {count} more will be there at a time ({format_bytes(count * size)}), with the one in writing."
    elsewhere = "move the run directory to another disk" if list_steps(directory) else "choose another --output-dir"
    fewer = f" Fewer are kept by {', '.join(savings)}." if savings and size <= free else ""
    print_once(
        f"warning: {directory} has {format_bytes(free)} free, and a checkpoint of this run takes {format_bytes(size)}. "
        f"{many} While a save finds no room, training goes on without it. Free space, or {elsewhere}.{fewer}"
    )


def describe_lack(directory: Path, message: str, *, nbytes: int) -> str:
    """What a save had needed that failed with this message, and what there is; empty for other failures."""
    if not any(text in message for text in _FULL):  # of an error of another process, there is no number
        return ""
    free, size = find_free_bytes(directory), nbytes + _BESIDES
    there = "" if free is None else f", and {format_bytes(free)} are free on its file system"
    # What the save wrote is deleted by now, so the inodes that it used up are free again.
    other = ", so its inodes (df -i) or a quota may be used up" if free is not None and free >= size else ""
    return f" A checkpoint takes {format_bytes(size)}{there}{other}."


def _count_file_bytes(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
