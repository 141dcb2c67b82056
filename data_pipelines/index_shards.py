"""Index token files of another project: `python -m data_pipelines.index_shards --help`.

    python -m data_pipelines.index_shards data/fineweb --tokenizer=gpt2
    python -m data_pipelines.index_shards data/megatron --tokenizer=tokenizer.json --output=data/own

It writes manifest.json, tokenizer.json and an index of documents; the shards themselves do not change. Afterwards a run
names an altered file when it starts, and `data_pipelines.verify` checks everything. `fetch` does this with the shards
that it brings. A run that began without the index does not resume on it.

Files that the loader cannot map (Megatron's `.idx` and `.bin`, MDS, `.npy`, int64) are copied to OUTPUT as shards.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from data_pipelines.foreign_tokens import TokenFiles, find_foreign
from data_pipelines.output.atomic_dir import hold_lock, replace_directory
from data_pipelines.output.build import print_splits
from data_pipelines.output.shard_writer import SplitWriter, write_manifest
from data_pipelines.readers.nanogpt_meta import META_FILE, read_characters
from data_pipelines.runtime.options import run_command
from data_pipelines.runtime.progress import print_notes
from gptjax.core.errors import UserError, count_of
from gptjax.core.files import check_free, expand_path, write_atomically
from gptjax.data.file_array import iter_chunks
from gptjax.data.manifest import Counts, Manifest, read_manifest
from gptjax.data.shards import Format, guess_width, has_header, load_shard_tokenizer, open_shard, token_dtype
from gptjax.data.splits import list_split_files
from gptjax.data.token_stream import TokenStream
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer, note_left_out
from gptjax.tokenization.tokenizer_json import FILE_NAME

FOREIGN_REQUEST = {"made by": "others"}
"""The request in the manifest of shards that were not prepared here."""
SPLITS = ("train", "val")
SMALL_TOKENS = 100_000
"""As many tokens are enough for validation."""
SHARD_TOKENS = 100_000_000
"""Tokens of a file that is copied."""


@dataclass(frozen=True)
class IndexShards:
    """Write a manifest and an index of documents for shards of another project."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Directory of .bin files with `train` or `val` in their names; with an output, also .npy, .idx or MDS files."""
    tokenizer: str | None = None
    """Whose ids they hold: `gpt2` (the default without a tokenizer.json or nanoGPT's meta.pkl beside them), `bytes`, a
    tokenizer.json or a directory with one."""
    end_of_text: str | None = None
    """As for `prepare`: the special token that begins documents."""
    output: Path | None = None
    """Copy the tokens to this new directory instead, as shards of ours, each document behind an end of text."""


def index_shards(directory: Path, tokenizer: Tokenizer, *, format: Format = "shards") -> Manifest:
    """Index and hash the splits; prints a line for each. Run it again after files were added.

    An earlier index stays until all ids have been read. Raises `UserError` for a directory that was prepared here, and
    for ids that the tokenizer does not have.
    """
    check_foreign(directory)
    found = {split: tuple(list_split_files(directory, split)) for split in SPLITS}
    streams = {
        split: TokenStream(paths, name=f"{directory} ({split})", format=format)
        for split, paths in found.items()
        if paths
    }
    dtypes = {stream.dtype for stream in streams.values()}
    if len(dtypes) != 1:
        wrong = "shards of uint16 and of uint32 tokens are mixed" if dtypes else "no .bin files with train or val"
        raise UserError(f"{directory}: {wrong}.")
    counts: dict[str, Counts] = {}
    with hold_lock(directory.absolute()):
        indexes = {split: _read_split(stream, tokenizer) for split, stream in streams.items()}
        for split in SPLITS:
            (directory / f"{split}.documents").unlink(missing_ok=True)
        _note_small_ids(max(largest for _, _, largest in indexes.values()), tokenizer)
        for split, (starts, size, _) in indexes.items():
            if len(starts):
                write_atomically(directory / f"{split}.documents", starts.astype("<i8").tobytes())
            counts[split] = Counts(len(starts), len(streams[split]), size)
            known = (
                f"{count_of(len(starts), 'documents')}"
                if len(starts)
                else "no index (does not begin with the end of text)"
            )
            print(f"{split:5} {len(streams[split]):>14,} tokens, {size:,} bytes of text, {known}")
        return write_manifest(
            directory, counts, tokenizer=tokenizer, request=FOREIGN_REQUEST, dtype=dtypes.pop(), format=format
        )


