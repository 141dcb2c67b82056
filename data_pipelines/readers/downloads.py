"""One file over HTTP: resumed where it stopped, checked before it gets its name, and kept.

The one idea: what bears the final name is whole. Bytes arrive in `NAME.partial`, which a killed process leaves behind
and the next one continues; the rename comes after size and hash agree.
"""

import functools
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_pipelines.runtime.locks import is_full, locked, sync
from data_pipelines.runtime.progress import Rate, moving_line
from gptjax.errors import UserError

TRIES = 6
PAUSE_SECONDS = 1.0
"""Before the second try; twice as long before each further one."""
TIMEOUT_SECONDS = 60
_CHUNK_BYTES = 2**20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same question may have another one."""


def cache_directory() -> Path:
    """Where things made or fetched once are kept: `$GPTJAX_CACHE`, else `~/.cache/gptjax`."""
    return Path(os.environ.get("GPTJAX_CACHE") or Path.home() / ".cache" / "gptjax")


@dataclass(frozen=True)
class Wanted:
    """A file that a server has, as far as it is known beforehand: bytes, SHA-256, or git's SHA-1 of it as a blob."""

    url: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    def difference(self, path: Path) -> str:
        """What is not as wanted in the file, which is read once in a process; empty where all is."""
        now = path.stat()
        return _difference(self, path, now.st_size, (now.st_mtime_ns, now.st_ctime_ns))


@functools.cache
def _difference(wanted: Wanted, path: Path, size: int, times: tuple[int, int]) -> str:
    if wanted.size is not None and size != wanted.size:
        return f"{size:,} bytes, wanted {wanted.size:,}"
    if wanted.sha256 is not None and (found := _digest(path, hashlib.sha256())) != wanted.sha256:
        return f"its SHA-256 is {found}, wanted {wanted.sha256}"
    if wanted.git_sha1 is not None:
        blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        if (found := _digest(path, blob)) != wanted.git_sha1:
            return f"its SHA-1 as a git blob is {found}, wanted {wanted.git_sha1}"
    return ""


def download(wanted: Wanted, path: Path, *, token: str | None = None) -> Path:
    """Bring the file to `path`, unless it is there; returns `path`.

    A transfer that breaks off is continued, also by another process, and tried again a few times with growing pauses.
    Raises `UserError` when the server refuses or stays silent, or when the content is not what was wanted.
    """
    with locked(path):
        if path.is_file():
            if difference := wanted.difference(path):
                raise UserError(
                    f"{path}: is there already and not the file that is wanted: {difference}. Remove it, or choose "
                    "another place."
                )
            return path
        partial = path.with_name(f"{path.name}.partial")
        for last in (False, True):
            _transfer(wanted, partial, token=token)
            difference = wanted.difference(partial)
            if not difference:
                sync(partial)
                os.replace(partial, path)
                return path
            partial.unlink()  # it may have grown from two versions of the file: once more, from the beginning
            if last:
                raise UserError(f"{wanted.url}: not the file that was promised: {difference}.")
    raise AssertionError("unreachable")


class Answer(NamedTuple):
    """What a server says, and where it goes on saying it (the Link header's `next`), if it does."""

    content: bytes
    next_page: str | None


def ask(url: str, *, token: str | None = None, patient: bool = True) -> Answer:
    """The whole answer to one request; `UserError` where there is none. Tries as often as `download`, or only once."""
    for attempt in range(0 if patient else TRIES - 1, TRIES):
        try:
            with urllib.request.urlopen(_request(url, token), timeout=TIMEOUT_SECONDS) as reply:
                following = re.search(r'<([^>]+)>; *rel="?next', reply.headers.get("Link", ""))
                return Answer(reply.read(), following and urllib.parse.urljoin(url, following[1]))
        except (OSError, http.client.HTTPException) as error:
            _wait_or_give_up(url, error, attempt)
    raise AssertionError("unreachable")


def _transfer(wanted: Wanted, partial: Path, *, token: str | None) -> None:
    """Append to `partial` what is still missing."""
    attempt = 0
    while True:
        before = _size(partial)
        if wanted.size is not None and before >= wanted.size:
            partial.touch()  # of no bytes, perhaps
            return
        try:
            _append(wanted, partial, token)
            return
        except (OSError, http.client.HTTPException) as error:
            # As long as bytes arrive, patience begins anew: a long file may break off often.
            attempt = 0 if _size(partial) > before else attempt
            _wait_or_give_up(wanted.url, error, attempt)
            attempt += 1


def _append(wanted: Wanted, partial: Path, token: str | None) -> None:
    done = _size(partial)
    request = _request(wanted.url, token)
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no such range: either all is there, or it is of another file; the hash will tell
            error.close()
            return
        raise
    name = partial.name.removesuffix(".partial")
    with reply, moving_line(f"fetching {name}") as show:
        done = done if reply.status == 206 else 0
        left = reply.headers.get("Content-Length")
        whole = None if left is None else done + int(left)
        of_all = "" if whole is None else f" of {whole / 1e6:,.1f}"
        rate = Rate(done)
        with partial.open("ab" if done else "wb") as file:
            while chunk := reply.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                show(f"fetching {name}: {done / 1e6:,.1f}{of_all} MB, {rate(done):.1f} MB/s")
    if whole is not None and done < whole:
        raise ConnectionError(f"the connection ended after {done:,} of {whole:,} bytes")


def _request(url: str, token: str | None) -> urllib.request.Request:
    request = urllib.request.Request(url, headers={"User-Agent": "gptjax"})
    if token:  # for this host only, not for the storage to which it may redirect
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


def _wait_or_give_up(url: str, error: Exception, attempt: int) -> None:
    if is_full(error):
        raise UserError(
            f"{url}: could not be kept: {error}. What has arrived is kept; make room and try again."
        ) from None
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, urllib.error.URLError):
        raise UserError(f"{url}: could not be kept: {error}. Choose a place that can be written.") from None
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code not in _PASSING:
            hint = " It may be private or gated, or not exist." if error.code in (401, 403, 404) else ""
            raise UserError(f"{url}: the server answers {error.code} {error.reason}.{hint}") from None
    if attempt + 1 >= TRIES:
        raise UserError(f"{url}: did not answer ({error}). What has arrived is kept; try again later.") from None
    print(f"{url}: {error}; trying again", file=sys.stderr, flush=True)
    time.sleep(PAUSE_SECONDS * 2**attempt)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
