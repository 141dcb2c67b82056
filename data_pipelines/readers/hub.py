"""The files of a Hugging Face data set repository, as a source: no remote scripts, only files.

    hf:OWNER/NAME                     the training files (those of the split `train` where names tell), of a repository
                                      with one set: of several, such as languages, a pattern chooses
    hf:OWNER/NAME:data/train-*.parquet    what matches; `*` also matches `/`
    hf:OWNER/NAME@REVISION:PATTERN    at a branch, tag or commit (by default main)

The repository is asked once what it holds at which commit, with sizes and hashes; then each file is fetched when its
turn comes, kept under `$GPTJAX_CACHE/hub`, and read like a local one. Without a network, what was asked and fetched
before is used. `HF_ENDPOINT` names a mirror, `HF_TOKEN` opens private or gated sets.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import Chunk, Reading
from data_pipelines.readers.downloads import Wanted, ask, cache_directory, download
from data_pipelines.readers.files import Files, reader_of
from gptjax.core.errors import UserError
from gptjax.core.files import write_atomically

PREFIX = "hf:"
SETS_NAMED = 8
_SPEC = re.compile(r"hf:(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^:]+))?(?::(?P<pattern>.+))?")


@dataclass(frozen=True)
class Remote:
    """A file of a repository: its path there, bytes, and a hash (SHA-256 of large files, git's SHA-1 of others)."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit."""

    commit: str
    files: tuple[Remote, ...]


@dataclass(frozen=True)
class Repository:
    """A data set repository at a revision."""

    name: str
    revision: str = "main"

    @functools.cached_property
    def listing(self) -> Listing:
        """What the server says; where it is silent, or the revision is a commit, what it said last time."""
        path = self.directory / f"{urllib.parse.quote(self.revision, safe='')}.json"
        kept = _kept(path)
        if kept is not None and re.fullmatch("[0-9a-f]{40}", self.revision):
            return kept
        try:
            listing = self._ask(patient=kept is None)
        except UserError as error:
            if kept is None:
                raise
            print(f"{error} Going on with what it said before.", file=sys.stderr, flush=True)
            return kept
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(dataclasses.asdict(listing)))
        return listing

    def _ask(self, *, patient: bool) -> Listing:
        """First the commit, then the tree at that commit, page by page (the list in the first answer may be cut)."""
        api, token = f"{endpoint()}/api/datasets/{self.name}", _token()
        url: str | None = f"{api}/revision/{urllib.parse.quote(self.revision, safe='')}?expand=sha"
        try:
            commit = json.loads(ask(url, token=token, patient=patient).content)["sha"]
            if not re.fullmatch("[0-9a-f]{40}", commit):
                raise ValueError(f"commit {commit!r}")
            files: list[Remote] = []
            url = f"{api}/tree/{commit}?recursive=true&limit=1000"
            while url is not None:
                content, url = ask(url, token=token)
                files += [_remote(entry) for entry in json.loads(content) if entry["type"] == "file"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{api}: not what a Hugging Face server says of a data set ({error!r}).") from None
        return Listing(commit, tuple(files))

    @property
    def directory(self) -> Path:
        return cache_directory() / "hub" / self.name.replace("/", "--")

    def fetch(self, file: Remote, path: Path | None = None) -> Path:
        """Bring a file to `path`, by default into the cache; returns where it lies.

        In the cache it lies under its hash, so that a new commit fetches only what it changed.
        """
        commit = self.listing.commit
        url = f"{endpoint()}/datasets/{self.name}/resolve/{commit}/{urllib.parse.quote(file.path)}"
        wanted = Wanted(url, size=file.size, sha256=file.sha256, git_sha1=file.git_sha1)
        return download(wanted, path or self.directory / self._place(file), token=_token())

    def _place(self, file: Remote) -> Path:
        digest = file.sha256 or file.git_sha1
        return Path(digest[:16], Path(file.path).name) if digest else Path(self.listing.commit, file.path)


@dataclass(frozen=True)
class HubFiles:
    """The files of a repository that match, in the order of their paths."""

    spec: str
    repository: Repository
    pattern: str | None

    @property
    def name(self) -> str:
        return self.repository.name.split("/")[1]

    def chunks(self, reading: Reading) -> Iterator[Chunk]:
        for file in self.files:
            path = self.repository.fetch(file)
            yield from Files(self.spec, (path,)).chunks(reading)

    @functools.cached_property
    def files(self) -> tuple[Remote, ...]:
        """What is to be read; `UserError` where there is nothing."""
        found = tuple(file for file in matching(self.repository, self.pattern) if reader_of(file.path))
        if not found:
            wanted = f"matches {self.pattern}" if self.pattern else "is text, JSON lines, Parquet or ArrayRecord"
            held = ", ".join(file.path for file in self.repository.listing.files[:8]) or "nothing"
            raise UserError(f"source {self.spec}: no file that can be read {wanted}; the repository holds {held}.")
        if self.pattern is None:
            self._refuse_several_sets([file.path for file in found])
        return found

    def _refuse_several_sets(self, paths: list[str]) -> None:
        """They may be languages, or a sample of the rest. The folders that tell are those above the name of the split
        or, where nothing is named after it, the outermost."""
        named = any(map(_names_train, paths))
        folder_of, what = (_before_train, "*train*") if named else (_outermost, "*")
        if len(folders := sorted(set(map(folder_of, paths)))) > 1:
            choices = " or ".join(f"{self.spec}:{folder}{what}" for folder in folders[:SETS_NAMED] if folder)
            more = "" if len(folders) <= SETS_NAMED else f" (and {len(folders) - SETS_NAMED} more)"
            raise UserError(
                f"source {self.spec}: its training files are in {len(folders)} folders, which may be different sets or "
                f"versions of one. Choose {choices}{more}; {self.spec}:{what} takes all of them."
            )

    def identity(self) -> dict[str, Any]:
        """Paths, sizes and hashes of the files, not the commit: an edited readme changes no text."""
        files = [[file.path, file.size, file.sha256 or file.git_sha1] for file in self.files]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return {"source": self.spec, "files": len(files), "paths_sizes_hashes": digest}


def open_hub(spec: str) -> HubFiles:
    """The source of a spec `hf:OWNER/NAME[@REVISION][:PATTERN]`. Asks nothing yet."""
    repository, pattern = parse_hub(spec)
    return HubFiles(spec, repository, pattern)


def parse_hub(spec: str) -> tuple[Repository, str | None]:
    """Repository and pattern of a spec; `UserError` for another form."""
    found = _SPEC.fullmatch(spec)
    if not found:
        raise UserError(f"source {spec!r}: wanted hf:OWNER/NAME[@REVISION][:PATTERN].")
    return Repository(found["repository"], found["revision"] or "main"), found["pattern"]


def matching(repository: Repository, pattern: str | None) -> list[Remote]:
    """The files that match, by path; without a pattern the data files, of the split `train` where names tell."""
    files = sorted(repository.listing.files, key=lambda file: file.path)
    if pattern is not None:
        return [file for file in files if fnmatch.fnmatchcase(file.path, pattern)]
    data = [file for file in files if not _is_description(file.path)]
    return [file for file in data if _names_train(file.path)] or data


def _before_train(path: str) -> str:
    """The folders above the one, or the file, that names the split; none where nothing does."""
    parts = path.split("/")
    return next(("".join(f"{part}/" for part in parts[:i]) for i, part in enumerate(parts) if _names_train(part)), "")


def _outermost(path: str) -> str:
    """The first folder of a path; none of a file at the top."""
    folder, slash, _ = path.rpartition("/")
    return folder.split("/")[0] + slash


def _names_train(path: str) -> bool:
    return "train" in re.split(r"[^A-Za-z]+", path)


def endpoint() -> str:
    """The server: `$HF_ENDPOINT`, else the Hugging Face hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None


def _is_description(path: str) -> bool:
    """A readme or a licence, not data."""
    name = path.rsplit("/", 1)[-1].lower()
    return name.startswith((".", "readme", "licen", "citation")) or name.endswith((".md", ".rst"))


def _kept(path: Path) -> Listing | None:
    """The listing of an earlier time; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Listing(content["commit"], tuple(Remote(**file) for file in content["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remote(entry: dict[str, Any]) -> Remote:
    path, large = str(entry["path"]), entry.get("lfs")
    if path.startswith("/") or ".." in path.split("/"):  # it becomes a path below the cache
        raise ValueError(f"path {path!r}")
    if large:
        return Remote(path, int(large["size"]), str(large["oid"]), None)
    return Remote(path, int(entry["size"]), None, str(entry["oid"]))
