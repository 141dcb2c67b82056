"""Compare how well tokenizers compress texts: `python -m data_pipelines.compare_tokenizers --help`.

    python -m data_pipelines.compare_tokenizers --tokenizer=data/tokenizer --source=books/ --source=web.jsonl.gz
    python -m data_pipelines.compare_tokenizers --tokenizer=data/tokenizer --baseline=bytes --source=books/

Bytes per token say how much text fits into a context and into a step. Each source is read once for all tokenizers.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from data_pipelines.readers.documents import TEXT_FIELD, ReadContext, is_blank, iter_documents
from data_pipelines.readers.sources import open_source
from data_pipelines.runtime.options import require_at_least, run_command
from data_pipelines.runtime.progress import print_notes
from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer, note_left_out


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


class Measurement(NamedTuple):
    """One tokenizer on one source: bytes of UTF-8, and tokens without end-of-text tokens.

    `saved` is the share of tokens saved against the baseline: 0.1 is a tenth fewer, below 0 is more.
    """

    source: str
    tokenizer: str
    vocab_size: int
    documents: int
    bytes: int
    tokens: int
    bytes_per_token: float
    tokens_per_document: float
    saved: float


def compare_tokenizers(request: CompareTokenizers) -> list[Measurement]:
    """Measure all tokenizers on all sources, the baseline first; sources in the order given."""
    specs = dict.fromkeys([request.baseline, *request.tokenizer])
    tokenizers = {spec: note_left_out(load_tokenizer(spec), spec) for spec in specs}
    return [row for spec in request.source for row in _measure(spec, request, tokenizers=tokenizers)]


def _measure(spec: str, request: CompareTokenizers, *, tokenizers: dict[str, Tokenizer]) -> Iterator[Measurement]:
    number, size, tokens, context = 0, 0, Counter[str](), ReadContext(request.text_field)
    for document in iter_documents(open_source(spec).chunks(context), context):
        if is_blank(document):
            continue
        number, size = number + 1, size + len(document)
        for name, tokenizer in tokenizers.items():
            tokens[name] += len(tokenizer.encode(str(document, "utf-8")))
        if request.max_bytes is not None and size >= request.max_bytes:
            break
    if size == 0:
        raise UserError(f"source {spec}: holds no text. {'; '.join(context.notes.lines())}".strip())
    print_notes(context.notes.lines())
    for name, tokenizer in tokenizers.items():
        count, saved = tokens[name], 1 - tokens[name] / tokens[request.baseline]
        yield Measurement(spec, name, tokenizer.vocab_size, number, size, count, size / count, count / number, saved)


def main(request: CompareTokenizers) -> None:
    """Measure, print a table, and write the file of `--json`."""
    rows = compare_tokenizers(request)
    table = Table(*(name.replace("_per_", "/").replace("_", " ") for name in Measurement._fields))
    for row in rows:
        counts = (f"{count:,}" for count in row[2:6])
        table.add_row(*row[:2], *counts, f"{row[6]:.3f}", f"{row[7]:,.1f}", f"{row.saved:+.1%}")
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
    print(f"saved: share of tokens against {request.baseline}")
    if request.json is not None:
        expand_path(request.json).write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    run_command(main, CompareTokenizers)
