"""Reads and writes metrics.jsonl, the record of a run.

The file has one JSON object a line, each with its `step`; `gptjax.metrics.logger` describes the other fields. A number
that is not finite is written as null.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError

Record = dict[str, Any]


class MetricsFileWriter:
    """Appends records to a metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one line and flush it."""
        finite = {name: None if _is_not_finite(value) else value for name, value in record.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[Record]:
    """Return the records of a metrics.jsonl in order, without an unfinished last line (left by a crash)."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}. A run writes it from its first step on.")
    return [record for _, record in _read_complete_lines(Path(path))]


def truncate_after(path: Path, step: int) -> list[Record]:
    """Keep the lines up to `step`, byte for byte, and return their records. The file is replaced atomically."""
    if not path.exists():
        return []
    kept = [(line, record) for line, record in _read_complete_lines(path) if record["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(b"".join(line + b"\n" for line, _ in kept))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return [record for _, record in kept]


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


def _read_complete_lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    *lines, _unfinished = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path}, line {number} is not a record with a step: {line[:60]!r}. Delete the line to go on."
            ) from None
        yield line, record


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
