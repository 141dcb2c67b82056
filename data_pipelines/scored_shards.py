"""Documents of which only a part is scored, as shards: shared by conversations and preferences.

An example becomes one or more documents of (tokens, marks), which are for the same split. Beside the shards of a split
are its sidecars `SPLIT.documents` and `SPLIT.scored`. Invalid records are skipped and counted.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.encode.split_rules import AllTo, HashFraction, Rule
from data_pipelines.encode.splits import Tail, parse_split
from data_pipelines.output.build import ShardContents, build_shards
from data_pipelines.output.shard_writer import open_split_writers
from data_pipelines.readers.documents import Notes, ReadContext
from data_pipelines.readers.json_lines import open_json_lines
from data_pipelines.runtime.options import ShardOptions
from data_pipelines.runtime.progress import progress_line
from gptjax.core.errors import UserError
from gptjax.data.manifest import MANIFEST_VERSION, Manifest
from gptjax.tokenization.chat import MaskedTokens
from gptjax.tokenization.tokenizer import Tokenizer


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
    documents: list[MaskedTokens]


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


def prepare_scored(request: PrepareScored, kind: ExampleKind, *, tokenizer: Tokenizer) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""

    def write(directory: Path, _: dict[str, Any]) -> ShardContents:
        return _write_shards(directory, request, kind=kind, tokenizer=tokenizer)

    identity = functools.partial(_compute_identity, request, kind.name, tokenizer=tokenizer)
    return build_shards(request, identity, write=write, what=f"usable {kind.plural}")


def _compute_identity(request: PrepareScored, kind: str, *, tokenizer: Tokenizer) -> dict[str, Any]:
    """JSON that decides the output: two requests with the same identity have the same result."""
    identity: dict[str, Any] = {
        "kind": kind,
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


def _write_shards(directory: Path, request: PrepareScored, *, kind: ExampleKind, tokenizer: Tokenizer) -> ShardContents:
    context = ReadContext(strict=request.strict)
    with (
        open_split_writers(directory, request, vocab_size=tokenizer.vocab_size) as writers,
        progress_line(f"reading {request.source}") as show,
    ):
        for number, (split, documents) in enumerate(_iter_examples(request, kind, context=context), start=1):
            for document in documents:
                size = int(tokenizer.bytes_per_token[document.tokens].sum())
                writers[split].append(document.tokens, np.array([0]), scored=document.loss_mask, size=size)
            show(f"{number:,} {kind.plural}")
    return ShardContents({name: writer.counts for name, writer in writers.items()}, tokenizer, context.notes.lines())


def _iter_examples(
    request: PrepareScored, kind: ExampleKind, *, context: ReadContext
) -> Iterator[tuple[str, list[MaskedTokens]]]:
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
            limit, notes = request.max_document_tokens, context.notes
            if documents := _limit_documents(example.documents, limit, plural=kind.plural, notes=notes):
                assert isinstance(rule, Rule)
                yield rule.side(example.key.encode()), documents


def _limit_documents(
    documents: list[MaskedTokens], limit: int | None, *, plural: str, notes: Notes
) -> list[MaskedTokens]:
    """Cut documents off behind `limit` tokens; none remain where nothing scored or no difference between them does."""
    if limit is None or all(len(document.tokens) <= limit for document in documents):
        return documents
    short = [MaskedTokens(document.tokens[:limit], document.loss_mask[:limit]) for document in documents]
    differ = len({document.tokens.tobytes() for document in short}) == len(short)
    is_useful = differ and all(document.loss_mask.any() for document in short)
    what = "cut off" if is_useful else "skipped: nothing scored is left"
    notes[f"{plural} {what} at --max-document-tokens={limit}"] += 1
    return short if is_useful else []
