"""How far a preparation has come, so that the same command continues after a kill.

`progress.json` names a position in the corpus and the state of the files there, with their sums. Later writes are cut
off, the corpus is skipped up to that position, and the rest gives the same bytes.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.output.atomic_dir import PROGRESS_NAME
from data_pipelines.output.shard_writer import WriteState, are_on_disk
from data_pipelines.readers.documents import Notes
from gptjax.core.errors import count_of
from gptjax.core.files import file_sha256, hash_json, write_atomically
from gptjax.tokenization.tokenizer_json import FILE_NAME

_OWN_SUM_KEY = "sha256"
PROGRESS_VERSION = 8
"""Increase it whenever the position or a sum gets another meaning, also when a source yields other chunks."""


@dataclass(frozen=True)
class Progress:
    """So many units of the corpus (`encode.batching`) are in the files, with so many documents, blank ones included."""

    units: int = 0
    documents: int = 0
    splits: dict[str, WriteState] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)


class Journal:
    """The record of progress in a directory that is being filled; `progress` is what an earlier run left.

    A directory of another request (JSON), without a record, or with missing or changed files is emptied.
    """

    def __init__(self, directory: Path, request: dict[str, Any], *, seconds: float = 2.0) -> None:
        self._path, self._seconds = directory / PROGRESS_NAME, seconds
        self._header = {"version": PROGRESS_VERSION, "request": json.loads(json.dumps(request))}
        self._last = time.monotonic()
        self._tokenizer: str | None = None
        self.progress = self._load(directory)
        known = {PROGRESS_NAME}.union(*(state.sizes for state in self.progress.splits.values()))
        if self._tokenizer is not None:
            known.add(FILE_NAME)
        for path in directory.iterdir():
            if path.name not in known:
                path.unlink()

    def record(self, progress: Progress) -> None:
        """Replace the record; the files that it describes are on disk already."""
        splits = {name: asdict(state) for name, state in progress.splits.items()}
        content = {"units": progress.units, "documents": progress.documents, "splits": splits}
        self._tokenizer = self._tokenizer or _sum_tokenizer(self._path.parent)  # one that was learned
        content = self._header | content | {"tokenizer": self._tokenizer, "notes": progress.notes.as_json()}
        write_atomically(self._path, json.dumps(content | {_OWN_SUM_KEY: hash_json(content)}))
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether some seconds have passed since the last record."""
        return time.monotonic() >= self._last + self._seconds

    def _load(self, directory: Path) -> Progress:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = {}
        content = content if isinstance(content, dict) else {}
        own = content.pop(_OWN_SUM_KEY, None)
        if self._header.items() <= content.items() and own == hash_json(content):
            splits = {name: WriteState(**state) for name, state in content["splits"].items()}
            tokenizer = content["tokenizer"]
            # Without a sum, a tokenizer.json was written at the very end, and will be again.
            is_same = tokenizer is None or tokenizer == _sum_tokenizer(directory)
            if is_same and are_on_disk(directory, splits.values()):
                self._tokenizer = tokenizer
                tokens = sum(state.tokens for state in splits.values())
                print(
                    f"continuing after {count_of(content['documents'], 'documents')}, {tokens:,} tokens",
                    file=sys.stderr,
                )
                return Progress(content["units"], content["documents"], splits, Notes(**content["notes"]))
        if content:
            problem = "what an earlier run left is of another request, incomplete or damaged"
            print(f"{directory}: {problem}. Starting again.", file=sys.stderr)
        shutil.rmtree(directory)
        directory.mkdir()
        return Progress()


def _sum_tokenizer(directory: Path) -> str | None:
    """The sum of the tokenizer.json of a directory, if there is one."""
    return file_sha256(directory / FILE_NAME) if (directory / FILE_NAME).is_file() else None
