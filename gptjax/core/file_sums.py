"""Sizes and SHA-256 of the files of a directory, in one file beside them, so that any change of them is noticed.

The file holds the sum of its own content too. So a changed byte in it is not blamed on another file. A single file that
is made to be moved elsewhere has its sum in `FILE.sha256`, which `sha256sum --check` reads, too.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.errors import UserError, quote
from gptjax.core.files import write_atomically
from gptjax.process.console import print_once
from gptjax.process.progress import ReadProgress

SUMS_FILE = "checksums.json"
SUM_SUFFIX = ".sha256"
READ_BYTES = 2**22
_SUM_LINE = re.compile(rb"(\\?)(?:([0-9a-fA-F]{64})(?: [ *](.+))?|SHA256 \((.+)\) = ([0-9a-fA-F]{64}))")


class FileSum(NamedTuple):
    """Size and SHA-256 of a file, or of its first bytes."""

    bytes: int
    sha256: str


FileSums = Mapping[str, FileSum]
"""By the file's path inside its directory."""


class DamagedFileError(Exception):
    """A file is missing or differs from what was written; the text says which and how."""


class ChangedFileError(UserError):
    """A file that a command was about to read is not what `checksums.json`, or the manifest of shards, lists."""


def sum_file(path: Path, *, size: int | None = None, on_read: Callable[[int], object] = lambda count: None) -> FileSum:
    """Size and SHA-256 of a file, or of its first `size` bytes, as far as there are so many.

    `on_read` is called after each part, with its bytes.
    """
    digest, left, count = hashlib.sha256(), size, 0
    with path.open("rb") as file:
        while part := file.read(READ_BYTES if left is None else min(left, READ_BYTES)):
            digest.update(part)
            count += len(part)
            on_read(len(part))
            left = None if left is None else left - len(part)
    return FileSum(count, digest.hexdigest())


def sum_prefixes(path: Path, sizes: Iterable[int]) -> dict[int, FileSum]:
    """Size and SHA-256 of the first bytes of a file, for each of these sizes, as far as there are so many."""
    digest, count, found = hashlib.sha256(), 0, dict[int, FileSum]()
    with path.open("rb") as file:
        for size in sorted(set(sizes)):
            while part := file.read(min(size - count, READ_BYTES)):
                digest.update(part)
                count += len(part)
            found[size] = FileSum(count, digest.hexdigest())
    return found


def sum_files(directory: Path, names: Collection[str]) -> dict[str, FileSum]:
    """Read the files, several at a time."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: sum_file(directory / name), names), strict=True))


def keep_sums(directory: Path, names: Iterable[str]) -> dict[str, FileSum]:
    """The sums of these files that `checksums.json` lists, and of the others as they are now."""
    try:
        listed, _ = read_sums(directory) or ({}, {})
    except DamagedFileError:
        listed = {}
    return {name: listed.get(name) or sum_file(directory / name) for name in sorted(names)}


def drop_sums(directory: Path, folder: str) -> None:
    """List no file of this folder in `checksums.json` any more, as before they are replaced one by one."""
    with contextlib.suppress(DamagedFileError):  # the next start tells of it
        if (found := read_sums(directory)) is not None:
            write_sums(directory, {n: s for n, s in found[0].items() if not n.startswith(f"{folder}/")}, extra=found[1])


def list_files(directory: Path) -> list[str]:
    """Paths of all files inside a directory, sorted, without `checksums.json` itself."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in found if path != directory / SUMS_FILE)


