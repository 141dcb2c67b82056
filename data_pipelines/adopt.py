"""Shards that were made elsewhere, made known: `python -m data_pipelines.adopt data/fineweb --tokenizer=gpt2`

    llm.c's and modded-nanogpt's .bin files, as they are + manifest.json, tokenizer.json, an index of documents

Reads every file twice. From then on a file that was altered is named when a run starts, `data_pipelines.verify` checks
all of it, and bits per byte and samples need no further word. `fetch` does this with what it brings. The shards
themselves are not touched, but a run that began before does not resume on them: it knew them by samples only.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from data_pipelines.companions import CompanionWriter
from data_pipelines.disk import locked
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.files import file_sha256
from gptjax.data.manifest import Counts, Manifest, ShardFile, Sidecar, read_manifest
from gptjax.data.shards import iter_chunks, open_shard
from gptjax.data.splits import list_split_files
from gptjax.data.token_stream import TokenStream
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from gptjax.tokenization.tokenizer_json import FILE_NAME

ADOPTED = {"made by": "others"}
"""What the manifest says of the request that made the shards."""
SPLITS = ("train", "val")
MANY = 30
"""Where so many documents are expected in a file, it is no chance if there are not even 1 / MANY of them."""


@dataclass(frozen=True)
class Adopt:
    """Write down what a directory of foreign shards holds."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Directory of .bin files with `train` or `val` in their names."""
    tokenizer: str | None = None
    """Whose ids they hold: `gpt2` (unless a tokenizer.json lies there), `bytes`, a tokenizer.json or a directory with
    one."""


def adopt(directory: Path, tokenizer: Tokenizer) -> Manifest:
    """Index and hash the splits; prints a line for each. Adopting again, after files were added, begins anew.

    What an earlier adoption wrote stays until all has been read. Raises `UserError` for a directory that was prepared
    here, and for ids that the tokenizer does not have.
    """
    check_adoptable(directory)
    found = {split: tuple(list_split_files(directory, split)) for split in SPLITS}
    if not any(found.values()):
        raise UserError(f"{directory}: no .bin files with train or val in their names.")
    streams = {split: TokenStream(paths, name=f"{directory} ({split})") for split, paths in found.items() if paths}
    if len({stream.dtype for stream in streams.values()}) > 1:
        raise UserError(f"{directory}: shards of uint16 and of uint32 tokens are mixed.")
    splits: dict[str, Counts] = {}
    files: dict[str, ShardFile] = {}
    companions: dict[str, Sidecar] = {}
    with locked(directory.absolute()), _workplace(directory / ".adopting") as new:
        for split, stream in streams.items():
            starts, size = _read(stream, tokenizer)
            splits[split] = Counts(len(starts), len(stream), size)
            for path, begin, end in stream.list_file_spans():
                files[path.name] = ShardFile(split, end - begin, path.stat().st_size, file_sha256(path))
            if len(starts):
                index = CompanionWriter(new, split, "documents")
                index.append(starts)
                companions |= index.finish()
            known = f"{len(starts):,} documents" if len(starts) else "no index (does not begin with <|endoftext|>)"
            print(f"{split:5} {len(stream):>14,} tokens, {size:,} bytes of text, {known}")
        for split in SPLITS:
            name = f"{split}.documents"
            if name in companions:
                os.replace(new / name, directory / name)
            else:
                (directory / name).unlink(missing_ok=True)
        tokenizer.save(directory)
        manifest = Manifest(
            tokenizer=tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            dtype=next(iter(streams.values())).dtype.name,
            splits=splits,
            files=files,
            sidecars=companions,
            request=ADOPTED,
        )
        manifest.write(directory)
    return manifest


@contextlib.contextmanager
def _workplace(directory: Path) -> Iterator[Path]:
    """An empty directory, gone afterwards; what a kill left of it goes first."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def tokenizer_of(directory: Path, spec: str | None) -> Tokenizer:
    """The tokenizer asked for, by default the one that lies in the directory, else GPT-2's; another one there is a
    `UserError`, for it may be the only copy."""
    beside = directory / FILE_NAME
    if not beside.is_file():
        return load_tokenizer(spec or "gpt2")
    there = load_tokenizer(beside)
    if spec is not None and load_tokenizer(spec).fingerprint != there.fingerprint:
        raise UserError(f"{beside}: is another tokenizer ({there.name}) than {spec!r}. Move one of them away.")
    return there


def check_adoptable(directory: Path) -> None:
    """Raise unless whatever lies there was made by others."""
    known = read_manifest(directory)
    if known is not None and known.request != ADOPTED:
        raise UserError(f"{directory}: was prepared here; `python -m data_pipelines.verify` checks it.")


def is_adopted(directory: Path) -> bool:
    """Whether the manifest names exactly the shards that lie there."""
    known = read_manifest(directory)
    there = {path.name: path.stat().st_size for split in SPLITS for path in list_split_files(directory, split)}
    return known is not None and {name: file.bytes for name, file in known.files.items()} == there


def _read(stream: TokenStream, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """Where documents begin, nothing where the tokens do not say; and the bytes of UTF-8 that they stand for.

    Raises at an id that the tokenizer does not have, and for a file with next to no ends of text among others of many.
    """
    starts, size = [np.zeros(0, np.int64)], 0
    for path, first, _ in stream.list_file_spans():
        for begin, part in iter_chunks(open_shard(path)):
            if part.max() >= tokenizer.vocab_size:
                raise UserError(
                    f"{path}: token {begin + int(part.argmax()):,} is {part.max()}, outside the {tokenizer.vocab_size} "
                    f"tokens of {tokenizer.name}. Name the --tokenizer that made these shards."
                )
            size += int(tokenizer.bytes_per_token[part].sum(dtype=np.int64))
            if tokenizer.end_of_text is not None:
                starts.append(first + begin + np.flatnonzero(part == tokenizer.end_of_text))
    found = np.concatenate(starts)
    _check_alike(stream, found)
    return (found if len(found) and found[0] == 0 else found[:0]), size


def _check_alike(stream: TokenStream, starts: np.ndarray) -> None:
    """Raise for a file in which documents begin far more rarely than in the rest: its ids mean something else."""
    for path, begin, end in stream.list_file_spans():
        own = int(np.searchsorted(starts, end) - np.searchsorted(starts, begin))
        rest = len(stream) - (end - begin)
        expected = (len(starts) - own) * (end - begin) / rest if rest else 0.0
        if expected >= MANY and own < expected / MANY:
            raise UserError(
                f"{path}: {own} documents begin in it, where by the other files of its split it would be about "
                f"{expected:,.0f}. It was made with another tokenizer, or of much longer texts: give it a directory of "
                "its own."
            )


if __name__ == "__main__":
    with exit_on_user_error():
        request = tyro.cli(Adopt, prog="python -m data_pipelines.adopt")
        directory = request.directory.expanduser()
        adopt(directory, tokenizer_of(directory, request.tokenizer))
