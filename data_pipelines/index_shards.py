"""Index token shards of another project: `python -m data_pipelines.index_shards data/fineweb --tokenizer=gpt2`

It writes manifest.json, tokenizer.json and an index of documents; the shards themselves do not change. Afterwards a run
names an altered file when it starts, and `data_pipelines.verify` checks everything. `fetch` does this with the shards
that it brings. A run that began without the index does not resume on it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from data_pipelines.output.atomic_dir import hold_lock
from data_pipelines.output.shard_writer import write_manifest
from data_pipelines.runtime.options import run_command
from gptjax.core.errors import UserError
from gptjax.core.files import write_atomically
from gptjax.data.manifest import Counts, Manifest, read_manifest
from gptjax.data.shards import iter_chunks, open_shard
from gptjax.data.splits import list_split_files
from gptjax.data.token_stream import TokenStream
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from gptjax.tokenization.tokenizer_json import FILE_NAME

FOREIGN_REQUEST = {"made by": "others"}
"""The request in the manifest of shards that were not prepared here."""
SPLITS = ("train", "val")


@dataclass(frozen=True)
class IndexShards:
    """Write a manifest and an index of documents for shards of another project."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Directory of .bin files with `train` or `val` in their names."""
    tokenizer: str | None = None
    """Whose ids they hold: `gpt2` (the default without a tokenizer.json beside them), `bytes`, a tokenizer.json or a
    directory with one."""
    end_of_text: str | None = None
    """As for `prepare`: the special token that begins documents."""


def index_shards(directory: Path, tokenizer: Tokenizer) -> Manifest:
    """Index and hash the splits; prints a line for each. Run it again after files were added.

    An earlier index stays until all ids have been read. Raises `UserError` for a directory that was prepared here, and
    for ids that the tokenizer does not have.
    """
    check_foreign(directory)
    found = {split: tuple(list_split_files(directory, split)) for split in SPLITS}
    streams = {split: TokenStream(paths, name=f"{directory} ({split})") for split, paths in found.items() if paths}
    dtypes = {stream.dtype for stream in streams.values()}
    if len(dtypes) != 1:
        wrong = "shards of uint16 and of uint32 tokens are mixed" if dtypes else "no .bin files with train or val"
        raise UserError(f"{directory}: {wrong}.")
    counts: dict[str, Counts] = {}
    with hold_lock(directory.absolute()):
        indexes = {split: _read_split(stream, tokenizer) for split, stream in streams.items()}
        for split in SPLITS:
            (directory / f"{split}.documents").unlink(missing_ok=True)
        for split, (starts, size) in indexes.items():
            if len(starts):
                write_atomically(directory / f"{split}.documents", starts.astype("<i8").tobytes())
            counts[split] = Counts(len(starts), len(streams[split]), size)
            known = f"{len(starts):,} documents" if len(starts) else "no index (does not begin with the end of text)"
            print(f"{split:5} {len(streams[split]):>14,} tokens, {size:,} bytes of text, {known}")
        return write_manifest(directory, counts, tokenizer=tokenizer, request=FOREIGN_REQUEST, dtype=dtypes.pop())


def choose_tokenizer(directory: Path, spec: str | None) -> Tokenizer:
    """The tokenizer of `spec`, by default the one in the directory, else GPT-2's.

    Raises `UserError` where the directory holds another one, which may be the only copy.
    """
    path = directory / FILE_NAME
    tokenizer = load_tokenizer(path if path.is_file() else spec or "gpt2")
    if spec is not None and load_tokenizer(spec).fingerprint != tokenizer.fingerprint:
        raise UserError(f"{path}: is another tokenizer ({tokenizer.name}) than {spec!r}. Move one of them away.")
    return tokenizer


def check_foreign(directory: Path) -> None:
    """Raise `UserError` for a directory that was prepared here."""
    manifest = read_manifest(directory)
    if manifest is not None and manifest.request != FOREIGN_REQUEST:
        raise UserError(f"{directory}: was prepared here; `python -m data_pipelines.verify` checks it.")


def is_indexed(directory: Path) -> bool:
    """Return whether the manifest lists exactly the shards in the directory."""
    manifest = read_manifest(directory)
    sizes = {path.name: path.stat().st_size for split in SPLITS for path in list_split_files(directory, split)}
    return manifest is not None and {name: file.bytes for name, file in manifest.files.items()} == sizes


def _read_split(stream: TokenStream, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """Find the starts of documents (none if the split does not begin with one) and the bytes of UTF-8."""
    size = 0
    for path in stream.paths:
        for begin, part in iter_chunks(open_shard(path)):
            if part.max() >= tokenizer.vocab_size:
                raise UserError(
                    f"{path}: token {begin + int(part.argmax()):,} is {part.max()}, outside the {tokenizer.vocab_size} "
                    f"tokens of {tokenizer.name}. Name the --tokenizer that made these shards."
                )
            size += int(tokenizer.bytes_per_token[part].sum(dtype=np.int64))
    starts = stream.find_token(-1 if tokenizer.end_of_text is None else tokenizer.end_of_text)
    return (starts if len(starts) and starts[0] == 0 else starts[:0]), size


def main(request: IndexShards) -> None:
    """Index with the tokenizer that the request names."""
    directory = request.directory.expanduser()
    index_shards(directory, choose_tokenizer(directory, request.tokenizer))


if __name__ == "__main__":
    run_command(main, IndexShards)
