"""The output directory: complete or absent, and prepared once per request.

Everything is written into a hidden sibling, `.NAME.partial`, and renamed at the end. A directory that is replaced is
renamed to `.NAME.old` first and deleted last. Callers hold the lock on the output (`runtime.locks`).
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.runtime.progress import print_notes
from gptjax.core.errors import UserError
from gptjax.data.checksums import check_unchanged
from gptjax.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from gptjax.data.splits import open_split
from gptjax.tokenization.tokenizer_json import FILE_NAME

PROGRESS_NAME = "progress.json"
"""Marks an unfinished directory that can be resumed; a complete one has none."""


def find_prepared(output: Path, request: dict[str, Any], *, overwrite: bool) -> Manifest | None:
    """Return the manifest of `output` if `request` made it, and print so; None if it is to be made.

    `request` is JSON: the parts that decide the result, under the names by which errors mention them. Raises
    `UserError` for a directory of another request unless `overwrite`, for damage, and for a directory without manifest.
    """
    old = _find_siblings(output)[1]
    if old.exists() and not _is_occupied(output):  # a kill between two renames
        os.rename(old, output)
    if not _is_occupied(output):
        return None
    if not all((output / name).is_file() for name in (MANIFEST_NAME, FILE_NAME)):
        raise UserError(f"{output}: exists and is not prepared data; it will not be replaced. Choose another --output.")
    if overwrite:
        return None
    manifest = read_manifest(output)
    assert manifest is not None
    if changed := compare_requests(request, manifest.request):
        raise UserError(
            f"{output}: was prepared by another request ({changed} differ). "
            "Choose another --output, or replace it with --overwrite."
        )
    for split in manifest.splits:
        open_split(output, split)
    check_unchanged(output)
    print(f"{output}: already prepared by the same request")
    print_notes(manifest.notes)
    return manifest


def compare_requests(request: dict[str, Any], other: dict[str, Any]) -> str:
    """The names of the parts that differ, separated by commas."""
    return ", ".join(sorted(key for key in request | other if request.get(key) != other.get(key)))


@contextlib.contextmanager
def replace_directory(output: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Yield a directory to fill, which then becomes `output`; an exception in the body leaves `output` as it was.

    The directory is empty and is deleted after an exception. If `resumable`, a directory that holds `PROGRESS_NAME` is
    kept after an exception and yielded as it is the next time.
    """
    if output.is_mount():
        raise UserError(f"{output}: is a mount point, which cannot be replaced. Name a directory inside it.")
    partial, old = _find_siblings(output)

    def discard() -> None:
        if not (resumable and (partial / PROGRESS_NAME).exists()):
            shutil.rmtree(partial, ignore_errors=True)

    shutil.rmtree(old, ignore_errors=True)
    discard()
    partial.mkdir(exist_ok=True)
    try:
        yield partial
    except BaseException:
        discard()
        raise
    sync(partial)
    if output.exists():
        os.rename(output, old)
    os.rename(partial, output)
    (output / PROGRESS_NAME).unlink(missing_ok=True)  # only now: until here a kill leaves a directory to resume
    sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _find_siblings(output: Path) -> tuple[Path, Path]:
    return output.with_name(f".{output.name}.partial"), output.with_name(f".{output.name}.old")


def _is_occupied(output: Path) -> bool:
    return output.exists() and not (output.is_dir() and not any(output.iterdir()))
