"""The cache directory, atomic writing of files and directories, locks and hashes."""

import contextlib
import difflib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gptjax.core.errors import UserError, quote
from gptjax.process.early_exit import raise_terminated

AnyPath = str | os.PathLike[str]
LARGEST_CONFIG, LARGEST_TOKENIZER = 2**24, 2**28
"""Bytes of a file of settings, and of one with a vocabulary, that are read into memory."""


_HUB_ADDRESS = re.compile(
    r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?"
    r"(?!(?:api|blog|buckets|collections|datasets|docs|models|papers|posts|spaces)(?:[/?#]|$))([\w.-]+(?:/[\w.-]+)?)"
)
"""An address of a model or a data set of the hub, and its name; other pages of the hub have none."""


def expand_path(path: AnyPath) -> Path:
    """A path as a person gave it, with `~` and `~USER` replaced. A shell leaves them behind the `=` of `--output=~/x`.

    Every path of a command line or a config is read by this function. Raises a UserError for an empty text, of which
    `Path` makes the working directory, for an address, and for a user who does not exist here.
    """
    if os.fspath(path) == "":
        raise UserError("a path is empty. The variable that holds it may not be set; `.` is this directory.")
    refuse_address(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{quote(str(path))} begins with the home directory of a user who does not exist.") from None


def refuse_address(path: AnyPath) -> None:
    """Raise a UserError for an address such as `gs://bucket/runs`, of which `Path` makes a local directory `gs:`."""
    name = os.fspath(path)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
        return
    advice = "Mount the bucket, with gcsfuse for example, and give the path of the mount; or copy the files here."
    if found := _HUB_ADDRESS.match(name):
        advice = f"The hub's files have the name hf:{found[1]} where a command takes them."
    elif name.startswith("http"):
        whole = quote(name, limit=len(name))  # a signature at the end is long
        advice = f"Fetch it first: curl -LO {shlex.quote(whole)}"
    raise UserError(f"{quote(name)} is an address; wanted a local path. {advice}")


def shorten_path(path: Path) -> str:
    """A path for commands that are printed: seen from the working directory, unless that was deleted."""
    try:
        return os.path.relpath(path)
    except FileNotFoundError:
        return str(path)


def cache_directory() -> Path:
    """Where things made or fetched once are kept: `$GPTJAX_CACHE`, else `~/.cache/gptjax`.

    Raises a UserError if there is neither, or if the variable is an address.
    """
    if directory := os.environ.get("GPTJAX_CACHE"):
        return expand_path(directory)
    try:
        return Path.home() / ".cache" / "gptjax"
    except RuntimeError:  # HOME is unset, as in some containers, and the user has no entry in passwd
        raise UserError(
            "This user has no home directory for the cache. Set GPTJAX_CACHE to a directory that can be written."
        ) from None


def read_text(path: Path, *, limit: int = LARGEST_CONFIG) -> str:
    """The text (UTF-8) of a file that a stranger may have made.

    Raises:
        OSError: there is no such file.
        ValueError: it is no regular file, which may have no end, has more than `limit` bytes, or is not UTF-8.
    """
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"it has {size:,} bytes, more than the {limit:,} that are read")
    if not path.is_file():
        raise ValueError("it is a directory, a pipe or a device")
    return path.read_text(encoding="utf-8")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace or create a file; text is written as UTF-8. The directory must exist.

    Readers see the old file or the new one, never a part of it, even after a power cut. An `OSError` names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_path(path.parent)
    except OSError as error:
        if error.errno is not None:  # writing into an open file names none
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_output(path: Path, content: str) -> None:
    """Write a file that a person named. An old one stays if the new one cannot be written, as on a full disk.

    What is behind a link is replaced, not the link. Devices and pipes, and a file in a directory that may not be
    written, are written to directly.
    """
    is_special = path.is_relative_to("/dev") or (path.exists() and not path.is_file())
    target = path.resolve()
    if is_special or not os.access(target.parent, os.W_OK):
        path.write_text(content, encoding="utf-8")
    else:
        write_atomically(target, content)


@contextlib.contextmanager
def replaced_files(directory: Path, *, last: str) -> Iterator[Path]:
    """A temporary directory for files that get their places in `directory` if the block succeeds.

    If it fails, as on a full disk, the old ones stay as they are. The file `last` tells of the others: the old one goes
    before, and the new one comes after them. So a kill in between leaves none that is wrong. The block syncs its files.

    Raises:
        OSError: names the place in `directory`.
    """
    _remove_abandoned(directory / "new")
    temporary = directory / f".new.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        (directory / last).unlink(missing_ok=True)
        sync_path(directory)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            if path.name == last:
                sync_path(directory)
            path.replace(directory / path.name)
        sync_path(directory)
    except OSError as error:
        if error.filename is not None and (path := Path(os.fspath(error.filename))).is_relative_to(temporary):
            error.filename = str(directory / path.relative_to(temporary))
        raise
    finally:
        _remove(temporary)


