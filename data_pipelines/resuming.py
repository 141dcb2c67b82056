"""How far a preparation has come, so that after a kill the same command goes on from there.

The one idea: `progress.json`, replaced as a whole every few seconds, names a place in the corpus and what the files
held there. Whatever was written later is cut off, the source is passed over up to that place, and everything that
follows is as if nothing had happened: the same bytes.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.batching import START, Position
from data_pipelines.output import PROGRESS_NAME, differing
from data_pipelines.readers.documents import Notes
from data_pipelines.writing import Written, is_on_disk
from gptjax.core.files import write_atomically
from gptjax.data.manifest import ShardFile
from gptjax.tokenization.tokenizer_json import FILE_NAME

PROGRESS_VERSION = 3
"""Another one where a position means something else: also where a source comes in other chunks."""
SECONDS_BETWEEN_RECORDS = 2.0


@dataclass(frozen=True)
class Reached:
    """Everything before `position` in the corpus is in the files, and what was wrong with it in the notes."""

    position: Position = START
    written: dict[str, Written] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)


class Journal:
    """The record of progress in a directory that is being filled.

    Opening it empties the directory if its record is of another request, or of none; `request` is JSON.
    """

    def __init__(self, directory: Path, request: dict[str, Any]) -> None:
        self._directory, self._path = directory, directory / PROGRESS_NAME
        self._request = json.loads(json.dumps(request))
        self._next = time.monotonic() + SECONDS_BETWEEN_RECORDS
        self.resumed = False
        content = _read(self._path)
        if content is not None and content.get("request") != self._request:
            changed = differing(self._request, content["request"])
            _say(f"{directory}: what an earlier run left is of another request ({changed} differ).")
            content = None
        if content is None:
            shutil.rmtree(directory)
            directory.mkdir()
        self._found = _progress(content)
        if content is None:
            self.record(Reached())

    def reached(self, *, itemsize: int) -> Reached:
        """Where to go on; from the start, and saying so, if the files are not as recorded. Removes all other files."""
        found = self._found
        if not all(is_on_disk(self._directory, *split, itemsize=itemsize) for split in found.written.items()):
            _say(f"{self._directory}: files of an earlier run are missing or cut short.")
            found = Reached()
        self.resumed = found.position != START
        if self.resumed:
            tokens = sum(split.tokens for split in found.written.values())
            print(f"going on after {found.position.documents:,} documents, {tokens:,} tokens", file=sys.stderr)
        known = {PROGRESS_NAME, FILE_NAME}.union(
            *(written.sizes(split, itemsize=itemsize) for split, written in found.written.items())
        )
        for path in self._directory.iterdir():
            if path.name not in known:
                path.unlink()
        return found

    def record(self, reached: Reached) -> None:
        """Replace the record; what it speaks of is on the disk already."""
        content = {
            "version": PROGRESS_VERSION,
            "request": self._request,
            "position": reached.position,
            "written": {name: asdict(written) for name, written in reached.written.items()},
            "notes": reached.notes.as_json(),
        }
        write_atomically(self._path, json.dumps(content))
        self._next = time.monotonic() + SECONDS_BETWEEN_RECORDS

    def record_if_due(self, reached: Callable[[], Reached]) -> None:
        """Every few seconds, for asking for `reached` waits for the disk."""
        if time.monotonic() >= self._next:
            self.record(reached())

    def forget_if_empty(self) -> None:
        """Leave no record where nothing was done that a further run could use."""
        if _progress(_read(self._path)).position == START and not (self._directory / FILE_NAME).is_file():
            self._path.unlink(missing_ok=True)


def _say(what: str) -> None:
    print(f"{what} Starting anew.", file=sys.stderr)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and content.get("version") == PROGRESS_VERSION
    return content if known else None


def _progress(content: dict[str, Any] | None) -> Reached:
    if content is None:
        return Reached()
    splits = {}
    for name, written in content["written"].items():
        files = {file: ShardFile(**fields) for file, fields in written["files"].items()}
        splits[name] = Written(**written | {"files": files})
    return Reached(Position(*content["position"]), splits, Notes(**content["notes"]))
