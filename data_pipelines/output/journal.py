"""How far a preparation has come, so that the same command continues after a kill.

`progress.json` is replaced every few seconds. It names a position in the corpus and the state of the files there.
Later writes are cut off, the corpus is skipped up to that position, and the rest gives the same bytes.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.output.atomic_dir import PROGRESS_NAME, compare_requests
from data_pipelines.output.shard_writer import WriteState
from data_pipelines.readers.documents import Notes
from gptjax.core.files import write_atomically
from gptjax.tokenization.tokenizer_json import FILE_NAME

PROGRESS_VERSION = 4
"""Increase it whenever the position gets another meaning, also when a source yields other chunks."""


@dataclass(frozen=True)
class Progress:
    """So many units of the corpus (`encode.batching`) are in the files, with so many documents, blank ones included."""

    units: int = 0
    documents: int = 0
    splits: dict[str, WriteState] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)


class Journal:
    """The record of progress in a directory that is being filled; `progress` is what an earlier run left.

    A directory of another request (JSON), without a record, or with missing files is emptied.
    """

    def __init__(self, directory: Path, request: dict[str, Any], *, seconds: float = 2.0) -> None:
        self._path, self._seconds = directory / PROGRESS_NAME, seconds
        self._request = json.loads(json.dumps(request))
        self._last = time.monotonic()
        self.progress = self._load(directory) or Progress()
        if self.progress.units:
            tokens = sum(state.tokens for state in self.progress.splits.values())
            print(f"continuing after {self.progress.documents:,} documents, {tokens:,} tokens", file=sys.stderr)

    def record(self, progress: Progress) -> None:
        """Replace the record; the files that it describes are on disk already."""
        content = {
            "version": PROGRESS_VERSION,
            "request": self._request,
            "units": progress.units,
            "documents": progress.documents,
            "splits": {name: asdict(state) for name, state in progress.splits.items()},
            "notes": progress.notes.as_json(),
        }
        write_atomically(self._path, json.dumps(content))
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether some seconds have passed since the last record."""
        return time.monotonic() >= self._last + self._seconds

    def _load(self, directory: Path) -> Progress | None:
        content, problem = _read(self._path), ""
        progress = None if content is None else _parse(content)
        if content is not None and (changed := compare_requests(self._request, content["request"])):
            problem = f"what an earlier run left is of another request ({changed} differ)"
        elif progress is not None and not all(state.is_on_disk(directory) for state in progress.splits.values()):
            problem = "files of an earlier run are missing or cut short"
        if problem:
            print(f"{directory}: {problem}. Starting again.", file=sys.stderr)
        if progress is None or problem:
            shutil.rmtree(directory)
            directory.mkdir()
            return None
        known = {PROGRESS_NAME, FILE_NAME}.union(*(state.sizes for state in progress.splits.values()))
        for path in directory.iterdir():
            if path.name not in known:
                path.unlink()
        return progress


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("version") == PROGRESS_VERSION else None


def _parse(content: dict[str, Any]) -> Progress:
    splits = {name: WriteState(**state) for name, state in content["splits"].items()}
    return Progress(content["units"], content["documents"], splits, Notes(**content["notes"]))
