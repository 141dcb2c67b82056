"""Any text to token shards: `python -m data_pipelines.prepare --help`.

    python -m data_pipelines.prepare --source=books/ --tokenizer=gpt2 --output=data/books
    python -m data_pipelines.prepare --source=stdlib --tokenizer=bpe:1024 --output=data/stdlib
    python -m data_pipelines.prepare --source=train/ --validation-source=val/ --tokenizer=gpt2 --output=data/own
    python -m data_pipelines.prepare --source=shakespeare --tokenizer=chars --split=tail:0.1 --output=data/shakespeare

The output is a directory of shards with `manifest.json` and `tokenizer.json`; it appears when it is complete, and not
before. The same request again finds it and stops; killed before the end, it goes on where it was, to the same bytes
(but what was not yet learnt of a tokenizer begins anew).
"""

import dataclasses
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from data_pipelines.encode.batching import Position, batches
from data_pipelines.encode.encoder import Encoded, encode_all, refuse_in_worker
from data_pipelines.encode.max_length import limit_documents
from data_pipelines.encode.splits import DEFAULT_SPLIT, Corpus, Divided, Split, TwoSources, divided
from data_pipelines.output.atomic_dir import check_same, made_already, replaced, say_made
from data_pipelines.output.journal import Journal, Reached
from data_pipelines.output.shard_writer import SplitWriter, split_writers, write_manifest
from data_pipelines.readers.documents import TEXT_FIELD, Document, Notes, ReadContext, iter_text
from data_pipelines.readers.sources import open_source
from data_pipelines.recipes import RECIPES
from data_pipelines.runtime.locks import locked
from data_pipelines.runtime.options import at_least, one_validation
from data_pipelines.runtime.progress import Rate, moving_line, say_notes
from data_pipelines.train_tokenizer import MOST_BYTES, learn_bpe
from gptjax.errors import UserError, explained
from gptjax.manifest import MANIFEST_VERSION, Counts, Manifest
from gptjax.shards import token_dtype
from gptjax.tokenizer import Chars, Tokenizer, load_tokenizer
from gptjax.tokenizer_files import FILE_NAME

FEW_TOKENS = 1024
"""A row of GPT-2. A split may be smaller, but that should be known."""


@dataclass(frozen=True)
class Prepare:
    """Tokenise a source into shards."""

    source: str
    """A text, .jsonl (plain, .gz, .zst), .parquet or .array_record file, a directory, a quoted pattern,
    `hf:OWNER/NAME`, `tfds:NAME`, `stdlib`, `shakespeare`, or a recipe such as `openwebtext` (see
    `python -m data_pipelines.recipes`)."""
    output: Path
    """Directory to make."""
    tokenizer: str | None = None
    """`gpt2`, `gpt2:DIR`, `bytes`, a tokenizer.json; or learnt from this text: `chars`, `bpe:SIZE` (from 2 GB of its
    training part at most)."""
    split: str | None = None
    """Validation: `documents:F` (by hash of the text, but the tail of a single text or of few; by default
    documents:0.005, or the last tenth of a small text), `tail:F` (the last characters), `drawn:K/N/SEED` (K of N
    documents, as nanoGPT draws them), or `none`."""
    validation_source: str | None = None
    """Instead of a split: all of this other source is for validation, and all of SOURCE for training."""
    shard_tokens: int = 100_000_000
    """Tokens in one file."""
    processes: int | None = None
    """Worker processes; by default one for each core. Small sources need none."""
    max_document_tokens: int | None = None
    """Longer documents go on as further documents of at most so many tokens, `<|endoftext|>` before each included."""
    text_field: str = TEXT_FIELD
    """Where the text of a record is: a key of the JSON objects in JSON lines and ArrayRecord, a column of Parquet, a
    feature of a TFDS set (there, if it has no `text`, the only one of text)."""
    strict: bool = False
    """Stop at the first record that is broken or not Unicode; by default broken records are skipped, bytes and
    surrogates replaced, and all of it is counted and reported."""
    overwrite: bool = False
    """Replace what an earlier, different request left in OUTPUT."""

    def __post_init__(self) -> None:
        at_least(1, shard_tokens=self.shard_tokens, processes=self.processes)
        at_least(2, max_document_tokens=self.max_document_tokens)
        one_validation(split=self.split, validation_source=self.validation_source)