def find_format(directory: Path) -> Format:
    """The format of the `.bin` files: by their header or, without one, by a look at their values.

    Raises `UserError` for files that the loader cannot map.
    """
    found: set[Format] = set()
    for path in [path for split in SPLITS for path in list_split_files(directory, split)]:
        width = None if has_header(path) else guess_width(path)
        if width == 8 or path.with_suffix(".idx").exists():
            what = "holds 64-bit ids" if width == 8 else "belongs to an index of Megatron-LM"
            raise UserError(f"{path}: {what}, which cannot be read in place. Give --output=DIR to copy the tokens.")
        found.add("raw-uint32" if width == 4 else "raw-uint16" if width == 2 else "shards")
    if len(found) > 1:
        raise UserError(f"{directory}: files of several kinds are mixed ({', '.join(sorted(found))}).")
    if not found:
        others = "no .bin files with train or val in their names"
        raise UserError(f"{directory}: {others}. Give --output=DIR to copy .npy, Megatron's or MDS's files.")
    return found.pop()


def copy_tokens(source: Path, output: Path, tokenizer: Tokenizer) -> Manifest:
    """Copy the token files of another project to a new directory of shards; prints a line for each split."""
    files, output = find_foreign(source), expand_path(output).resolve()
    check_free(output)
    with hold_lock(output), replace_directory(output) as directory:
        counts = _copy_splits(directory, files, tokenizer)
        request = {"made by": "others", "source": str(source.absolute())}
        write_manifest(directory, counts, tokenizer=tokenizer, request=request)
    manifest = read_manifest(output)
    assert manifest is not None
    print_splits(output, manifest, advice="Bring more tokens, for validation in files with val in their names.")
    if "val" not in files:
        size = f"{manifest.splits['val'].tokens:,} tokens at the end" if "val" in manifest.splits else "none"
        print_notes([f"no file names a validation split; it is {size}"])
    return manifest


def _copy_splits(directory: Path, files: dict[str, TokenFiles], tokenizer: Tokenizer) -> dict[str, Counts]:
    """Write the shards of all splits that have tokens."""
    dtype, writers, largest = token_dtype(tokenizer.vocab_size), dict[str, SplitWriter](), -1
    with contextlib.ExitStack() as stack:
        for split, tokens in _iter_splits(files, tokenizer):
            if len(tokens) and split not in writers:
                if tokenizer.end_of_text not in (None, tokens[0]):  # validation begins within a document
                    tokens = np.insert(tokens, 0, tokenizer.end_of_text)
                writer = SplitWriter(directory, split, dtype=dtype, shard_tokens=SHARD_TOKENS)
                writers[split] = stack.enter_context(contextlib.closing(writer))
            if len(tokens):
                starts = np.flatnonzero(tokens == tokenizer.end_of_text)
                largest = max(largest, _find_largest(tokens, tokenizer))
                size = int(tokenizer.bytes_per_token[tokens].sum(dtype=np.int64))
                writers[split].append(tokens.astype(dtype), starts, size=size)
        for writer in writers.values():
            writer.finish()
    if "train" not in writers:
        raise UserError("The files hold no tokens for training.")
    _note_small_ids(largest, tokenizer)
    return {split: writer.counts for split, writer in writers.items()}


