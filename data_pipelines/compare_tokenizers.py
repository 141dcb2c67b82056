"""How well tokenizers compress texts, side by side: `python -m data_pipelines.compare_tokenizers --help`.

    python -m data_pipelines.compare_tokenizers --tokenizer=data/tokenizer --source=books/ --source=web.jsonl.gz

Bytes per token say how much text fits into a context and into a step; a model that reads fewer tokens for the same text
is cheaper by as much. Each source is read once, a document at a time, for all tokenizers together.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.encode.pieces import pieces
from data_pipelines.readers.documents import TEXT_FIELD, Document, ReadContext, Source, is_blank, iter_documents
from data_pipelines.readers.sources import open_source
from data_pipelines.runtime.options import at_least
from data_pipelines.runtime.progress import say_notes
from gptjax.errors import UserError, explained
from gptjax.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Compression:
    """Compare tokenizers on texts: bytes per token, and tokens per document."""

    tokenizer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """`gpt2`, `bytes`, a tokenizer.json or a directory with one; may be given several times."""
    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Whatever `prepare` takes as its source; may be given several times."""
    against: str = "gpt2"
    """The tokenizer that the others are compared with; it is measured too."""
    max_bytes: int | None = None
    """Read documents of each source until they make up so many bytes; by default all."""
    text_field: str = TEXT_FIELD
    """As for `prepare`: the field of a record that holds its text, in all sources."""
    json: Path | None = None
    """Write the measurements into this file as well."""

    def __post_init__(self) -> None:
        if not self.tokenizer or not self.source:
            raise UserError("wanted at least one --tokenizer and one --source.")
        at_least(1, max_bytes=self.max_bytes)


@dataclass(frozen=True)
class Measurement:
    """One tokenizer on one text; `bytes` of UTF-8, `tokens` without any end of text."""

    source: str
    tokenizer: str
    vocab_size: int
    documents: int
    bytes: int
    tokens: int
    bytes_per_token: float
    tokens_per_document: float
    saved: float
    """Share of tokens saved against the tokenizer compared with: 0.1 is a tenth fewer, below 0 is more."""


def compare(request: Compression) -> list[Measurement]:
    """All tokenizers on all sources, the one compared with first; sources in the order given."""
    specs = list(dict.fromkeys([request.against, *request.tokenizer]))
    tokenizers = {spec: load_tokenizer(spec) for spec in specs}
    return [row for spec in request.source for row in _measured(spec, tokenizers, request)]


def _measured(spec: str, tokenizers: dict[str, Tokenizer], request: Compression) -> Iterator[Measurement]:
    documents, size, tokens, context = 0, 0, Counter[str](), ReadContext(request.text_field)
    for document in _beginning(open_source(spec), context, request.max_bytes):
        documents += 1
        size += len(document)
        for name, tokenizer in tokenizers.items():
            parts = pieces(document, tokenizer)
            tokens[name] += sum(len(tokenizer.encode(str(part.content, "utf-8"))) for part in parts)
    if size == 0:
        raise UserError(f"source {spec}: holds no text. {'; '.join(context.notes.lines())}".strip())
    say_notes(context.notes.lines())
    baseline = tokens[next(iter(tokenizers))]
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
            saved=1 - tokens[name] / baseline,
        )


def _beginning(source: Source, context: ReadContext, limit: int | None) -> Iterator[Document]:
    """Whole documents that are not blank, until they have `limit` bytes."""
    size = 0
    for document in iter_documents(source.chunks(context), context):
        if not is_blank(document):
            yield document
            size += len(document)
            if limit is not None and size >= limit:
                return


def lines(rows: Sequence[Measurement]) -> Iterator[str]:
    """The measurements for a terminal: a block for each source, a line in it for each tokenizer."""
    width = max(len("tokenizer"), *(len(row.tokenizer) for row in rows))
    headings = f"  {'tokenizer':{width}} {'vocabulary':>10} {'tokens':>15} {'bytes/token':>11} {'tokens/document':>15}"
    for source, group in itertools.groupby(rows, key=lambda row: (row.source, row.documents, row.bytes)):
        yield f"{source[0]}: {source[1]:,} documents, {source[2]:,} bytes"
        yield f"{headings} {'saved':>7}"
        for row in group:
            counts = f"{row.vocab_size:>10,} {row.tokens:>15,} {row.bytes_per_token:>11.3f}"
            yield f"  {row.tokenizer:{width}} {counts} {row.tokens_per_document:>15,.1f} {row.saved:>+7.1%}"


def main(request: Compression) -> None:
    """Measure, print, and write where `--json` says."""
    rows = compare(request)
    print(*lines(rows), f"saved: share of tokens against {request.against}", sep="\n")
    if request.json is not None:
        _write(request.json.expanduser(), json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json={path} cannot be written: {error.strerror}.") from None


if __name__ == "__main__":
    with explained():
        main(tyro.cli(Compression, prog="python -m data_pipelines.compare_tokenizers"))