def write_sums(directory: Path, sums: FileSums, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write `checksums.json` atomically; `extra` are further fields, in JSON's types."""
    content = {"files": {name: list(file_sum) for name, file_sum in sums.items()}} | dict(extra or {})
    write_atomically(directory / SUMS_FILE, json.dumps(content | {"self": _sum_content(content)}, indent=1) + "\n")


def read_sums(directory: Path) -> tuple[dict[str, FileSum], dict[str, Any]] | None:
    """The sums and the further fields of `checksums.json`; None without the file.

    Raises:
        DamagedFileError: the file itself is not as it was written.
    """
    path = directory / SUMS_FILE
    try:
        content = json.loads(path.read_bytes())
        own = content.pop("self")
        sums = {name: FileSum(*values) for name, values in content.pop("files").items()}
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DamagedFileError(f"{path} is not as it was written") from None
    if own != _sum_content({"files": {name: list(file_sum) for name, file_sum in sums.items()}} | content):
        raise DamagedFileError(f"{path} is not as it was written: its own SHA-256 differs")
    return sums, content


def sum_directory(directory: Path) -> None:
    """Write `checksums.json` of all files of a directory."""
    write_sums(directory, sum_files(directory, list_files(directory)))


@contextlib.contextmanager
def renew_sums(directory: Path, names: Collection[str]) -> Iterator[None]:
    """Replace the sums of these files, which the block may write, in `checksums.json`; those of others stay.

    A damaged `checksums.json` stays as it is.
    """
    try:
        listed, extra = read_sums(directory) or ({}, {})
    except DamagedFileError:
        yield
        return
    others = {name: file_sum for name, file_sum in listed.items() if name not in names}
    if len(others) < len(listed):  # after a kill, the old sums would call the new files damaged
        write_sums(directory, others, extra=extra)
    yield
    there = sum_files(directory, [name for name in names if (directory / name).is_file()])
    write_sums(directory, dict(sorted((others | there).items())), extra=extra)


def check_listed_files(directory: Path, names: Iterable[str]) -> None:
    """Raise a `ChangedFileError` for the first of these files that is not what `checksums.json` lists.

    Nothing is known of a file that it does not list. One that is missing is left to those who need it.
    """
    try:
        sums, _ = read_sums(directory) or ({}, {})
    except DamagedFileError as error:
        print_once(f"warning: {error}. So changes of the files beside it do not show", to_stderr=True)
        return
    there = {name: sums[name] for name in names if name in sums and (directory / name).is_file()}
    if problems := find_damage(directory, there):
        raise ChangedFileError(
            f"{problems[0]}. Put the right one back. If you changed it yourself, remove {directory / SUMS_FILE}."
        )


def write_sum_beside(path: Path, file_sum: FileSum) -> None:
    """Write `PATH.sha256`, as `sha256sum` would."""
    name = os.fsencode(path.name)
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    mark = b"\\" if escaped != name else b""
    write_atomically(_name_sum(path), b"%b%b  %b\n" % (mark, file_sum.sha256.encode(), escaped))


def remove_sum_beside(path: Path) -> None:
    """Remove what is left of an earlier file of this name."""
    _name_sum(path).unlink(missing_ok=True)


def find_damage_beside(path: Path) -> str | None:
    """What differs between a file and its `PATH.sha256`, in words; None if nothing does.

    The sum may be of any tool that writes a form which `sha256sum --check` reads, or the hexadecimal number alone. A
    note tells of another name in it.
    """
    own = _name_sum(path)
    try:
        sums = _parse_sums(own.read_bytes())
        found = sum_file(path).sha256
    except PermissionError:
        raise
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    name = os.fsencode(path.name)
    wanted = sums.get(name) or (next(iter(sums.values())) if len(sums) == 1 else None)
    if wanted is None:
        return f"{own} is not as it was written: it has no SHA-256 of {quote(path.name)}"
    if wanted != found:
        return f"{path} and {own.name} differ: one of them has changed since they were written"
    if name not in sums and b"" not in sums:
        print_once(f"note: {own} has the sum of {path.name} under the name {quote(os.fsdecode(*sums))}")
    return None


def holds_other_sums(path: Path) -> bool:
    """Whether `PATH.sha256` is a list of other files, as of a whole directory, and there is no file of this name."""
    if path.is_file():
        return False
    with contextlib.suppress(OSError):
        return os.fsencode(path.name) not in (sums := _parse_sums(_name_sum(path).read_bytes())) and bool(sums)
    return False


def _parse_sums(content: bytes) -> dict[bytes, str]:
    """SHA-256 in lower case by file name, of lines as `sha256sum` writes and reads them; the name may be missing."""
    found = {}
    for line in content.splitlines():
        if match := _SUM_LINE.fullmatch(line.strip()):
            escaped, digest, name, tagged, tagged_digest = match.groups()
            name = tagged or name or b""
            if escaped:
                name = re.sub(rb"\\(.)", lambda char: b"\n" if char[1] == b"n" else char[1], name)
            found[name] = (tagged_digest or digest).decode().lower()
    return found


def _name_sum(path: Path) -> Path:
    return path.with_name(path.name + SUM_SUFFIX)


def find_wrong_size(directory: Path, sums: FileSums) -> str | None:
    """What is missing or of another size, in words; None if all files have theirs. Reads no content."""
    for name, wanted in sums.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except PermissionError:
            raise
        except OSError as error:
            return f"{path} is missing ({error.strerror})"
        if size != wanted.bytes:
            return f"{path} has {size:,} bytes; {wanted.bytes:,} were written"
    return None


def find_damage(directory: Path, sums: FileSums) -> list[str]:
    """A line for each file that is missing, unreadable or different, with its path; reads every byte.

    A file that this user may not read is no damage, but a PermissionError.
    """
    problems = {name: problem for name in sums if (problem := find_wrong_size(directory, {name: sums[name]}))}
    rest = [name for name in sums if name not in problems]
    progress = ReadProgress(directory, sum(sums[name].bytes for name in rest))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: _describe_change(directory / name, sums[name], progress), rest)
        problems |= {name: problem for name, problem in zip(rest, found, strict=True) if problem}
    return [problems[name] for name in sums if name in problems]


def describe_unchanged(names: Collection[str]) -> str:
    """`a is unchanged`, `a, b are unchanged`."""
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} unchanged"


def _describe_change(path: Path, wanted: FileSum, progress: ReadProgress) -> str | None:
    try:
        found = sum_file(path, on_read=progress.add)
    except PermissionError:
        raise
    except OSError as error:  # the medium is damaged, too
        return f"{path} cannot be read ({error.strerror})"
    return None if found == wanted else f"{path} has changed since it was written: its SHA-256 differs"


def _sum_content(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
