"""Is prepared data still what its manifest says? In full on request, and what has changed since at every start.

The one idea: a file whose size and times of change are as they were when its hash was last right is taken to be
unchanged; one of the times is the system's own (ctime), which nobody can set back. What was found right is noted in
`.verified.json` beside the shards, if that can be written; so only the first start reads everything, and later ones
what is new to them. What a disk loses by itself changes no time: for that there is `data_pipelines.verify`.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Int

from gptjax.core.console import print_once
from gptjax.core.errors import UserError
from gptjax.core.files import write_atomically
from gptjax.data.manifest import MANIFEST_NAME, PREPARE_AGAIN, AnyPath, Manifest, ShardFile, Sidecar, read_manifest
from gptjax.data.shards import TokenStream, check_size, file_sha256, iter_chunks, map_file, open_shard, open_split

VERIFIED_FILE = ".verified.json"
REPORT_BYTES = 2 * 10**9
"""Bytes to be read before training that a person should know of: some seconds."""


def check_unchanged(directory: AnyPath) -> None:
    """Raise a `UserError` that names the first file whose content is not what the manifest says.

    Foreign shards, without a manifest, have nothing to be compared with.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    if manifest is None:
        return
    listed, known, states = manifest.files | manifest.sidecars, _noted(folder), _states(folder, manifest)
    new = [name for name, state in states.items() if known.get(name) != state]
    size = sum((folder / name).stat().st_size for name in new)
    if size > REPORT_BYTES:
        print_once(f"{folder}: reading {size / 1e9:.0f} GB once, to see that nothing has changed since it was prepared")
    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(new, pool.map(file_sha256, [folder / name for name in new]), strict=True):
            _check_sha256(folder / name, found, listed[name].sha256)
    if new:
        _note(folder, states)


def _note(folder: Path, states: dict[str, list[int | str]]) -> None:
    with suppress(OSError):  # data may lie where nothing can be written
        write_atomically(folder / VERIFIED_FILE, json.dumps(states))


def _states(folder: Path, manifest: Manifest) -> dict[str, list[int | str]]:
    listed = manifest.files | manifest.sidecars
    return {name: _state(folder / name, file) for name, file in listed.items()}


def _state(path: Path, file: ShardFile | Sidecar) -> list[int | str]:
    check_size(path, file.bytes)
    found = path.stat()
    return [file.bytes, found.st_mtime_ns, found.st_ctime_ns, file.sha256]


def _noted(folder: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads((folder / VERIFIED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_documents(stream: TokenStream, end_of_text: int | None, *, each: int | None = None) -> None:
    """Raise unless every document of a split begins with the end-of-text id, or `each` so many of every file do.

    A file that was made with another tokenizer gives itself away here, whatever its size. Without an index of
    documents, or an id to look for, there is nothing to compare.
    """
    starts = stream.document_starts
    if starts is None or end_of_text is None:
        return
    for path, begin, end in stream.file_spans():
        first, last = np.searchsorted(starts, [begin, end])
        step = 1 if each is None else max(1, (last - first) // each)
        for chunk in range(first, last, step * 2**16):
            places = np.asarray(starts[chunk : min(last, chunk + step * 2**16) : step])
            if places.max() >= len(stream):
                raise UserError(f"{stream.name}: a document begins beyond its end. {PREPARE_AGAIN}")
            wrong = np.flatnonzero(stream.take(places) != end_of_text)
            if len(wrong):
                raise UserError(
                    f"{path}: token {places[wrong[0]] - begin:,} begins a document but is not the end-of-text id "
                    f"{end_of_text} of its tokenizer.json. The file is of another tokenizer, or altered. "
                    f"{PREPARE_AGAIN}"
                )


def check_bytes(stream: TokenStream, bytes_per_token: Int[np.ndarray, " V"], wanted: int) -> None:
    """Raise unless a split's tokens stand for as many bytes of text as its manifest says."""
    found = sum(
        int(bytes_per_token[part].sum(dtype=np.int64))
        for path in stream.paths
        for _, part in iter_chunks(open_shard(path))
    )
    if found != wanted:
        raise UserError(
            f"{stream.name}: its tokens stand for {found:,} bytes of text, {MANIFEST_NAME} says {wanted:,}. {PREPARE_AGAIN}"
        )


def verify_shards(directory: AnyPath) -> Manifest:
    """Read every byte of a directory and compare it with its manifest: sizes, counts, hashes, ids below the vocabulary,
    documents in ascending order, marks of 0 and 1.

    Raises `UserError` at the first difference; returns the manifest, and notes for the next start that all is whole.
    What needs the tokenizer is `check_documents` and `check_bytes`.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: no {MANIFEST_NAME} to verify against.")
    for split in manifest.splits:
        if manifest.splits[split].tokens:
            open_split(folder, split)
    states = _states(folder, manifest)
    for name, file in manifest.files.items():
        tokens = open_shard(folder / name)
        if len(tokens) != file.tokens or tokens.dtype != np.dtype(manifest.dtype):
            raise UserError(f"{folder / name}: {len(tokens):,} {tokens.dtype} tokens, not as {MANIFEST_NAME} says.")
        _check_sha256(folder / name, file_sha256(folder / name), file.sha256)
        largest = max((int(part.max()) for _, part in iter_chunks(tokens)), default=0)
        if largest >= manifest.vocab_size:
            raise UserError(f"{folder / name}: token {largest} is outside the vocabulary of {manifest.vocab_size}.")
    for name, companion in manifest.sidecars.items():
        check_size(folder / name, companion.bytes)
        _check_sha256(folder / name, file_sha256(folder / name), companion.sha256)
        _check_companion(folder / name, companion, tokens=manifest.splits[companion.split].tokens)
    _note(folder, states)
    return manifest


def _check_sha256(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise UserError(f"{path}: its SHA-256 differs from {MANIFEST_NAME}; the content has changed. {PREPARE_AGAIN}")


def _check_companion(path: Path, companion: Sidecar, *, tokens: int) -> None:
    """Marks are 0 or 1; documents begin one after another, inside the split, each with at least a token."""
    if companion.kind == "scored":
        marks = map_file(path, np.dtype(np.uint8), offset=0, count=companion.bytes)
        if max((int(part.max()) for _, part in iter_chunks(marks)), default=0) > 1:
            raise UserError(f"{path}: has marks other than 0 and 1. {PREPARE_AGAIN}")
        return
    starts = map_file(path, np.dtype(np.int64), offset=0, count=companion.bytes // 8)
    before = -1
    for _, part in iter_chunks(starts):
        if (np.diff(part, prepend=before) <= 0).any() or part[-1] >= tokens:
            raise UserError(f"{path}: the documents do not begin one after another inside the split. {PREPARE_AGAIN}")
        before = part[-1]
