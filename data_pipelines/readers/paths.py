"""Local files by a spec, the same for text and records: one file, those of a kind in a directory, or a pattern."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError


def find_files(spec: str, is_known: Callable[[str], object], *, known: str, otherwise: str = "") -> tuple[Path, ...]:
    """The files in order of their names; in a directory, at any depth, those whose name `is_known` and not hidden.

    A file that is named, by itself or by a pattern, may have any name. `known` and `otherwise` tell in an error what is
    looked for in directories, and what else the spec might be.
    """
    if not spec:
        raise UserError(f"source '': names nothing.{otherwise} The directory where you are is `.`.")
    spec = os.path.expanduser(spec)
    path = Path(spec)
    if path.is_dir():
        found = [p for p in files_below(path) if is_known(p.name)]
        if not found:
            raise UserError(f"source {spec}: the directory holds no {known} files.")
    else:
        # A pattern may come to one file by several ways, through links or two of its own `**`.
        ways = sorted(glob.glob(spec, recursive=True), key=lambda way: (len(way), way), reverse=True)
        files = {os.path.realpath(way): Path(way) for way in ways if os.path.isfile(way) or _leads_nowhere(Path(way))}
        found = [path] if path.exists() else list(files.values())
        if not found:
            raise UserError(f"source {spec!r}: no such file, directory or pattern.{otherwise}")
    if not path.is_dir() and path.exists() and not path.is_file():
        raise UserError(f"source {spec!r}: is a pipe or a device, which cannot be read twice. Save it as a file.")
    if missing := list(filter(_leads_nowhere, found)):
        raise UserError(f"{missing[0]}: is a link to nothing. Bring what it leads to, or remove it.")
    return tuple(sorted(found))


def files_below(directory: Path) -> Iterator[Path]:
    """All files at any depth, through links too (and links to nothing), but nothing hidden, and nothing twice."""
    seen = set[str]()
    for root, folders, names in os.walk(directory, followlinks=True):
        if (place := os.path.realpath(root)) in seen:  # by another name, or again and again by a link to above
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(root, name) for name in sorted(names) if not name.startswith(".")):
            if (path.is_file() or _leads_nowhere(path)) and (place := os.path.realpath(path)) not in seen:
                seen.add(place)
                yield path


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a link to what is not there."""
    return path.is_symlink() and not path.exists()


def files_identity(spec: str, paths: Iterable[Path]) -> dict[str, Any]:
    """What, in JSON, distinguishes these files from others or a later state of them, whatever path names them."""
    files = {os.path.abspath(path): path for path in paths}
    return {
        "source": os.path.abspath(os.path.expanduser(spec)),
        "files": len(files),
        "names_sizes_times": names_sizes_times(files),
    }


def names_sizes_times(files: dict[str, Path]) -> str:
    """A hash of names (given), sizes and times of change: cheap, and enough to notice a change."""
    listed = [[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
