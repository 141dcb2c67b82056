"""Reads and writes metrics.jsonl, the record of a run.

The file has one JSON object a line, each with its `step`; `gptjax.metrics.logger` describes the other fields. A number
that is not finite is written as null.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.directory_identity import DirectoryIdentity
from gptjax.core.errors import UserError, count_of
from gptjax.core.files import write_atomically
from gptjax.process.console import print_once

Record = dict[str, Any]


MAX_STEP = 2**31 - 1
"""Training counts steps in int32."""
MAX_PENDING = 100_000
"""Lines that are kept in memory while they cannot be written."""


class MetricsFileWriter:
    """Appends records to a metrics.jsonl. Lines that cannot be written, as on a full disk, are written later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size
        self._directory = DirectoryIdentity.read(path.parent)
        self._pending: list[bytes] = []
        self._has_warned = False

    def write(self, record: Record) -> None:
        """Append one line, and those that could not be written before."""
        finite = {name: None if _is_not_finite(value) else value for name, value in record.items()}
        self._pending.append((json.dumps(finite, allow_nan=False) + "\n").encode())
        del self._pending[:-MAX_PENDING]
        try:
            self._follow_path()
            self._write_pending()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)  # no part of a line stays
            if not self._has_warned:
                print_once(f"warning: {self._path} cannot be written ({error.strerror}); its lines are kept for later")
            self._has_warned = True

    def _follow_path(self) -> None:
        """Go on in the file of this name if it was replaced, as by an editor; write it again if it was deleted.

        If its directory was moved, the lines follow it, whatever has the path now.
        """
        own = os.fstat(self._file.fileno())
        found = None
        with contextlib.suppress(FileNotFoundError):
            found = self._path.stat()
        if found is None or not os.path.samestat(own, found):
            if not self._path.parent.is_dir() or self._directory.is_replaced():
                return
            if found is None:
                write_atomically(self._path, os.pread(self._file.fileno(), own.st_size, 0))
                print_once(f"warning: {self._path} was deleted; its lines are written again")
            opened = self._path.open("a+b", buffering=0)  # while this fails, the file before stays open
            before, self._file = self._file, opened
            own = os.fstat(opened.fileno())
            self._size = own.st_size
            with contextlib.suppress(OSError):
                before.close()
        self._size = min(self._size, own.st_size)  # it may have been cut

    def _write_pending(self) -> None:
        content = b"".join(self._pending)
        written = 0
        while written < len(content):
            written += self._file.write(content[written:])
        self._size += len(content)
        self._pending = []

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[Record]:
    """Return the records of a metrics.jsonl in order, without an unfinished last line (left by a crash)."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}. A run writes it from its first step on.")
    records = []
    for number, line, record in _read_complete_lines(Path(path)):
        if record is None:
            raise UserError(
                f"{path}, line {number} is not a record with a step: {line[:60]!r}. Delete the line to go on."
            )
        records.append(record)
    return records


def truncate_after(path: Path, step: int) -> list[Record]:
    """Keep the lines up to `step`, byte for byte, and return their records. The file is replaced atomically.

    Lines that are no records are dropped with a warning, and the file is kept as `metrics.jsonl.broken`. Steps that
    are missing are named.
    A record of which no step is kept stays as `metrics.jsonl.before`.
    """
    lines = list(_read_complete_lines(path)) if path.exists() else []
    kept = [(line, record) for _, line, record in lines if record is not None and record["step"] <= step]
    if broken := [number for number, _, record in lines if record is None]:
        shutil.copyfile(path, path.with_name(f"{path.name}.broken"))
        print_once(
            f"warning: {path}, line {broken[0]}{' and others' * (len(broken) > 1)}: no record with a step. "
            f"{count_of(len(broken), 'lines are')} left out; the file as it was is kept as {path.name}.broken"
        )
    if step == 0 and (done := max((record["step"] for _, _, record in lines if record is not None), default=0)):
        with contextlib.suppress(OSError):  # on a full disk, say
            shutil.copyfile(path, path.with_name(f"{path.name}.before"))
        print_once(
            f"note: {path} has {done:,} steps, and the run begins anew from its start. The record so far is kept as "
            f"{path.name}.before"
        )
    if path.exists():
        write_atomically(path, b"".join(line + b"\n" for line, _ in kept))
    records = [record for _, record in kept]
    if gap := _describe_gap(records, step):
        print_once(f"warning: {path} lacks {gap}: it was deleted or cut. The run goes on; its curve has a hole")
    return records


def find_number(record: Record, name: str) -> float | None:
    """A record's number of this name; None if it has none, or something else by an edit of the file."""
    value = record.get(name)
    with contextlib.suppress(OverflowError):
        return float(value) if isinstance(value, int | float) else None


def _describe_gap(records: list[Record], step: int) -> str | None:
    """The completed steps that have no line, in words."""
    present = {record["step"] for record in records if "seconds" in record or "loss" in record}
    missing = [number for number in range(1, step + 1) if number not in present]
    if not missing:
        return None
    return f"{len(missing):,} of the {step:,} steps so far, from {missing[0]:,} to {missing[-1]:,}"


def to_scalar(value: Any) -> Any:
    """Convert a scalar array to Python's int or float (the shortest one for a float32); keep texts and lists."""
    if isinstance(value, str | list | tuple) or value is None:
        return value
    array = np.asarray(value)
    if array.ndim:
        raise TypeError(f"a metric must be one number; this one is an array of shape {array.shape}")
    if array.dtype.kind in "biu" or array.dtype == np.float64:
        return int(array) if array.dtype.kind == "b" else array.item()
    return float(str(np.float32(array)))


def _read_complete_lines(path: Path) -> Iterator[tuple[int, bytes, Record | None]]:
    """(number, line, record); None for a line that is no record with a step."""
    *lines, _unfinished = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not (isinstance(record["step"], int) and 0 <= record["step"] <= MAX_STEP):
                record = None
        except (ValueError, TypeError, KeyError, RecursionError):
            record = None
        yield number, line, record


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