def prepare(request: Prepare) -> Manifest:
    """Do what is asked, unless it has been done; prints progress to stderr and a summary to stdout."""
    refuse_in_worker()
    recipe = RECIPES.get(request.source)
    request = completed(request)
    corpus = open_corpus(request)
    assert request.tokenizer is not None
    known = known_tokenizer(request.tokenizer)
    record = describe(request, corpus, known)
    output = request.output.expanduser().resolve()
    with locked(output):
        if (manifest := made_already(output, record, overwrite=request.overwrite)) is not None:
            say_made(request.output, manifest)
            return manifest
        start = time.perf_counter()
        context = ReadContext(request.text_field, request.strict)
        with replaced(output, resumable=True) as directory:
            journal = Journal(directory, record)
            try:
                tokenizer = known or _learnt(directory, request.tokenizer, corpus, context)
                writers = _write(directory, request, corpus, context, tokenizer, journal)
                _refuse_empty(request, {name: writer.counts for name, writer in writers.items()}, context.notes)
                check_same(record, describe(request, corpus, known), request.source)
                manifest = write_manifest(directory, writers, tokenizer, record, context.notes.lines())
            except BaseException:
                journal.forget_if_empty()
                raise
    _report(request, manifest, seconds=time.perf_counter() - start, resumed=journal.resumed)
    if recipe is not None and recipe.tokenizer in (request.tokenizer, manifest.tokenizer):
        surprise = recipe.compare(manifest.splits["train"].tokens)
        if surprise:
            print(f"note: {surprise}")
    return manifest


def completed(request: Prepare) -> Prepare:
    """The request with everything said that it leaves open: a recipe's name stands for its parts."""
    if (recipe := RECIPES.get(request.source)) is not None:
        own_cut = request.split is None and request.validation_source is None
        request = dataclasses.replace(
            request,
            source=recipe.source,
            tokenizer=request.tokenizer or recipe.tokenizer,
            split=recipe.split if own_cut else request.split,
            validation_source=recipe.validation_source if own_cut else request.validation_source,
        )
    if not request.tokenizer:
        raise UserError("--tokenizer is not given: gpt2, bytes, chars, bpe:SIZE or a tokenizer.json.")
    if request.split is None and request.validation_source is None:
        return dataclasses.replace(request, split=DEFAULT_SPLIT)
    return request


def open_corpus(request: Prepare) -> Corpus:
    """The text that is asked for, divided as is asked for."""
    source = open_source(request.source)
    if request.validation_source is None:
        return Divided(source, Split.parse(request.split or DEFAULT_SPLIT))
    return TwoSources(source, open_source(request.validation_source))


def describe(request: Prepare, corpus: Corpus, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What decides the output, as JSON: two requests with the same description have the same result."""
    name = request.tokenizer if tokenizer is None else tokenizer.fingerprint
    how = {"tokenizer": name, "shard_tokens": request.shard_tokens, "format": MANIFEST_VERSION}
    if request.strict:  # what was made without it may have left something out
        how["strict"] = True
    if request.text_field != TEXT_FIELD:
        how["text_field"] = request.text_field
    if request.max_document_tokens is not None:
        how["max_document_tokens"] = request.max_document_tokens
    return corpus.identity() | how


def known_tokenizer(spec: str) -> Tokenizer | None:
    """The tokenizer named, or None for one that is to be learnt from the text (`chars`, `bpe:SIZE`)."""
    return None if spec == "chars" or spec.startswith("bpe:") else load_tokenizer(spec)


def _learnt(directory: Path, spec: str, corpus: Corpus, context: ReadContext) -> Tokenizer:
    """Learn once: an earlier run's result lies in the directory."""
    if not (directory / FILE_NAME).is_file():
        again = context.fresh_copy()
        _learn(spec, divided(corpus, again)).save(directory)
    return load_tokenizer(directory)


def _learn(spec: str, documents: Iterator[tuple[str, Document]]) -> Tokenizer:
    if spec == "chars":  # of both splits, as nanoGPT does: a rare letter in validation must have an id
        return Chars.from_text(text for _, document in documents for text in iter_text(document))
    size = spec.removeprefix("bpe:")
    if not size.isdecimal():
        raise UserError(f"tokenizer {spec!r}: wanted a number of tokens after bpe:, such as bpe:1024.")
    train = (document for name, document in documents if name == "train")
    return learn_bpe(train, vocab_size=int(size), max_bytes=MOST_BYTES).tokenizer


def _write(
    directory: Path, request: Prepare, corpus: Corpus, context: ReadContext, tokenizer: Tokenizer, journal: Journal
) -> dict[str, SplitWriter]:
    """Write what is not yet written; in the end `context` has the notes of all."""
    names = ("train",) if request.split == "none" else ("train", "val")
    so_far = journal.reached(itemsize=token_dtype(tokenizer.vocab_size).itemsize)
    position, notes = so_far.position, so_far.notes
    with (
        split_writers(directory, names, tokenizer, shard_tokens=request.shard_tokens, after=so_far.written) as writers,
        moving_line("encoding") as show,
    ):
        pace, processes = _Pace(writers), request.processes or _cores()
        found = batches(corpus.parts(context), tokenizer, context, start=position)
        for step in encode_all(found, tokenizer, context, processes=processes, documents=position.documents):
            for encoded in step.results:
                _append(writers[encoded.split], encoded, request.max_document_tokens, tokenizer.end_of_text)
            notes.add(step.notes)
            if step.after is not None:
                position = step.after
                journal.record_if_due(functools.partial(_reached, position, writers, notes))
            show(pace.said())
        corpus.check(position.documents)
    notes.add(context.notes.take())
    context.notes.add(notes)
    return writers


def _reached(position: Position, writers: dict[str, SplitWriter], notes: Notes) -> Reached:
    return Reached(position, {name: writer.written() for name, writer in writers.items()}, notes)


def _append(writer: SplitWriter, encoded: Encoded, limit: int | None, end_of_text: int | None) -> None:
    tokens, starts = encoded.tokens, encoded.starts
    if limit is not None:
        unfinished = writer.tokens - writer.last_start
        tokens, starts = limit_documents(tokens, starts, limit=limit, end_of_text=end_of_text, unfinished=unfinished)
    writer.append(tokens, starts, size=encoded.bytes)


class _Pace:
    """How much has been written, and how fast in this run."""

    def __init__(self, writers: dict[str, SplitWriter]) -> None:
        self._writers = writers.values()
        self._rates = [Rate(count) for count in self._so_far()]

    def _so_far(self) -> tuple[int, int]:
        return sum(writer.bytes for writer in self._writers), sum(writer.tokens for writer in self._writers)

    def said(self) -> str:
        size, tokens = self._so_far()
        speed, token_speed = (rate(count) for rate, count in zip(self._rates, (size, tokens), strict=True))
        return f"{size / 1e6:,.1f} MB, {tokens / 1e6:,.2f} M tokens  {speed:.1f} MB/s, {token_speed:.2f} M tokens/s"


def _refuse_empty(request: Prepare, counts: dict[str, Counts], notes: Notes) -> None:
    documents = sum(count.documents for count in counts.values())
    why = "; ".join(notes.lines())
    if documents == 0:
        raise UserError(f"source {request.source}: holds no text. {why}".strip())
    for name, count in counts.items():
        if count.tokens == 0 and request.validation_source is not None:
            empty = request.source if name == "train" else request.validation_source
            raise UserError(f"source {empty}: holds no text. {why}".strip())
        if count.tokens == 0:
            raise UserError(
                f"--split={request.split or DEFAULT_SPLIT} leaves no text for {name} (of {documents} documents). "
                "Use tail:0.1, another fraction, or none."
            )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(request: Prepare, manifest: Manifest, *, seconds: float, resumed: bool) -> None:
    for name, count in manifest.splits.items():
        files = len(manifest.files_of(name))
        print(
            f"{name:5} {count.documents:>10,} documents {count.bytes:>14,} bytes {count.tokens:>14,} tokens "
            f"({count.bytes / count.tokens:.3f} bytes/token) in {files} file{'s' if files > 1 else ''}"
        )
        if count.tokens < FEW_TOKENS:
            print(
                f"note: {name} has only {count.tokens:,} tokens, not a row of {FEW_TOKENS:,}; --split cuts otherwise."
            )
    say_notes(manifest.notes)
    total = sum(count.bytes for count in manifest.splits.values())
    rate = "after going on" if resumed else f"{total / 1e6 / seconds:.1f} MB/s"
    print(f"{request.output}: {manifest.tokenizer}, {manifest.dtype}, {seconds:.1f} s ({rate})")


if __name__ == "__main__":
    with explained():
        prepare(tyro.cli(Prepare, prog="python -m data_pipelines.prepare"))