def _iter_splits(files: dict[str, TokenFiles], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (split, ids). Where no files are of the validation split, it is the end of the others."""
    for split, found in files.items():
        left = sys.maxsize if split == "val" or "val" in files else _count_for_training(found)
        for number, tokens in enumerate(_iter_parts(found, tokenizer)):
            cut = len(tokens)
            if left <= 0 or (left < cut and found.are_documents and number):
                cut = 0
            elif left < cut and not found.are_documents:
                cut = _find_cut(tokens, left, tokenizer.end_of_text)
            yield split, tokens[:cut]
            yield "val", tokens[cut:]
            left -= len(tokens)


def _find_cut(tokens: np.ndarray, left: int, end: int | None) -> int:
    """Where validation begins, near `left`: at the start of a document, unless a single one takes all the place."""
    starts = np.flatnonzero(tokens == end)
    later, earlier = starts[starts >= left], starts[(starts > 0) & (starts < left)]
    return int(later[0] if len(later) else earlier[-1] if len(earlier) else left)


def _count_for_training(files: TokenFiles) -> int:
    """How many tokens come before the validation split: all but 0.5 %, of few tokens all but 10 %."""
    total = sum(len(chunk) for path in files.paths for chunk in files.read(path))
    return total - int(max(0.005 * total, min(0.1 * total, SMALL_TOKENS)))


def _iter_parts(files: TokenFiles, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield checked ids, documents whole. They begin with the end of text, wherever the source has it."""
    end = tokenizer.end_of_text
    before = np.array([] if end is None else [end], token_dtype(tokenizer.vocab_size))
    for path in files.paths:
        for number, chunk in enumerate(files.read(path)):
            tokens = _check_ids(chunk, tokenizer, path).astype(before.dtype)
            if files.are_documents:
                tokens = _strip(tokens, end)
            if end is not None and (files.are_documents or (number == 0 and tokens[:1].tolist() != [end])):
                tokens = np.concatenate([before, tokens])
            yield tokens


def _strip(tokens: np.ndarray, end: int | None) -> np.ndarray:
    """A document without an end of text before or behind it."""
    kept = np.flatnonzero(tokens != end) if end is not None else np.arange(len(tokens))
    return tokens[kept[0] : kept[-1] + 1] if len(kept) else tokens[:0]


def _check_ids(tokens: np.ndarray, tokenizer: Tokenizer, path: Path) -> np.ndarray:
    low, high = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
    if low < 0 or high >= tokenizer.vocab_size:
        raise UserError(
            f"{path}: holds the id {low if low < 0 else high}, outside the {tokenizer.vocab_size} tokens of "
            f"{tokenizer.name}. Name the --tokenizer that made these files."
        )
    return tokens


def choose_tokenizer(directory: Path, spec: str | None, *, end_of_text: str | None = None) -> Tokenizer:
    """The tokenizer of `spec`, by default the one in the directory, which may be nanoGPT's meta.pkl, else GPT-2's.

    Raises `UserError` where the directory holds another one, which may be the only copy.
    """
    path, meta = directory / FILE_NAME, directory / META_FILE
    if spec is None and not path.is_file() and meta.is_file() and (characters := read_characters(meta)) is not None:
        return characters
    name = path if path.is_file() else spec or "gpt2"
    tokenizer = note_left_out(load_shard_tokenizer(name, end_of_text=end_of_text), name)
    if spec is not None and load_tokenizer(spec, end_of_text=end_of_text).fingerprint != tokenizer.fingerprint:
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


def _note_small_ids(largest: int, tokenizer: Tokenizer) -> None:
    """Tell where all ids are small: then they may be characters, or of a smaller tokenizer."""
    if 0 <= largest < tokenizer.vocab_size // 32:
        other = f"If {tokenizer.name} did not make these files, name the --tokenizer that did."
        print_notes([f"the largest id is {largest}, of {tokenizer.vocab_size:,}. {other}"])


def _find_largest(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """The largest id but for the end of text, which is large however small those of texts are; -1 without one."""
    others = tokens if tokenizer.end_of_text is None else tokens[tokens != tokenizer.end_of_text]
    return int(others.max()) if len(others) else -1


def _read_split(stream: TokenStream, tokenizer: Tokenizer) -> tuple[np.ndarray, int, int]:
    """Find the starts of documents (none if the split does not begin with one), the bytes of UTF-8, the largest id."""
    size, largest = 0, -1
    for path in stream.paths:
        for begin, part in iter_chunks(open_shard(path, format=stream.format)):
            if part.max() >= tokenizer.vocab_size:
                raise UserError(
                    f"{path}: token {begin + int(part.argmax()):,} is {part.max()}, outside the {tokenizer.vocab_size} "
                    f"tokens of {tokenizer.name}. Name the --tokenizer that made these shards."
                )
            size += int(tokenizer.bytes_per_token[part].sum(dtype=np.int64))
            largest = max(largest, _find_largest(part, tokenizer))
    starts = stream.find_token(-1 if tokenizer.end_of_text is None else tokenizer.end_of_text)
    return (starts if len(starts) and starts[0] == 0 else starts[:0]), size, largest


def main(request: IndexShards) -> None:
    """Index or copy with the tokenizer that the request names."""
    directory = expand_path(request.directory)
    if directory.is_file():
        raise UserError(f"{directory}: is a file. Give the directory that holds it: {directory.absolute().parent}")
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory of token files.")
    tokenizer = choose_tokenizer(directory, request.tokenizer, end_of_text=request.end_of_text)
    if request.output is not None:
        copy_tokens(directory, request.output, tokenizer)
    else:
        index_shards(directory, tokenizer, format=find_format(directory))
    if problem := tokenizer.explain_no_end_of_text():
        print_notes([problem])


if __name__ == "__main__":
    run_command(main, IndexShards)
