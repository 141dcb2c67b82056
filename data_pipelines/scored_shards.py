"""Documents of which only a part is scored, written as shards: what conversations and preferences have in common.

The one idea: an example becomes one or more documents of (tokens, marks), always kept together. Beside the shards of
a split lie its companions `SPLIT.documents` and `SPLIT.scored`. What cannot be used is left out, counted and named.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.disk import locked
from data_pipelines.options import at_least, one_validation
from data_pipelines.output import check_same, made_already, replaced, say_made
from data_pipelines.progress import moving_line, say_notes
from data_pipelines.readers.documents import Notes
from data_pipelines.readers.json_lines import json_lines
from data_pipelines.splits import DEFAULT_SPLIT, Split
from data_pipelines.writing import split_writers, write_manifest
from gptjax.core.errors import UserError
from gptjax.data.manifest import MANIFEST_VERSION, Counts, Manifest
from gptjax.tokenization.chat import MaskedTokens
from gptjax.tokenization.tokenizer import Tokenizer, replace_surrogates

BROKEN_LINES = "broken lines left out"
NAMED = 5
"""So many of the lines that are left out are named in the report."""


@dataclass(frozen=True)
class PrepareScored:
    """What is asked for, of conversations and preferences alike."""

    source: str
    """A .jsonl file (plain, .gz or .zst), a directory of them or a quoted pattern."""
    tokenizer: str
    """`gpt2`, a tokenizer.json or a directory with one."""
    output: Path
    """Directory to make."""
    split: str | None = None
    """Validation: `documents:F` (by hash, equal ones on one side; by default documents:0.005), or `none`."""
    validation_source: str | None = None
    """Instead of a split: all of this other source is for validation, and all of SOURCE for training."""
    max_document_tokens: int | None = None
    """Longer documents are cut off behind so many tokens, and left out if no scored one remains; model.context_length of
    them fit into a row."""
    shard_tokens: int = 100_000_000
    """Tokens in one file."""
    strict: bool = False
    """Stop at the first line that is not as it should be, instead of leaving it out."""
    overwrite: bool = False
    """Replace what an earlier, different request left in OUTPUT."""

    def __post_init__(self) -> None:
        at_least(1, shard_tokens=self.shard_tokens)
        at_least(2, max_document_tokens=self.max_document_tokens)
        one_validation(split=self.split, validation_source=self.validation_source)
        if self.divided.kind in ("tail", "drawn"):
            raise UserError(f"--split={self.split}: wanted documents:F or none.")

    @property
    def divided(self) -> Split:
        """Which part of SOURCE is for validation."""
        return Split.parse(self.split or (DEFAULT_SPLIT if self.validation_source is None else "none"))


class Example(NamedTuple):
    """Documents that belong together; examples with the same key are for the same split."""

    key: str
    documents: list[MaskedTokens]


class Kind(NamedTuple):
    """Which examples they are, what several are called, and how one is made of a record in two steps.

    `check` makes a value of the record that stands at FILE:LINE, or raises `UserError`; `encode` makes an example of
    that value.
    """

    name: str
    plural: str
    check: Callable[[dict[str, Any], str], Any]
    encode: Callable[[Any], Example]


class LeftOut(UserError):
    """A record that is as it should be but of no use, at which `--strict` does not stop; the text is the reason."""


def prepare_scored(request: PrepareScored, kind: Kind, tokenizer: Tokenizer) -> Manifest:
    """Do what is asked, unless it has been done; prints a summary."""
    record = _record(request, kind, tokenizer)
    output = request.output.expanduser().resolve()
    with locked(output):
        if (manifest := made_already(output, record, overwrite=request.overwrite)) is not None:
            say_made(request.output, manifest)
            return manifest
        report = _Report()
        with replaced(output) as directory:
            manifest = _write(directory, request, record, kind, tokenizer, report)
            check_same(record, _record(request, kind, tokenizer), request.source)
    report.show(request, manifest, kind)
    return manifest


def _record(request: PrepareScored, kind: Kind, tokenizer: Tokenizer) -> dict[str, Any]:
    """What decides the output: two requests with the same record have the same result."""
    options: dict[str, Any] = {"shard_tokens": request.shard_tokens, "max_document_tokens": request.max_document_tokens}
    options |= {"strict": True} if request.strict else {}  # what was made without it may have left something out
    options["split"], other = str(request.divided), request.validation_source
    identities = {"source": json_lines(request.source).identity()}
    identities |= {} if other is None else {"validation_source": json_lines(other).identity()}
    made = {"kind": kind.name, "tokenizer": tokenizer.fingerprint, "format": MANIFEST_VERSION}
    return options | identities | made


class _Report:
    """What was left out and why, and how much of the rest is scored."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.broken: list[str] = []
        self.examples: Counter[str] = Counter()
        self.scored: Counter[str] = Counter()
        self.start = time.perf_counter()

    def leave_out(self, error: UserError) -> None:
        problem = replace_surrogates(str(error))  # it may quote a name that cannot be printed
        if isinstance(error, LeftOut):
            self.notes[problem] += 1
        else:
            self.notes[BROKEN_LINES] += 1
            self.broken += [problem] if len(self.broken) < NAMED else []

    def broken_lines(self) -> list[str]:
        """Lines that are left out, by file and number, and how many more."""
        more = self.notes[BROKEN_LINES] - len(self.broken)
        return [*self.broken, *([f"and {more:,} more; --strict stops at the first"] if more else [])]

    def show(self, request: PrepareScored, manifest: Manifest, kind: Kind) -> None:
        for name, count in manifest.splits.items():
            examples, share = f"{self.examples[name]:>10,} {kind.plural}", self.scored[name] / count.tokens
            print(f"{name:5} {examples} {count.bytes:>14,} bytes {count.tokens:>14,} tokens ({share:.1%} scored)")
        say_notes(manifest.notes)
        seconds = time.perf_counter() - self.start
        print(f"{request.output}: {manifest.tokenizer}, {manifest.vocab_size:,} ids, {manifest.dtype}, {seconds:.1f} s")


def _write(
    directory: Path,
    request: PrepareScored,
    record: dict[str, Any],
    kind: Kind,
    tokenizer: Tokenizer,
    report: _Report,
) -> Manifest:
    only_train = request.validation_source is None and request.divided.kind == "none"
    names = ("train",) if only_train else ("train", "val")
    with (
        split_writers(directory, names, tokenizer, shard_tokens=request.shard_tokens) as writers,
        moving_line(f"reading {request.source}") as show,
    ):
        for split, documents in _examples(request, kind, report):
            for document in documents:
                size = int(tokenizer.bytes_per_token[document.tokens].sum())
                writers[split].append(document.tokens, np.array([0]), scored=document.loss_mask, size=size)
                report.scored[split] += int(document.loss_mask.sum())
            report.examples[split] += 1
            written = sum(writer.tokens for writer in writers.values())
            show(f"{report.examples.total():,} {kind.plural}, {written / 1e6:,.2f} M tokens")
    _refuse_empty(request, kind, {name: writer.counts for name, writer in writers.items()}, report)
    notes = [*report.notes.lines(), *report.broken_lines()]
    return write_manifest(directory, writers, tokenizer, record, notes)


def _examples(request: PrepareScored, kind: Kind, report: _Report) -> Iterator[tuple[str, list[MaskedTokens]]]:
    """The split and the documents of every example that can be used, in the order of the source."""
    sources: list[tuple[str, Callable[[bytes], str]]] = [(request.source, request.divided.side)]
    if request.validation_source is not None:
        sources.append((request.validation_source, lambda _: "val"))
    for spec, side in sources:
        for line in json_lines(spec):
            try:
                value = kind.check(line.record(), line.where)
            except UserError as error:
                if request.strict and not isinstance(error, LeftOut):
                    raise
                report.leave_out(error)
                continue
            try:
                example = kind.encode(value)
            except UserError as error:
                raise UserError(f"{line.where}: {error}") from None
            documents = _shortened(example.documents, request.max_document_tokens, kind, report)
            if documents is not None:
                yield side(example.key.encode()), documents


def _shortened(
    documents: list[MaskedTokens], limit: int | None, kind: Kind, report: _Report
) -> list[MaskedTokens] | None:
    """All documents with at most `limit` tokens; None where they lose what is scored, or what makes them differ."""
    if limit is None or all(len(document.tokens) <= limit for document in documents):
        return documents
    short = [MaskedTokens(document.tokens[:limit], document.loss_mask[:limit]) for document in documents]
    differ = len({document.tokens.tobytes() for document in short}) == len(short)
    useful = differ and all(document.loss_mask.any() for document in short)
    what = "cut off" if useful else "left out: nothing left to learn"
    report.notes[f"{kind.plural} {what} at --max-document-tokens={limit}"] += 1
    return short if useful else None


def _refuse_empty(request: PrepareScored, kind: Kind, counts: dict[str, Counts], report: _Report) -> None:
    total = sum(count.documents for count in counts.values())
    if total == 0:
        why = report.broken[0] if report.broken else "; ".join(report.notes) or "it is empty"
        raise UserError(f"source {request.source}: holds no {kind.plural} that can be used. {why}")
    for name, count in counts.items():
        if count.documents == 0:
            why = "".join(f"\n  {line}" for line in report.broken_lines())
            broken = f"\nBroken lines left out: {report.notes[BROKEN_LINES]:,}{why}" if why else ""
            if request.validation_source is not None:
                empty = request.source if name == "train" else request.validation_source
                raise UserError(f"source {empty}: holds no {kind.plural} that can be used.{broken}")
            raise UserError(
                f"nothing is left for {name} (of {total} documents, with --split={request.divided}). Use another "
                f"fraction such as documents:0.1, none, or a --validation-source.{broken}"
            )
