"""Compare how well tokenizers compress texts: `python -m data_pipelines.compare_tokenizers --help`.

    python -m data_pipelines.compare_tokenizers --tokenizer=data/tokenizer --source=books/ --source=web.jsonl.gz

Bytes per token say how much text fits into a context and into a step. Each source is read once for all tokenizers.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.readers.documents import TEXT_FIELD, Document, ReadContext, Source, is_blank, iter_documents
from data_pipelines.readers.sources import open_source
from data_pipelines.runtime.options import require_at_least
from data_pipelines.runtime.progress import print_notes
from gptjax.errors import UserError, explained
from gptjax.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class CompareTokenizers:
    """Compare tokenizers on texts: bytes per token, and tokens per document."""

    tokenizer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """`gpt2`, `bytes`, a tokenizer.json or a directory with one; may be given several times."""
    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """A source as for `prepare`; may be given several times."""
    baseline: str = "gpt2"
    """The tokenizer that the others are compared with; it is measured, too."""
    max_bytes: int | None = None
    """Read documents of each source until they have so many bytes; by default all."""
    text_field: str = TEXT_FIELD
    """As for `prepare`: the field of a record that holds its text, in all sources."""
    json: Path | None = None
    """Write the measurements into this file as well."""

    def __post_init__(self) -> None:
        if not self.tokenizer or not self.source:
            raise UserError("wanted at least one --tokenizer and one --source.")
        require_at_least(1, max_bytes=self.max_bytes)


@dataclass(frozen=True)
class Measurement:
    """One tokenizer on one source."""

    source: str
    tokenizer: str
    vocab_size: int
    documents: int
    bytes: int
    """Of UTF-8."""
    tokens: int
    """Without end-of-text tokens."""
    bytes_per_token: float
    tokens_per_document: float
    saved: float
    """Share of tokens saved against the baseline: 0.1 is a tenth fewer, below 0 is more."""


def compare_tokenizers(request: CompareTokenizers) -> list[Measurement]:
    """Measure all tokenizers on all sources, the baseline first; sources in the order given."""
    tokenizers = {spec: load_tokenizer(spec) for spec in dict.fromkeys([request.baseline, *request.tokenizer])}
    return [row for spec in request.source for row in _measure(spec, tokenizers, request)]


def _measure(spec: str, tokenizers: dict[str, Tokenizer], request: CompareTokenizers) -> Iterator[Measurement]:
    documents, size, tokens, context = 0, 0, Counter[str](), ReadContext(request.text_field)
    for document in _take_documents(open_source(spec), context, request.max_bytes):
        documents += 1
        size += len(document)
        for name, tokenizer in tokenizers.items():
            tokens[name] += len(tokenizer.encode(str(document, "utf-8")))
    if size == 0:
        raise UserError(f"source {spec}: holds no text. {'; '.join(context.notes.lines())}".strip())
    print_notes(context.notes.lines())
    for name, tokenizer in tokenizers.items():
        yield Measurement(
            source=spec,
            tokenizer=name,
            vocab_size=tokenizer.vocab_size,
            documents=documents,
            bytes=size,
            tokens=tokens[name],
            bytes_per_token=size / tokens[name],
            tokens_per_document=tokens[name] / documents,
            saved=1 - tokens[name] / tokens[request.baseline],
        )


def _take_documents(source: Source, context: ReadContext, limit: int | None) -> Iterator[Document]:
    """Yield documents that are not blank, until they have `limit` bytes."""
    size = 0
    for document in iter_documents(source.chunks(context), context):
        if not is_blank(document):
            yield document
            size += len(document)
            if limit is not None and size >= limit:
                return


def format_lines(rows: Sequence[Measurement]) -> Iterator[str]:
    """Format the measurements for a terminal: a block for each source, a line in it for each tokenizer."""
    width = max(len("tokenizer"), *(len(row.tokenizer) for row in rows))
    headings = f"  {'tokenizer':{width}} {'vocabulary':>10} {'tokens':>15} {'bytes/token':>11} {'tokens/document':>15}"
    for source, group in itertools.groupby(rows, key=lambda row: (row.source, row.documents, row.bytes)):
        yield f"{source[0]}: {source[1]:,} documents, {source[2]:,} bytes"
        yield f"{headings} {'saved':>7}"
        for row in group:
            counts = f"{row.vocab_size:>10,} {row.tokens:>15,} {row.bytes_per_token:>11.3f}"
            yield f"  {row.tokenizer:{width}} {counts} {row.tokens_per_document:>15,.1f} {row.saved:>+7.1%}"


def main(request: CompareTokenizers) -> None:
    """Measure, print, and write the file of `--json`."""
    rows = compare_tokenizers(request)
    print(*format_lines(rows), f"saved: share of tokens against {request.baseline}", sep="\n")
    if request.json is not None:
        request.json.expanduser().write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    with explained():
        main(tyro.cli(CompareTokenizers, prog="python -m data_pipelines.compare_tokenizers"))
