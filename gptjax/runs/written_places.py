"""Directories that commands of gptjax have written, at a path and below it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gptjax.checkpoints.integrity import list_steps
from gptjax.core.directory_identity import LOCK
from gptjax.core.file_sums import SUM_SUFFIX, SUMS_FILE
from gptjax.data.manifest import MANIFEST_NAME
from gptjax.runs.run_dir import CHECKPOINTS, CONFIG_FILE, METRICS, REFERENCE
from gptjax.tokenization.tokenizer import TOKENIZER_FILES

RUNS = "runs"
_MANIFEST_START = 2**20
"""Bytes of a manifest.json that are read to tell what it is."""
_OF_A_RUN = (CHECKPOINTS, REFERENCE, "tensorboard", "wandb")
"""Directories that belong to a run, and hold nothing else."""


class WrittenPlace(NamedTuple):
    """A directory, and what it holds, in the plural."""

    path: Path
    kind: str


def find_places(root: Path, *, on_error: Callable[[OSError], object]) -> Iterator[WrittenPlace]:
    """Yield the directories that `verify` compares, from the root downwards; hidden ones are left out.

    `on_error` is told of directories that cannot be listed or recognised. Links are followed, each to a directory once,
    unless they lead to what is found without them (`leads_into`).
    """
    seen = set[tuple[int, int]]()

    def is_new(path: Path) -> bool:
        status = path.stat()
        is_known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        return not is_known

    is_new(root)

    for folder, names, _ in os.walk(root, onerror=on_error, followlinks=True):
        directory = Path(folder)
        try:
            kind = name_kind(directory)
        except OSError as error:
            on_error(error)
            continue
        if kind is not None:
            yield WrittenPlace(directory, kind)
        skipped = _OF_A_RUN if kind == RUNS else ()
        wanted = [directory / name for name in sorted(names) if not name.startswith(".") and name not in skipped]
        names[:] = [path.name for path in wanted if not leads_into(root, path) and is_new(path)]


def leads_into(root: Path, path: Path) -> bool:
    """Whether a path is a link to the directory `root`, to one inside it, or to one above it."""
    if not path.is_symlink():
        return False
    target, top = path.resolve(), root.resolve()
    return target.is_relative_to(top) or top.is_relative_to(target)


def name_kind(directory: Path) -> str | None:
    """What a command has written there, in the plural; None for other directories."""
    if _has_manifest(directory):
        return "data sets"
    if _is_run(directory):
        return RUNS
    if (directory / SUMS_FILE).is_file():
        return "checkpoints" if directory.name.isdecimal() else _name_files(directory)
    return "folders with sums" if any(directory.glob(f"*{SUM_SUFFIX}")) else None


def _name_files(directory: Path) -> str:
    if any(directory.glob("*.safetensors")):
        return "exports"
    return "tokenizers" if any((directory / name).is_file() for name in TOKENIZER_FILES) else "other sets of files"


def _has_manifest(directory: Path) -> bool:
    """Other programs have files of this name, too."""
    file = directory / MANIFEST_NAME
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return b'"splits"' in opened.read(_MANIFEST_START) or any(directory.glob("*.bin"))


def _is_run(directory: Path) -> bool:
    """A directory of program code may have a folder of this name."""
    checkpoints = directory / CHECKPOINTS
    has_file = any((directory / name).is_file() for name in (CONFIG_FILE, SUMS_FILE, METRICS, LOCK))
    return checkpoints.is_dir() and (has_file or bool(list_steps(checkpoints)))
