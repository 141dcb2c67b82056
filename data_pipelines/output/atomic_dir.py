"""The output directory: complete or absent, and prepared once per request, by one process at a time.

Everything is written into a hidden sibling, `.NAME.partial`, and renamed at the end.
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from gptjax.core.errors import DISK_FULL_ERRNOS, UserError
from gptjax.core.files import lock_file
from gptjax.data.checksums import check_unchanged
from gptjax.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from gptjax.tokenization.tokenizer import check_tokenizer_files
from gptjax.tokenization.tokenizer_json import FILE_NAME

PROGRESS_NAME = "progress.json"
"""Marks an unfinished directory that can be resumed; a complete one has none."""


@contextlib.contextmanager
def hold_lock(output: Path) -> Iterator[None]:
    """Hold the lock on `output`, a file `.NAME.lock` beside it; waits for the process that holds it now."""
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name(f".{output.name}.lock")
    while True:
        with path.open("w") as lock:
            try:
                lock_file(lock)
            except BlockingIOError:
                print(f"waiting for another process that is writing {output}", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_same(path, lock):  # the other process has removed it
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_same(path: Path, file: IO[str]) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


OF_FILES: dict[str, str] = dict.fromkeys(("files", "names_sizes_times"), "names, sizes or times of the source's files")
"""Parts of a request that a user does not name."""


def find_prepared(
    output: Path, request: dict[str, Any], *, overwrite: bool, former: Mapping[str, Any] = {}
) -> Manifest | None:
    """Return the manifest of `output` if `request` made it, and print so; None if it is to be made.

    `request` is JSON: the parts that decide the result, by name. `former` has values of parts that count as the same,
    such as an earlier default. Raises `UserError` for a directory of another request
    unless `overwrite`, for damage, and for a directory without manifest.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not all((output / name).is_file() for name in (MANIFEST_NAME, FILE_NAME)):
        raise UserError(f"{output}: exists and is not prepared data; it will not be replaced. Choose another --output.")
    if overwrite:
        return None
    manifest = read_manifest(output)
    assert manifest is not None
    made = manifest.request
    same = {key: request[key] for key, value in former.items() if made.get(key) == value}
    made = made | same
    differing = sorted(key for key in request | made if request.get(key) != made.get(key))
    if changed := ", ".join(dict.fromkeys(OF_FILES.get(key, key) for key in differing)):
        learned = re.fullmatch(r"bpe:\d+|chars", str(request.get("tokenizer")))
        keep = f" {shlex.quote(f'--tokenizer={output}')} keeps its ids, which runs on it need." if learned else ""
        raise UserError(
            f"{output}: was prepared by another request ({changed} differ). "
            f"Choose another --output, or replace it with --overwrite.{keep}"
        )
    check_unchanged(output)
    check_tokenizer_files(output)
    print(f"{output}: already prepared by the same request")
    return manifest


@contextlib.contextmanager
def replace_directory(output: Path) -> Iterator[Path]:
    """Yield a directory to fill, which then becomes `output`; an exception in the body leaves `output` as it was.

    After an exception or a kill, a directory that holds `PROGRESS_NAME` is yielded as it is the next time. Any other is
    deleted.
    """
    partial, old = (output.with_name(f".{output.name}.{kind}") for kind in ("partial", "old"))

    def discard() -> None:
        if not (partial / PROGRESS_NAME).exists():
            shutil.rmtree(partial, ignore_errors=True)

    discard()
    partial.mkdir(exist_ok=True)
    try:
        yield partial
    except BaseException as error:
        discard()
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            error.filename = error.filename or str(output)  # writing into an open file names none
        raise
    sync(partial)
    shutil.rmtree(old, ignore_errors=True)
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
