"""Documents of which only a part is scored, as shards: shared by conversations and preferences.

An example becomes one or more documents of (tokens, marks), which are for the same split. Beside the shards of a split
are its sidecars `SPLIT.documents` and `SPLIT.scored`. Invalid records are skipped and counted.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.encode.split_rules import AllTo, HashFraction, Rule
from data_pipelines.encode.splits import Tail, parse_split
from data_pipelines.output.atomic_dir import check_same, find_prepared, replace_directory
from data_pipelines.output.shard_writer import open_split_writers, write_manifest
from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.json_lines import open_json_lines
from data_pipelines.runtime.locks import hold_lock
from data_pipelines.runtime.options import ShardOptions, check_splits
from data_pipelines.runtime.progress import print_notes, progress_line
from gptjax.chat import Scored
from gptjax.errors import UserError
from gptjax.manifest import MANIFEST_VERSION, Counts, Manifest
from gptjax.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareScored(ShardOptions):
    """Options of conversations and preferences alike."""

    tokenizer: str
    """`gpt2`, `gpt2:DIR`, a tokenizer.json or a directory with one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rule, HashFraction | AllTo):
            raise UserError(f"--split={self.split}: wanted hash:F or none.")

    @property
    def rule(self) -> Rule | Tail:
        """The split of SOURCE."""
        return parse_split(self.effective_split)


class Example(NamedTuple):
    """Documents that belong together; examples with the same key are for the same split."""

    key: str
    documents: list[Scored]


class ExampleKind(NamedTuple):
    """A kind of examples: its name, its plural, and how a record becomes an example.

    `parse` makes a value of the record at FILE:LINE, or raises `UserError`; `encode` makes an example of the value.
    """

    name: str
    plural: str
    parse: Callable[[dict[str, Any], str], Any]
    encode: Callable[[Any], Example]


class UselessRecord(UserError):
    """A valid record from which nothing can be learned; it is skipped in strict mode, too. The text is the note."""


def prepare_scored(request: PrepareScored, kind: ExampleKind, tokenizer: Tokenizer) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""
    identity, start = _compute_identity(request, kind, tokenizer), time.perf_counter()
    output = request.output.expanduser().resolve()
    with hold_lock(output):
        if (manifest := find_prepared(output, identity, overwrite=request.overwrite)) is not None:
            return manifest
        context = ReadContext(strict=request.strict)
        with replace_directory(output) as directory:
            counts, scored = _write_shards(directory, request, kind, tokenizer, context)
            notes = context.notes.lines()
            check_splits(request, counts, notes, what=f"usable {kind.plural}")
            check_same(identity, _compute_identity(request, kind, tokenizer), request.source)
            manifest = write_manifest(directory, counts, tokenizer, request=identity, notes=notes)
    for name, count in manifest.splits.items():
        sizes = f"{count.documents:>10,} documents {count.bytes:>14,} bytes {count.tokens:>14,} tokens"
        print(f"{name:5} {sizes} ({scored[name] / count.tokens:.1%} scored)")
    print_notes(manifest.notes)
    seconds = time.perf_counter() - start
    print(f"{request.output}: {manifest.tokenizer}, {manifest.vocab_size:,} ids, {manifest.dtype}, {seconds:.1f} s")
    return manifest


def _compute_identity(request: PrepareScored, kind: ExampleKind, tokenizer: Tokenizer) -> dict[str, Any]:
    """JSON that decides the output: two requests with the same identity have the same result."""
    identity: dict[str, Any] = {
        "kind": kind.name,
        "source": open_json_lines(request.source).identity(),
        "tokenizer": tokenizer.fingerprint,
        "split": request.effective_split,
        "shard_tokens": request.shard_tokens,
        "max_document_tokens": request.max_document_tokens,
        "format": MANIFEST_VERSION,
    }
    if request.strict:
        identity["strict"] = True
    if request.validation_source is not None:
        identity["validation_source"] = open_json_lines(request.validation_source).identity()
    return identity


def _write_shards(
    directory: Path, request: PrepareScored, kind: ExampleKind, tokenizer: Tokenizer, context: ReadContext
) -> tuple[dict[str, Counts], Counter[str]]:
    """Write all examples; returns the counts and the number of scored tokens of each split."""
    scored, examples = Counter[str](), 0
    with (
        open_split_writers(directory, request, vocab_size=tokenizer.vocab_size) as writers,
        progress_line(f"reading {request.source}") as show,
    ):
        for split, documents in _iter_examples(request, kind, context):
            for document in documents:
                size = int(tokenizer.bytes_per_token[document.tokens].sum())
                writers[split].append(document.tokens, np.array([0]), scored=document.scored, size=size)
                scored[split] += int(document.scored.sum())
            examples += 1
            show(f"{examples:,} {kind.plural}")
    return {name: writer.counts for name, writer in writers.items()}, scored


def _iter_examples(
    request: PrepareScored, kind: ExampleKind, context: ReadContext
) -> Iterator[tuple[str, list[Scored]]]:
    """Yield the split and the documents of every usable example, in the order of the source."""
    sources = [(request.source, request.rule), (request.validation_source, AllTo("val"))]
    for spec, rule in sources:
        for line in open_json_lines(spec) if spec is not None else ():
            try:
                value = kind.parse(line.record(), line.where)
            except UselessRecord as error:
                context.notes[str(error)] += 1
                continue
            except UserError as error:
                context.skip_record(str(error))
                continue
            try:
                example = kind.encode(value)
            except UserError as error:
                raise UserError(f"{line.where}: {error}") from None
            documents = _limit_documents(example.documents, request.max_document_tokens, kind, context)
            if documents:
                assert isinstance(rule, Rule)
                yield rule.side(example.key.encode()), documents


def _limit_documents(
    documents: list[Scored], limit: int | None, kind: ExampleKind, context: ReadContext
) -> list[Scored]:
    """Cut documents off behind `limit` tokens; none remain where nothing scored or no difference between them does."""
    if limit is None or all(len(document.tokens) <= limit for document in documents):
        return documents
    short = [Scored(document.tokens[:limit], document.scored[:limit]) for document in documents]
    differ = len({document.tokens.tobytes() for document in short}) == len(short)
    is_useful = differ and all(document.scored.any() for document in short)
    what = "cut off" if is_useful else "skipped: nothing scored is left"
    context.notes[f"{kind.plural} {what} at --max-document-tokens={limit}"] += 1
    return short if is_useful else []