def sync_path(path: Path) -> None:
    """Wait until a file or the entries of a directory are on the disk. A directory that cannot be synced is left."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a directory.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Wait until all files and directories in a directory, and its own entries, are on the disk."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync_path(Path(folder) / name)
        sync_path(Path(folder))


def make_directories(path: Path) -> list[Path]:
    """Make a directory and those above it, each on the disk in the one above. Returns the new ones, lowest first."""
    path = path.absolute()
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for directory in reversed(missing):
        sync_path(directory.parent)
    return missing


def file_sha256(path: AnyPath) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def format_bytes(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def hash_json(content: object) -> str:
    """SHA-256 of a value as JSON, in hexadecimal. The order of keys counts."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextlib.contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """A temporary directory that becomes `output` if the block succeeds, and is removed otherwise, also at a SIGTERM.

    Raises:
        UserError: `output` is taken, or the block raised an `OSError`.
    """
    check_free(output)
    with _rename_at_end(output) as temporary:
        make_directories(temporary)
        yield temporary


@contextlib.contextmanager
def atomic_file(output: Path) -> Iterator[Path]:
    """The path of a temporary file that becomes `output` if the block succeeds, and is removed otherwise.

    So it is at a SIGTERM. The block may write the file by a library. What has the path `output` is replaced.

    Raises:
        UserError: the block raised an `OSError`.
    """
    with _rename_at_end(output) as temporary:
        make_directories(temporary.parent)
        yield temporary


@contextlib.contextmanager
def _rename_at_end(output: Path) -> Iterator[Path]:
    """A path beside `output` for a file or a directory, which gets its name once all of it is on the disk."""
    output = output.absolute()
    _remove_abandoned(output)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with raise_terminated():
            yield temporary
            sync_tree(temporary) if temporary.is_dir() else sync_path(temporary)
            temporary.rename(output)  # replaces a file, or an empty directory
        sync_path(output.parent)
    except OSError as error:
        if error.filename is not None and output.parent not in Path(os.fspath(error.filename)).absolute().parents:
            raise UserError(f"{quote(os.fspath(error.filename))} cannot be read: {error.strerror}.") from error
        # NumPy says how much of an array it has written ("9 requested and 4 written"), and not why no more.
        doubt = " (is the disk full?)" if re.fullmatch(r"\d+ requested and \d+ written", str(error)) else ""
        reason = error.strerror or f"{error}{doubt}"
        raise UserError(
            f"--output={output} cannot be written: {reason}. Choose another path, or free space."
        ) from error
    finally:
        _remove(temporary)


def _remove_abandoned(output: Path) -> None:
    """Remove what killed processes left of `output`."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.*.tmp"):
        number = path.name.removesuffix(".tmp").rpartition(".")[2]
        if number.isdecimal() and not _is_alive(int(number)):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or a directory as far as that is possible.

    Threads of a library that has failed may still write into a directory, so it is tried again.
    """
    for seconds in (0.0, 0.1, 0.5, 2.0):
        time.sleep(seconds)
        if not path.is_dir():
            break
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else
        return True
    return True


def suggest_neighbour(path: Path) -> str:
    """A question that names a path that exists, with almost the name of one part of a missing one; else empty."""
    missing = next((part for part in (path, *path.parents) if part.parent.is_dir()), path)
    names = list[str]()
    with contextlib.suppress(OSError):
        names = os.listdir(missing.parent)
    close = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.75)
    found = [meant for name in close if (meant := missing.with_name(name) / path.relative_to(missing)).exists()]
    return f" Did you mean {quote(str(found[0]))}?" if found else ""


def check_free(output: Path) -> None:
    """Raise `UserError` unless the directory is empty or does not exist."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} exists and is not an empty directory. Choose another, or remove it.")


def check_output_file(flag: str, path: AnyPath) -> None:
    """Raise `UserError` unless a file could be written there. A long computation calls it before it starts."""
    file = expand_path(path).absolute()
    if not file.parent.is_dir():
        raise UserError(f"--{flag}={path}: its directory does not exist. Choose another path.")
    if file.is_dir():
        raise UserError(f"--{flag}={path}: is a directory, wanted the path of a file.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"--{flag}={path}: may not be written. Choose another path.")


def lock_file(file: IO[str]) -> None:
    """Lock an open file until it is closed. Raises `BlockingIOError` if another process has locked it.

    On a file system without locks this does nothing.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass
