"""Shards that were made elsewhere, made known: `python -m data_pipelines.adopt data/fineweb --tokenizer=gpt2`

    llm.c's and modded-nanogpt's .bin files, as they are + manifest.json, tokenizer.json, an index of documents

Reads every token twice. From then on a file that was altered is named when a run starts, `data_pipelines.verify` checks
all of it, and bits per byte and samples need no further word. `fetch` does this with what it brings. The shards
themselves are not touched, but a run that began before does not resume on them: it knew them by samples only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from data_pipelines.companions import CompanionWriter
from gptjax.errors import UserError, explained
from gptjax.manifest import MANIFEST_NAME, Companion, Counts, Manifest, ShardFile, read_manifest
from gptjax.shards import TokenStream, file_sha256, files_of_split, open_shard, open_split, parts
from gptjax.tokenizer import Tokenizer, load_tokenizer

ADOPTED = {"made by": "others"}
"""What the manifest says of the request that made the shards."""


@dataclass(frozen=True)
class Adopt:
    """Write down what a directory of foreign shards holds."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Directory of .bin files with `train` or `val` in their names."""
    tokenizer: str = "gpt2"
    """Whose ids they hold: `gpt2`, `bytes`, a tokenizer.json or a directory with one."""


def adopt(directory: Path, tokenizer: Tokenizer) -> Manifest:
    """Index and hash the splits; prints a line for each. Adopting again, after files were added, begins anew.

    Raises `UserError` for a directory that was prepared here, and for ids that the tokenizer does not have.
    """
    check_adoptable(directory)
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    streams = {split: open_split(directory, split) for split in ("train", "val") if files_of_split(directory, split)}
    if not streams:
        raise UserError(f"{directory}: no .bin files with train or val in their names.")
    if len({stream.dtype for stream in streams.values()}) > 1:
        raise UserError(f"{directory}: shards of uint16 and of uint32 tokens are mixed.")
    splits: dict[str, Counts] = {}
    files: dict[str, ShardFile] = {}
    companions: dict[str, Companion] = {}
    for split, stream in streams.items():
        size = _bytes(stream, tokenizer)
        starts = _documents(stream, tokenizer)
        splits[split] = Counts(len(starts), len(stream), size)
        for path, begin, end in stream.spans():
            files[path.name] = ShardFile(split, end - begin, path.stat().st_size, file_sha256(path))
        if len(starts):
            index = CompanionWriter(directory, split, "documents")
            index.append(starts)
            companions |= index.finish()
        found = f"{len(starts):,} documents" if len(starts) else "no documents (it does not begin with <|endoftext|>)"
        print(f"{split:5} {len(stream):>14,} tokens, {size:,} bytes of text, {found}")
    tokenizer.save(directory)
    manifest = Manifest(
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=next(iter(streams.values())).dtype.name,
        splits=splits,
        files=files,
        companions=companions,
        request=ADOPTED,
    )
    manifest.write(directory)
    return manifest


def check_adoptable(directory: Path) -> None:
    """Raise unless whatever lies there was made by others."""
    known = read_manifest(directory)
    if known is not None and known.request != ADOPTED:
        raise UserError(f"{directory}: was prepared here; `python -m data_pipelines.verify` checks it.")


def _bytes(stream: TokenStream, tokenizer: Tokenizer) -> int:
    """Of UTF-8 that the tokens stand for; raises at an id that the tokenizer does not have."""
    size = 0
    for path in stream.paths:
        for begin, part in parts(open_shard(path)):
            if part.max() >= tokenizer.vocab_size:
                raise UserError(
                    f"{path}: token {begin + int(part.argmax()):,} is {part.max()}, outside the {tokenizer.vocab_size} "
                    f"tokens of {tokenizer.name}. Name the --tokenizer that made these shards."
                )
            size += int(tokenizer.bytes_per_token[part].sum(dtype=np.int64))
    return size


def _documents(stream: TokenStream, tokenizer: Tokenizer) -> np.ndarray:
    """Where documents begin; nothing where the tokens do not say."""
    starts = np.zeros(0, np.int64) if tokenizer.end_of_text is None else stream.find(tokenizer.end_of_text)
    return starts if len(starts) and starts[0] == 0 else starts[:0]


if __name__ == "__main__":
    with explained():
        request = tyro.cli(Adopt, prog="python -m data_pipelines.adopt")
        adopt(request.directory, load_tokenizer(request.tokenizer))
