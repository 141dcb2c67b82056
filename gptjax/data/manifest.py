"""manifest.json: what a directory of shards must contain, written last and read first."""

import dataclasses
import json
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptjax.core.errors import UserError
from gptjax.core.files import write_atomically

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 2
PREPARE_AGAIN = "Prepare the data again; if others made it, fetch or copy it again."
"""What helps where files are not what their manifest says."""

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Counts:
    """What one split holds: documents, tokens (end-of-text ids included) and bytes of UTF-8 text."""

    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class ShardFile:
    """One file of a split: tokens, size in bytes with header, SHA-256 of the whole file."""

    split: str
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Sidecar:
    """A file beside the shards that says something of a split's tokens; bytes and SHA-256 of the whole file.

    - `documents`: where each document begins, counted in tokens of the split: int64, little-endian, ascending from 0.
    - `scored`: a byte for each token, 1 where its prediction counts and 0 where it does not (a prompt, say).
    """

    split: str
    kind: Literal["documents", "scored"]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards must contain. `tokenizer` is a name to read, `fingerprint` the identity to compare.

    `request` records what was asked of the pipeline, so that the same request finds its work already done; `notes` are
    the lines of its report that say what was wrong with the source.
    """

    tokenizer: str
    fingerprint: str
    vocab_size: int
    dtype: str
    splits: dict[str, Counts]
    files: dict[str, ShardFile]
    sidecars: dict[str, Sidecar] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    version: int = MANIFEST_VERSION

    def write(self, directory: AnyPath) -> None:
        """Write `manifest.json`; do it last, for its presence says that the directory is complete."""
        write_atomically(Path(directory) / MANIFEST_NAME, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def files_of(self, split: str) -> dict[str, ShardFile]:
        return {name: file for name, file in sorted(self.files.items()) if file.split == split}

    def sidecars_of(self, split: str) -> dict[str, Sidecar]:
        return {name: file for name, file in sorted(self.sidecars.items()) if file.split == split}


def read_manifest(directory: AnyPath) -> Manifest | None:
    """The manifest of a directory, every field checked for its type; None where there is none (foreign shards)."""
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}.") from None
    if isinstance(content, dict) and content.get("version") != MANIFEST_VERSION:
        raise UserError(
            f"{path}: version {content.get('version')!r} is unknown; wanted {MANIFEST_VERSION}. {PREPARE_AGAIN}"
        )
    if isinstance(content, dict):
        content.setdefault("notes", [])  # which were not always kept
    manifest = _typed(Manifest, content, where=str(path))
    if manifest.dtype not in ("uint16", "uint32"):
        raise UserError(f"{path}: dtype is {manifest.dtype!r}; wanted uint16 or uint32.")
    for name, file in (manifest.files | manifest.sidecars).items():
        if file.split not in manifest.splits:
            raise UserError(f"{path}: {name} is of the split {file.split!r}, of which {MANIFEST_NAME} says nothing.")
    return manifest


def _typed(wanted: Any, value: Any, *, where: str) -> Any:
    """`value`, out of JSON, as the type `wanted`: int, str, a dict or list of such, or one of our dataclasses."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type) and isinstance(value, dict):
        hints = typing.get_type_hints(wanted)
        if value.keys() != hints.keys():
            wrong = sorted(value.keys() ^ hints.keys())
            raise UserError(f"{where}: missing or unknown field: {', '.join(wrong)}.")
        return wanted(**{name: _typed(hint, value[name], where=f"{where}: {name}") for name, hint in hints.items()})
    if typing.get_origin(wanted) is dict and isinstance(value, dict):
        inner = typing.get_args(wanted)[1]
        return {key: _typed(inner, item, where=f"{where}: {key}") for key, item in value.items()}
    if typing.get_origin(wanted) is list and isinstance(value, list):
        (inner,) = typing.get_args(wanted)
        return [_typed(inner, item, where=f"{where}: item {i}") for i, item in enumerate(value)]
    if typing.get_origin(wanted) is Literal and value in typing.get_args(wanted):
        return value
    if wanted is Any or type(value) is wanted:
        return value
    raise UserError(f"{where}: wanted {getattr(wanted, '__name__', wanted)}, got {value!r}.")
