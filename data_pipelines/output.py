"""The directory that was asked for: either whole or not there, and made only once.

The one idea: everything is written into a hidden neighbour (`.NAME.partial`), flushed to the disk, and moved into
place by one rename at the end; an older one steps aside (`.NAME.old`) and is removed last. Whoever holds the lock on
`.NAME.lock` may write; a killed process loses its lock with its life, so what the next one finds in `.NAME.partial` is
a leftover: moved into place where it is complete, which its manifest says; gone on with where it is known how far it
was whole (`resuming.py`); else removed. The empty lock file stays.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.disk import is_full, sync
from data_pipelines.progress import say_notes
from gptjax.core.errors import UserError
from gptjax.data.checksums import check_unchanged
from gptjax.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from gptjax.data.splits import open_split
from gptjax.tokenization.tokenizer_json import FILE_NAME

PROGRESS_NAME = "progress.json"
"""Says how far an unfinished directory is whole; gone from a complete one."""


def made_already(output: Path, request: dict[str, Any], *, overwrite: bool) -> Manifest | None:
    """The manifest of `output` if `request` made it; None if it may be (re)made; else a `UserError`.

    `request` is JSON: what decides the result, each part under the name by which an error speaks of it. What a kill
    prevented from being moved is moved first: a complete result to its place, or the older one back.
    """
    finished = _finished(output, request, overwrite=overwrite)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not all((output / name).is_file() for name in (MANIFEST_NAME, FILE_NAME)):
        raise UserError(f"{output}: exists and is not prepared data; it will not be replaced. Choose another --output.")
    if overwrite and not finished:
        return None
    manifest = read_manifest(output)
    assert manifest is not None
    if changed := differing(request, manifest.request):
        raise UserError(
            f"{output}: was prepared by another request ({changed} differ). "
            "Choose another --output, or replace it with --overwrite."
        )
    for split in manifest.splits:
        open_split(output, split)
    check_unchanged(output)
    return manifest


def say_made(output: Path, manifest: Manifest) -> None:
    """What is to be known where nothing is left to do: also what was wrong when it was made."""
    print(f"{output}: already prepared by the same request")
    say_notes(manifest.notes)


def _finished(output: Path, request: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether a complete result of this request lay there and has been moved into place.

    Another request's is moved, too, where nothing lies; never over what may not be replaced.
    """
    partial, old = _neighbours(output)
    try:
        found = read_manifest(partial)
    except UserError:  # of another version: a leftover like any other
        found = None
    there = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if found is not None and (not there or (overwrite and found.request == request)):
        _move(partial, output, old)
        return found.request == request
    if old.exists() and not there:
        os.rename(old, output)
    return False


def differing(request: dict[str, Any], other: dict[str, Any]) -> str:
    """The parts that are not the same in both, with commas between."""
    return ", ".join(sorted(key for key in request | other if request.get(key) != other.get(key)))


def check_same(before: dict[str, Any], after: dict[str, Any], source: str) -> None:
    """Raise unless the request, described again when all has been read, is what it was before."""
    if before != after:
        raise UserError(f"source {source}: was changed while it was read. Prepare it again.")


@contextlib.contextmanager
def replaced(output: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Give a directory to fill, at last with a manifest; it becomes `output` (in place of an older one) unless the body
    raises.

    The directory is empty, and removed when the body raises. If `resumable`, it is left as it is found and after an
    error as long as it holds `PROGRESS_NAME`; the body sees to both. A full disk is a `UserError`.
    """
    if output.is_mount():
        raise UserError(
            f"{output}: is a mount point, which cannot be replaced as a whole. Name a directory inside of it."
        )
    partial, old = _neighbours(output)

    def forget() -> None:
        if not (resumable and (partial / PROGRESS_NAME).exists()):
            shutil.rmtree(partial, ignore_errors=True)

    shutil.rmtree(old, ignore_errors=True)
    forget()
    partial.mkdir(exist_ok=True)
    try:
        yield partial
    except BaseException as error:
        forget()
        if isinstance(error, OSError) and is_full(error):
            then = "; it goes on with what is written" if partial.exists() else ""
            what = f"{output}: could not be written: {error.strerror}"
            raise UserError(f"{what}. Make room and give the same command again{then}.") from None
        raise
    _move(partial, output, old)


def _neighbours(output: Path) -> tuple[Path, Path]:
    partial, old = (output.with_name(f".{output.name}.{what}") for what in ("partial", "old"))
    return partial, old


def _move(partial: Path, output: Path, old: Path) -> None:
    """At every moment one of the two results is whole under a name that the next run knows."""
    (partial / PROGRESS_NAME).unlink(missing_ok=True)
    sync(partial)
    if output.exists():
        os.rename(output, old)
    os.rename(partial, output)
    sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)
