"""Sources of records, such as conversations: local files, `hf:OWNER/NAME` and `tfds:NAME`, as for documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.files import identify_readers
from data_pipelines.readers.formats.array_records import split_records
from data_pipelines.readers.hub import HubFiles, open_hub
from data_pipelines.readers.paths import identify_files
from data_pipelines.readers.records import (
    KNOWN,
    NamedRecord,
    RecordBlock,
    block_dead,
    find_record_files,
    holds_records,
    iter_blocks,
)
from data_pipelines.readers.tfds_sets import TfdsSet, open_tfds
from gptjax.core.errors import UserError
from gptjax.tokenization.messages import CONTENT_KEYS, ROLE_KEYS, ROLE_NAMES, TOOL_ROLES


class RecordSource(Protocol):
    """Records in the same order at every pass."""

    @property
    def size(self) -> int:
        """About the bytes of its files."""
        ...

    def identity(self) -> dict[str, Any]:
        """A JSON value that differs when the records differ."""
        ...

    def iter_blocks(self, fields: tuple[str, ...], block_bytes: int) -> Iterator[RecordBlock]:
        """Blocks of records that another process can read; of Parquet and Arrow only these columns."""
        ...


def open_records(spec: str) -> RecordSource:
    """The source that `spec` names. Nothing is listed or fetched yet."""
    if (hub := open_hub(spec)) is not None:
        return HubRecords(hub)
    return TfdsRecords(tfds) if (tfds := open_tfds(spec)) is not None else LocalRecords(spec)


@dataclass(frozen=True)
class LocalRecords:
    """A file, the files of known formats in a directory, or those of a pattern; they are listed at each call."""

    spec: str

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in find_record_files(self.spec).paths)

    def identity(self) -> dict[str, Any]:
        paths = find_record_files(self.spec).paths
        return identify_files(self.spec, paths) | identify_readers(path.name for path in paths)

    def iter_blocks(self, fields: tuple[str, ...], block_bytes: int) -> Iterator[RecordBlock]:
        paths, dead = find_record_files(self.spec)
        for path in paths:
            yield from iter_blocks(path, fields=fields, block_bytes=block_bytes)
        if dead:
            yield block_dead(dead)


@dataclass(frozen=True)
class HubRecords:
    """The files of records of a repository. Each is fetched when its turn comes."""

    hub: HubFiles

    @property
    def size(self) -> int:
        return sum(file.size for file in self.hub.files)

    def identity(self) -> dict[str, Any]:
        return self.hub.identity()

    def iter_blocks(self, fields: tuple[str, ...], block_bytes: int) -> Iterator[RecordBlock]:
        files = [file for file in self.hub.files if holds_records(file.path)]
        if not files:
            raise UserError(f"source {self.hub.spec}: has no file of records; wanted {KNOWN}.")
        for file in files:
            yield from iter_blocks(self.hub.fetch(file), fields=fields, block_bytes=block_bytes)


@dataclass(frozen=True)
class TfdsRecords:
    """A split of a set that TensorFlow Datasets has prepared; all of its features are read."""

    tfds: TfdsSet

    @property
    def size(self) -> int:
        return self.tfds.count_bytes()

    def identity(self) -> dict[str, Any]:
        return self.tfds.identity()

    def iter_blocks(self, fields: tuple[str, ...], block_bytes: int) -> Iterator[RecordBlock]:
        count = self.tfds.count_records()
        mean = max(1, self.size // max(1, count))
        for begin, end in split_records(count, mean * count, ReadContext(block_bytes=block_bytes)):
            yield RecordBlock(mean * (end - begin), partial(_read_tfds, self.tfds, begin, end))


def _read_tfds(tfds: TfdsSet, begin: int, end: int) -> Iterator[NamedRecord]:
    for number, record in enumerate(tfds.read_records(begin, end), start=begin):
        yield f"{tfds.spec}: record {number}", _to_json(record)


def _to_json(value: Any) -> Any:
    """A value of TFDS as JSON; messages whose roles and contents are two lists become a list of objects."""
    if isinstance(value, dict):
        fields = {key: _to_json(part) for key, part in value.items()}
        return _split_fields(fields) if _hold_messages(fields) else fields
    if isinstance(value, np.ndarray):
        return [_to_json(part) for part in value] if value.ndim else _to_json(value.item())
    if isinstance(value, list | tuple):
        return [_to_json(part) for part in value]
    if isinstance(value, np.generic):
        return _to_json(value.item())
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _hold_messages(fields: dict[str, Any]) -> bool:
    """Whether lists of one length hold a known role and a content of each message; other lists stay apart."""
    if fields.keys().isdisjoint(CONTENT_KEYS) or not all(isinstance(part, list) for part in fields.values()):
        return False
    roles = [str(role).lower() for key in ROLE_KEYS for role in fields.get(key, [])]
    return len({*map(len, fields.values())}) == 1 and any(role in ROLE_NAMES or role in TOOL_ROLES for role in roles)


def _split_fields(fields: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(fields, parts, strict=True)) for parts in zip(*fields.values(), strict=True)]
