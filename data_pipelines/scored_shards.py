"""Documents of which only a part is scored, as shards: shared by conversations and preferences.

An example becomes one or more documents of (tokens, marks), which are for the same split. Beside the shards of a split
are its sidecars `SPLIT.documents` and `SPLIT.scored`. Invalid records are skipped and counted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.encode.splits import AllTo, HashFraction, SplitRule, parse_split
from data_pipelines.output.build import ShardContents, build_shards
from data_pipelines.output.journal import Journal
from data_pipelines.output.shard_writer import open_split_writers
from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.json_lines import find_json_lines, iter_lines, parse_object
from data_pipelines.readers.paths import identify_files
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
        if not isinstance(parse_split(self.effective_split), HashFraction | AllTo):
            raise UserError(f"--split={self.split}: wanted hash:F or none.")


class Example(NamedTuple):
    """Documents that belong together; examples with the same key are for the same split."""

    key: str
    documents: list[MaskedTokens]


@dataclass(frozen=True)
class ExampleKind:
    """A kind of examples: its name, its plural, whose tokens it has, and how a record becomes an example.

    `encode` gets the record at FILE:LINE; it raises `UserError` for an invalid one and `UselessRecord`.
    """

    name: str
    plural: str
    tokenizer: Tokenizer
    encode: Callable[[dict[str, Any], str], Example]


class UselessRecord(UserError):
    """A valid record from which nothing can be learned; it is skipped in strict mode, too. The text is the note."""


def prepare_scored(request: PrepareScored, kind: ExampleKind) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""

    def compute_identity() -> dict[str, Any]:
        sources = {"source": request.source, "validation_source": request.validation_source}
        return {
            "kind": kind.name,
            "tokenizer": kind.tokenizer.fingerprint,
            "chat_template": None if (template := kind.tokenizer.chat_template) is None else template.to_dict(),
            "split": request.effective_split,
            "shard_tokens": request.shard_tokens,
            "max_document_tokens": request.max_document_tokens,
            "strict": request.strict,
            "format": MANIFEST_VERSION,
            **{name: identify_files(spec, find_json_lines(spec)) for name, spec in sources.items() if spec is not None},
        }

    def write(directory: Path, identity: dict[str, Any]) -> ShardContents:
        Journal(directory, identity)  # empties what a killed command left
        return _write_shards(directory, request, kind)

    return build_shards(request, compute_identity, write=write, what=f"usable {kind.plural}")


def _write_shards(directory: Path, request: PrepareScored, kind: ExampleKind) -> ShardContents:
    context, tokenizer = ReadContext(strict=request.strict), kind.tokenizer
    with (
        open_split_writers(directory, request, vocab_size=tokenizer.vocab_size) as writers,
        progress_line(f"reading {request.source}") as show,
    ):
        for number, (split, documents) in enumerate(_iter_examples(request, kind, context=context), start=1):
            for document in documents:
                size = int(tokenizer.bytes_per_token[document.tokens].sum())
                writers[split].append(document.tokens, np.array([0]), scored=document.loss_mask, size=size)
            show(f"{number:,} {kind.plural}")
    return {name: writer.counts for name, writer in writers.items()}, tokenizer, context.notes.lines()


def _iter_examples(
    request: PrepareScored, kind: ExampleKind, *, context: ReadContext
) -> Iterator[tuple[str, list[MaskedTokens]]]:
    """Yield the split and the documents of every usable example, in the order of the source."""
    limit = request.max_document_tokens
    for spec, rule in [
        (request.source, parse_split(request.effective_split)),
        (request.validation_source, AllTo("val")),
    ]:
        assert isinstance(rule, SplitRule)
        for where, line in iter_lines(find_json_lines(spec)) if spec is not None else ():
            try:
                key, documents = kind.encode(parse_object(line, where=where), where)
                if limit is not None and any(len(document.tokens) > limit for document in documents):
                    documents = _cut_documents(documents, limit, plural=kind.plural)
                    context.notes[f"{kind.plural} cut off at --max-document-tokens={limit}"] += 1
                yield rule.choose_split(key.encode()), documents
            except UselessRecord as error:
                context.notes[str(error)] += 1
            except UserError as error:
                context.skip_record(str(error))


def _cut_documents(documents: list[MaskedTokens], limit: int, *, plural: str) -> list[MaskedTokens]:
    """Cut off behind `limit` tokens; raises `UselessRecord` where nothing scored or no difference is left."""
    short = [MaskedTokens(document.tokens[:limit], document.loss_mask[:limit]) for document in documents]
    differ = len({document.tokens.tobytes() for document in short}) == len(short)
    if not differ or not all(document.loss_mask.any() for document in short):
        raise UselessRecord(f"{plural} skipped: nothing scored is left at --max-document-tokens={limit}")
    return short
