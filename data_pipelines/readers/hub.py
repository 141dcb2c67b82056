"""Files of a Hugging Face data set repository, through the library `huggingface_hub`; no remote scripts run.

`hf:OWNER/NAME` is the training files of a repository with one set: where names say `train`, the other files are not
read, for a repository holds more than data. `hf:OWNER/NAME@REVISION:PATTERN` is what matches the pattern, in which `*`
also matches `/`, at a branch, tag or commit. Of several splits it is the training files, as of a local pattern.

The repository is listed once, with sizes and hashes at one commit. Each file is fetched when its turn comes, into the
library's cache (`HF_HOME`). The library reads `HF_ENDPOINT` and `HF_TOKEN`.
"""

import contextlib
import fnmatch
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.readers.documents import Chunk, ReadContext
from data_pipelines.readers.files import Files, find_reader, identify_readers
from data_pipelines.readers.paths import find_split, keep_training, locate_split, tell_once
from gptjax.core.errors import DISK_FULL_ERRNOS, UserError, count_of, quote_error
from gptjax.core.files import hash_json

_SPEC = re.compile(r"hf:(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^:]+))?(?::(?P<pattern>.+))?")
_DESCRIPTION = re.compile(r"(.*/)?([.]|readme|licen|citation)[^/]*|.*[.](md|rst)", re.IGNORECASE)


class RemoteFile(NamedTuple):
    """A file of a repository: path, bytes, and the SHA-256 of a large file or git's SHA-1 of a small one."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class HubFiles:
    """The files of a repository that match, in the order of their paths."""

    spec: str
    repository: str
    revision: str
    pattern: str | None

    @property
    def name(self) -> str:
        return self.repository.split("/")[1]

    def chunks(self, context: ReadContext) -> Iterator[Chunk]:
        for file in self.files:
            yield from Files(self.spec, (self.fetch(file),)).chunks(context)

    def identity(self) -> dict[str, Any]:
        """Paths, sizes and hashes of the files, not the commit: an edited readme changes no text."""
        digest = hash_json(self.files)
        return {"source": self.spec, "files": len(self.files), "paths_sizes_hashes": digest} | identify_readers(
            file.path for file in self.files
        )

    def fetch(self, file: RemoteFile, directory: Path | None = None) -> Path:
        """Fetch a file into the library's cache, or below `directory`; returns its path."""
        with self._explain_errors():
            from huggingface_hub import hf_hub_download

            options: dict[str, Any] = {"revision": self.listing[0], "local_dir": directory}
            return Path(hf_hub_download(self.repository, file.path, repo_type="dataset", **options))

    @functools.cached_property
    def files(self) -> list[RemoteFile]:
        """The files to read; raises `UserError` where there is none, or where there are several sets."""
        found = [file for file in self.match() if find_reader(file.path)]
        # A repository keeps facts about a set as .json; of .json files alone, they are the data.
        found = [file for file in found if not file.path.endswith(".json")] or found
        if not found:
            wanted = f"matches {self.pattern}" if self.pattern else "is text, JSON lines, Parquet or ArrayRecord"
            held = ", ".join(file.path for file in self.listing[1][:8]) or "nothing"
            raise UserError(f"source {self.spec}: no file that can be read {wanted}; the repository holds {held}.")
        if self.pattern is None:  # whatever else there is need not be data
            found = [file for file in found if find_split(file.path) == "train"] or found
        place = self.spec.removesuffix(f":{self.pattern}")
        kept = set(keep_training(self.spec, [file.path for file in found], prefix=f"{place}:"))
        found = [file for file in found if file.path in kept]
        if self.pattern is None and len(folders := sorted({_find_set(file.path) for file in found})) > 1:
            # They may be languages, or samples.
            named = locate_split(found[0].path)
            what = f"*{named.word}*" if named and named.split == "train" else "*"
            choices = " or ".join(f"{self.spec}:{folder}{what}" for folder in folders[:8] if folder)
            raise UserError(
                f"source {self.spec}: its training files are in {len(folders)} folders, which may be different sets or "
                f"versions of one. Choose one, such as {choices}; {self.spec}:{what} takes all of them."
            )
        if self.pattern is None and (
            others := [file for file in self._data if find_reader(file.path) and file not in found]
        ):
            count = count_of(len(others), "other files")
            tell_once(f"note: source {self.spec}: not read: {count}, such as {self.spec}:{others[0].path}")
        return found

    def match(self) -> list[RemoteFile]:
        """The files of all splits that match the pattern, or the data files."""
        if self.pattern is not None:
            return [file for file in self.listing[1] if fnmatch.fnmatchcase(file.path, self.pattern)]
        return self._data

    @property
    def _data(self) -> list[RemoteFile]:
        return [file for file in self.listing[1] if not _DESCRIPTION.fullmatch(file.path)]

    @functools.cached_property
    def listing(self) -> tuple[str, list[RemoteFile]]:
        """The commit that the revision names now, and its files."""
        with self._explain_errors():
            from huggingface_hub import HfApi

            info = HfApi().dataset_info(self.repository, revision=self.revision, timeout=10, files_metadata=True)
            entries: list[Any] = info.siblings or []
            files = [RemoteFile(e.rfilename, e.size, e.lfs.sha256 if e.lfs else e.blob_id) for e in entries]
        return str(info.sha), sorted(files)

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Turn errors of the library, whose types differ between its versions, into a `UserError`."""
        from huggingface_hub import errors

        try:
            yield
        except errors.RepositoryNotFoundError as error:
            page = f"https://huggingface.co/datasets/{self.repository}"
            gated = isinstance(error, errors.GatedRepoError)
            problem = f"is gated. Accept its terms at {page}" if gated else "does not exist, or is private"
            raise UserError(
                f"source {self.spec}: the repository {problem}. Log in (hf auth login) or set HF_TOKEN."
            ) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                raise
            raise UserError(
                f"source {self.spec}: no usable answer from the hub ({type(error).__name__}: {quote_error(error)}). "
                "Try again later, or fetch it where there is a connection (hf download --repo-type=dataset "
                f"{self.repository} --local-dir=DIR) and give --source=DIR."
            ) from None


def open_hub(spec: str) -> HubFiles | None:
    """Open `hf:OWNER/NAME[@REVISION][:PATTERN]`, asking nothing yet; None for another prefix."""
    if not spec.startswith("hf:"):
        return None
    found = _SPEC.fullmatch(spec)
    if not found:
        raise UserError(f"source {spec!r}: wanted hf:OWNER/NAME[@REVISION][:PATTERN].")
    return HubFiles(spec, found["repository"], found["revision"] or "main", found["pattern"])


def _find_set(path: str) -> str:
    """The folders above the part that names the split or, where nothing names one, the top folder."""
    named = locate_split(path)
    return named.above if named else path[: path.find("/") + 1]
