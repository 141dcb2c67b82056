"""Whether prepared data is still what its manifest says.

At every start: a file whose size and times of change are those of its last check is taken to be unchanged. One of the
times is the system's own (ctime), which nobody can set back. Checked states are kept in `.verified.json` beside the
shards, if that can be written, so only the first start reads everything. A disk that loses bits changes no time;
`python -m gptjax.verify` reads everything on request.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Int

from gptjax.core.errors import UserError
from gptjax.core.file_sums import FileSum, find_damage, sum_file
from gptjax.core.files import AnyPath, write_atomically
from gptjax.data.file_array import FileArray, iter_chunks
from gptjax.data.manifest import MANIFEST_NAME, PREPARE_AGAIN, Manifest, Sidecar, read_manifest
from gptjax.data.shards import open_shard
from gptjax.data.splits import check_size, open_split
from gptjax.data.token_stream import TokenStream
from gptjax.process.console import print_once
from gptjax.process.progress import ReadProgress
from gptjax.tokenization.tokenizer import Tokenizer

VERIFIED_FILE = ".verified.json"
REPORT_BYTES = 2 * 10**9
"""Reading more than this takes long enough to be reported."""

FileStates = dict[str, list[int | str]]
"""[size, time of change, ctime, wanted SHA-256] by file name."""

_checked: dict[Path, FileStates] = {}
"""States that this process has checked, by directory: a read-only one keeps none."""


_opened: dict[Path, dict[str, tuple[int, int]]] = {}
"""Size and time of change of shards without a manifest when this process opened them, by directory and name."""


_manifests: dict[Path, Manifest] = {}
"""Manifests as they were when this process opened their directories."""
_RESTORE = "Put the file back, and resume from the last checkpoint, or prepare other data and begin anew."


def check_unchanged(directory: AnyPath, *, while_read: bool = False) -> None:
    """Raise a `UserError` that names the first file whose content is not what the manifest says.

    If it is checked `while_read`, the manifest must be the one with which this process opened the directory. Foreign
    shards, without a manifest, are then compared with themselves, as they were when this process opened them.
    """
    folder = Path(directory)
    manifest, begun_with = read_manifest(folder), _manifests.get(folder.absolute())
    if while_read and begun_with not in (None, manifest):
        raise UserError(f"{folder / MANIFEST_NAME} was replaced after this run began to read the data. {_RESTORE}")
    if manifest is None:
        found = {path.name: ((stat := path.stat()).st_size, stat.st_mtime_ns) for path in folder.glob("*.bin")}
        opened = _opened.get(folder.absolute(), {}) if while_read else {}
        for name, state in opened.items():
            if found.get(name) != state:
                what = "was written to" if name in found else "was removed"
                raise UserError(f"{folder / name} {what} after this run began to read it. {_RESTORE}")
        _opened[folder.absolute()] = opened or found
        return
    listed, states = manifest.files | manifest.sidecars, _stat_files(folder, manifest)
    is_kept = (folder / VERIFIED_FILE).is_file()
    known = _read_states(folder) if is_kept else _checked.get(folder.absolute(), {})
    new = [name for name, state in states.items() if known.get(name) != state]
    size = sum((folder / name).stat().st_size for name in new)
    if size > REPORT_BYTES:
        print_once(f"{folder}: reading {size / 1e9:.0f} GB once, to see that nothing has changed since it was prepared")
    progress = ReadProgress(folder, size)
    read = lambda name: sum_file(folder / name, on_read=progress.add).sha256
    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(new, pool.map(read, new), strict=True):
            if found != listed[name].sha256:
                what = f"its SHA-256 differs from {MANIFEST_NAME}; the content has changed"
                raise UserError(f"{folder / name}: {what}. {PREPARE_AGAIN}")
    _manifests[folder.absolute()] = manifest
    _keep_states(folder, states, is_new=bool(new))


def _keep_states(folder: Path, states: FileStates, *, is_new: bool) -> None:
    _checked[folder.absolute()] = states
    if is_new:
        with suppress(OSError):  # the directory may be read-only
            write_atomically(folder / VERIFIED_FILE, json.dumps(states))


def _stat_files(folder: Path, manifest: Manifest) -> FileStates:
    states: FileStates = {}
    for name, file in (manifest.files | manifest.sidecars).items():
        check_size(folder / name, file.bytes)
        found = (folder / name).stat()
        states[name] = [file.bytes, found.st_mtime_ns, found.st_ctime_ns, file.sha256]
    return states


def _read_states(folder: Path) -> FileStates:
    try:
        content = json.loads((folder / VERIFIED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def find_first_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids with one of which every conversation and every pair begins; empty if any may come first."""
    begins = {end for end in (tokenizer.begin_of_text, tokenizer.end_of_text) if end is not None}
    template = tokenizer.chat_template
    if begins and template is not None and not template.begins:  # pairs of texts still begin with them
        if not all(form.start for form in template.formats):
            return ()
        begins |= {i for form in template.formats if (i := tokenizer.specials.get(form.start)) is not None}
    return tuple(sorted(begins))


