"""The steps that every command takes to write a directory of shards."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.output.atomic_dir import PROGRESS_NAME, find_prepared, hold_lock, replace_directory
from data_pipelines.output.shard_writer import write_manifest
from data_pipelines.runtime.options import ShardOptions
from data_pipelines.runtime.progress import print_notes
from data_pipelines.runtime.split_specs import enlarge_split, find_used_split
from gptjax.core.errors import UserError, count_of
from gptjax.core.files import expand_path
from gptjax.data.manifest import PREFERENCES, Counts, Manifest
from gptjax.data.splits import open_split
from gptjax.tokenization.tokenizer import Tokenizer

VALIDATION_TOKENS = 10_000
"""The loss of fewer tokens says more of these documents than of the model."""
ROW_TOKENS = 1024
"""A split of texts with fewer tokens gets a note: many a model reads as many at once."""


ShardContents = tuple[dict[str, Counts], Tokenizer, list[str]]
"""What the shards in a directory hold, whose tokens they are, and the notes of reading the source."""


def build_shards(
    options: ShardOptions,
    compute_identity: Callable[[], dict[str, Any]],
    *,
    write: Callable[[Path, dict[str, Any]], ShardContents],
    what: str = "text",
    former: Mapping[str, Any] = {},
) -> Manifest:
    """Make `options.output` by `write(directory, identity)`, unless the same request made it; prints a summary.

    The identity is JSON that decides the output; `former` has values of it that count as the same. `what` names the
    contents in errors.
    """
    identity, start = compute_identity(), time.perf_counter()
    output = expand_path(options.output).resolve()
    with hold_lock(output):
        if (manifest := find_prepared(output, identity, overwrite=options.overwrite, former=former)) is not None:
            return manifest
        with replace_directory(output) as directory:
            counts, tokenizer, notes = write(directory, identity)
            is_changed = compute_identity() != identity  # an error of the source may pass: what is written stays
            try:
                options.check_splits(counts, what=what, notes="; ".join(notes))
                if is_changed:
                    raise UserError(f"source {options.source}: was changed while it was read. Prepare it again.")
            except UserError:
                (directory / PROGRESS_NAME).unlink(missing_ok=True)  # to continue would end alike
                raise
            manifest = write_manifest(directory, counts, tokenizer=tokenizer, request=identity, notes=notes)
    print_splits(output, manifest, advice=advise_more(manifest, again=options.again), spell=options.spell_flags)
    seconds = time.perf_counter() - start
    print(f"{options.output}: {manifest.tokenizer}, {manifest.vocab_size:,} ids, {manifest.dtype}, {seconds:.1f} s")
    return manifest


def advise_more(manifest: Manifest, *, again: str = ShardOptions.again) -> str:
    """What to do about a small validation split: more text, or a larger part than the split in use gives.

    `again` follows the flag of another split.
    """
    larger = enlarge_split(find_used_split(str(manifest.request.get("split")), "; ".join(manifest.notes)))
    return (
        f"Prepare more text, or give it a larger part, such as --split={larger}{again}."
        if larger
        else "Prepare more text."
    )


def print_splits(
    directory: Path, manifest: Manifest, *, advice: str | None = None, spell: Callable[[str], str] = str
) -> None:
    """Print a line for each split of a directory, and the notes of its preparation.

    A small split gets `advice`, by default of `advise_more`; up to the comma it is for training, too. `spell` writes
    the flags of advice and notes.
    """
    advice, are_pairs = spell(advice or advise_more(manifest)), manifest.request.get("kind") == PREFERENCES
    for name, count in manifest.splits.items():
        scored, files = open_split(directory, name).loss_mask, len(manifest.files_of(name))
        ratio = (
            f"{count.bytes / count.tokens:.3f} bytes/token"
            if scored is None
            else f"{np.asarray(scored).mean():.1%} scored"
        )
        number, plural = (count.documents // 2, "pairs") if are_pairs else (count.documents, "documents")
        noun = plural[:-1] + " " if number == 1 else plural
        sizes = f"{number:>10,} {noun} {count.bytes:>14,} bytes {count.tokens:>14,} tokens"
        print(f"{name:5} {sizes} ({ratio}) in {files} file{'s' if files > 1 else ''}")
        if name != "val" and scored is None and count.tokens < ROW_TOKENS:  # rows of scored documents are padded
            context = f"a model with model.context_length above {max(count.tokens - 1, 0)} gets no row of it"
            more = f"{advice.partition(',')[0].rstrip('.')}."
            print(f"note: {name} has only {count_of(count.tokens, 'tokens')}: {context}. {more}")
        elif name == "val" and scored is None and count.tokens < VALIDATION_TOKENS:
            print(f"note: val has only {count_of(count.tokens, 'tokens')}: its loss says little. {advice}")
    print_notes(map(spell, manifest.notes))
