"""manifest.json: what a directory of shards must contain. It is written last, so its presence means completeness."""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptjax.core.errors import UserError
from gptjax.core.files import AnyPath, hash_json, write_atomically
from gptjax.data.shards import Format

PREFERENCES = "preferences"
"""The kind that the request of pairs records."""
MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 2
PREPARE_AGAIN = "Prepare the data again, with --overwrite; if others made it, fetch or copy it again."
"""Advice for files that do not fit their manifest."""
_OWN_SUM_KEY = "sha256"
_SIDECARS_KEY = "companions"
"""The name of `Manifest.sidecars` in the file."""


@dataclass(frozen=True)
class Counts:
    """The size of a split: documents, tokens (end-of-text ids included) and bytes of UTF-8 text."""

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
    """A file `SPLIT.KIND` with facts about a split's tokens; its size in bytes and its SHA-256.

    - `documents`: where each document begins, counted in tokens of the split: int64, little-endian, ascending from 0.
    - `scored`: the loss mask, a byte for each token: 1 if its prediction is scored, 0 if not (a prompt, say).
    """

    split: str
    kind: Literal["documents", "scored"]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards must contain. `tokenizer` is a name for people, `fingerprint` identifies it.

    `request` records what the pipeline was asked for, so that the same request finds its work done. `notes` are the
    lines of its report about problems of the source.
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
    format: Format = "shards"
    """How the tokens of others are stored that were recorded in place."""
    tokenizer_files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files beside the shards that `Tokenizer.save` wrote."""

    def write(self, directory: AnyPath) -> None:
        """Write `manifest.json`, with the SHA-256 of its own content. Do it last."""
        content = dataclasses.asdict(self).items()
        content = {_SIDECARS_KEY if name == "sidecars" else name: value for name, value in content}
        if self.format == "shards":
            del content["format"]  # as in older files
        content[_OWN_SUM_KEY] = hash_json(content)
        write_atomically(Path(directory) / MANIFEST_NAME, json.dumps(content, indent=2) + "\n")

    def files_of(self, split: str) -> dict[str, ShardFile]:
        return {name: file for name, file in sorted(self.files.items()) if file.split == split}

    def sidecars_of(self, split: str) -> dict[str, Sidecar]:
        return {name: file for name, file in sorted(self.sidecars.items()) if file.split == split}


def read_manifest(directory: AnyPath) -> Manifest | None:
    """The manifest of a directory, every field checked for its type; None if there is none (foreign shards)."""
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}.") from None
    if isinstance(content, dict):
        if (version := content.get("version")) != MANIFEST_VERSION:
            raise UserError(f"{path}: version {version!r} is unknown; wanted {MANIFEST_VERSION}. {PREPARE_AGAIN}")
        own = content.pop(_OWN_SUM_KEY, None)
        if own is not None and own != hash_json(content):
            raise UserError(f"{path} has changed since it was written: its own SHA-256 differs. {PREPARE_AGAIN}")
        content = {"sidecars" if name == _SIDECARS_KEY else name: value for name, value in content.items()}
        content = {"notes": [], "format": "shards", "tokenizer_files": {}} | content  # older files have none of them
    manifest = _parse(Manifest, content, where=str(path))
    if manifest.dtype not in ("uint16", "uint32"):
        raise UserError(f"{path}: dtype is {manifest.dtype!r}; wanted uint16 or uint32.")
    for name, file in (manifest.files | manifest.sidecars).items():
        if file.split not in manifest.splits:
            raise UserError(f"{path}: {name} is of the split {file.split!r}, of which {MANIFEST_NAME} says nothing.")
    return manifest


def _parse(wanted: Any, value: Any, *, where: str) -> Any:
    """`value`, from JSON, as the type `wanted`: int, str, a dict or list of such, or one of our dataclasses."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type) and isinstance(value, dict):
        hints = typing.get_type_hints(wanted)
        if value.keys() != hints.keys():
            wrong = sorted(value.keys() ^ hints.keys())
            raise UserError(f"{where}: missing or unknown field: {', '.join(wrong)}.")
        return wanted(**{name: _parse(hint, value[name], where=f"{where}: {name}") for name, hint in hints.items()})
    if typing.get_origin(wanted) is dict and isinstance(value, dict):
        inner = typing.get_args(wanted)[1]
        return {key: _parse(inner, item, where=f"{where}: {key}") for key, item in value.items()}
    if typing.get_origin(wanted) is list and isinstance(value, list):
        (inner,) = typing.get_args(wanted)
        return [_parse(inner, item, where=f"{where}: item {i}") for i, item in enumerate(value)]
    if typing.get_origin(wanted) is Literal and value in typing.get_args(wanted):
        return value
    if wanted is Any or type(value) is wanted:
        return value
    raise UserError(f"{where}: wanted {getattr(wanted, '__name__', wanted)}, got {value!r}.")