def check_documents(
    stream: TokenStream, end_of_text: int | None, *, first_tokens: Sequence[int] = (), per_file: int | None = None
) -> None:
    """Raise unless every document of a split (or `per_file` of them in every file) begins as its tokenizer says.

    This detects a file of another tokenizer, whatever its size, and a chat template that was changed. Without an index
    of documents there is nothing to compare.

    Args:
        end_of_text: the id that begins texts. None: they are not compared.
        first_tokens: those of `find_first_tokens`, for conversations and pairs. Empty: they are not compared.
    """
    starts, is_scored = stream.document_starts, stream.loss_mask is not None
    wanted = first_tokens if is_scored else () if end_of_text is None else (end_of_text,)
    if starts is None or not wanted:
        return
    what = f"the end-of-text id {end_of_text} of its tokenizer.json. The file is of another tokenizer, or altered"
    if is_scored:
        ids = " or ".join(map(str, wanted))
        what = f"{ids}, as its tokenizer and chat template write. The files are of others, or were altered"
    for path, begin, end in stream.list_file_spans():
        first, last = np.searchsorted(starts, [begin, end])
        step = 1 if per_file is None else max(1, (last - first) // per_file)
        for chunk in range(first, last, step * 2**16):
            places = starts[chunk : min(last, chunk + step * 2**16) : step]
            if places.max() >= len(stream):
                raise UserError(f"{stream.name}: a document begins beyond its end. {PREPARE_AGAIN}")
            wrong = np.flatnonzero(~np.isin(stream.take(places), wanted))
            if len(wrong):
                place = f"token {places[wrong[0]] - begin:,} begins a document"
                raise UserError(f"{path}: {place} but is not {what}. {PREPARE_AGAIN}")


def check_bytes(stream: TokenStream, bytes_per_token: Int[np.ndarray, " V"], wanted: int) -> None:
    """Raise unless a split's tokens stand for as many bytes of text as its manifest says."""
    parts = (part for path in stream.paths for _, part in iter_chunks(open_shard(path, format=stream.format)))
    found = sum(int(bytes_per_token[part].sum(dtype=np.int64)) for part in parts)
    if found != wanted:
        raise UserError(
            f"{stream.name}: its tokens stand for {found:,} bytes of text, {MANIFEST_NAME} says {wanted:,}. "
            f"{PREPARE_AGAIN}"
        )


def verify_shards(directory: AnyPath) -> Manifest:
    """Read every byte of a directory and compare it with its manifest: sizes, counts, hashes, ids below the vocabulary,
    documents in ascending order, loss masks of 0 and 1.

    Raises a `UserError` with a line for each damaged file, or at the first other difference. Returns the manifest, and
    records the files as checked. What needs the tokenizer is in `check_documents` and `check_bytes`.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: no {MANIFEST_NAME} to verify against.")
    sums = {name: FileSum(file.bytes, file.sha256) for name, file in (manifest.files | manifest.sidecars).items()}
    sums |= {name: _sum_of(folder / name, sha256) for name, sha256 in manifest.tokenizer_files.items()}
    if damage := find_damage(folder, sums):
        raise UserError("\n".join(f"{line}. {PREPARE_AGAIN}" for line in damage))
    _keep_states(folder, _stat_files(folder, manifest), is_new=True)
    for split in manifest.splits:
        if manifest.splits[split].tokens:
            open_split(folder, split)
    for name, file in manifest.files.items():
        tokens = open_shard(folder / name, format=manifest.format)
        if len(tokens) != file.tokens or tokens.dtype != np.dtype(manifest.dtype):
            raise UserError(f"{folder / name}: {len(tokens):,} {tokens.dtype} tokens, not as {MANIFEST_NAME} says.")
        largest = max((int(part.max()) for _, part in iter_chunks(tokens)), default=0)
        if largest >= manifest.vocab_size:
            raise UserError(f"{folder / name}: token {largest} is outside the vocabulary of {manifest.vocab_size}.")
    for name, sidecar in manifest.sidecars.items():
        _check_sidecar(folder / name, sidecar, tokens=manifest.splits[sidecar.split].tokens)
    return manifest


def _sum_of(path: Path, sha256: str) -> FileSum:
    """The sum of a file whose size the manifest does not say."""
    return FileSum(path.stat().st_size if path.is_file() else 0, sha256)


def _check_sidecar(path: Path, sidecar: Sidecar, *, tokens: int) -> None:
    """Raise unless a loss mask is 0 or 1, and documents begin one after another, each with at least a token."""
    if sidecar.kind == "scored":
        mask = FileArray(path, np.dtype(np.uint8))
        if max((int(part.max()) for _, part in iter_chunks(mask)), default=0) > 1:
            raise UserError(f"{path}: has marks other than 0 and 1. {PREPARE_AGAIN}")
        return
    before = -1
    for _, part in iter_chunks(FileArray(path, np.dtype(np.int64))):
        if (np.diff(part, prepend=before) <= 0).any() or part[-1] >= tokens:
            raise UserError(f"{path}: the documents do not begin one after another inside the split. {PREPARE_AGAIN}")
        before = part[-1]
