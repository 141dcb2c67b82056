"""Documents of which only a part is scored, written as shards: what conversations and preferences have in common.

The one idea: an example becomes one or more documents of (tokens, marks), always kept together. Beside the shards of
a split lie its companions `SPLIT.documents` and `SPLIT.scored`. What cannot be used is left out, counted and named.
"""

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.companions import CompanionWriter
from data_pipelines.json_lines import json_lines
from data_pipelines.progress import moving_line
from data_pipelines.sources import open_source
from data_pipelines.splits import Split
from data_pipelines.writing import SplitWriter, locked, replaced, sync
from gptjax.chat import Scored
from gptjax.errors import UserError
from gptjax.manifest import MANIFEST_NAME, MANIFEST_VERSION, Companion, Counts, Manifest, ShardFile, read_manifest
from gptjax.shards import open_split, token_dtype
from gptjax.tokenizer import Tokenizer

DEFAULT_SPLIT = "documents:0.005"
NAMED = 5
"""So many of the lines that are left out are named in the report."""


@dataclass(frozen=True)
class PrepareScored:
    """What is asked for, of conversations and preferences alike."""

    source: str
    """A .jsonl or .jsonl.gz file, a directory of them or a quoted pattern."""
    tokenizer: str
    """`gpt2`, a tokenizer.json or a directory with one."""
    output: Path
    """Directory to make."""
    split: str | None = None
    """Validation: `documents:F` (by hash, equal ones on one side; by default documents:0.005), or `none`."""
    validation_source: str | None = None
    """Instead of a split: all of this other source is for validation, and all of SOURCE for training."""
    max_document_tokens: int | None = None
    """Longer documents are cut off behind so many tokens, and left out if no scored one remains; model.context of
    them fit into a row."""
    shard_tokens: int = 100_000_000
    """Tokens in one file."""
    strict: bool = False
    """Stop at the first line that is not as it should be, instead of leaving it out."""
    overwrite: bool = False
    """Replace what an earlier, different request left in OUTPUT."""

    def __post_init__(self) -> None:
        if self.split is not None and self.validation_source is not None:
            raise UserError("--split and --validation-source are both given: choose one.")
        if self.divided.kind == "tail":
            raise UserError(f"--split={self.split}: wanted documents:F or none.")
        if self.max_document_tokens is not None and self.max_document_tokens < 2:
            raise UserError(f"--max-document-tokens={self.max_document_tokens}: wanted at least 2.")
        if self.shard_tokens < 1:
            raise UserError(f"--shard-tokens={self.shard_tokens}: wanted at least 1.")

    @property
    def divided(self) -> Split:
        """Which part of SOURCE is for validation."""
        return Split.parse(self.split or (DEFAULT_SPLIT if self.validation_source is None else "none"))


class Example(NamedTuple):
    """Documents that belong together; examples with the same key are for the same split."""

    key: str
    documents: list[Scored]


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
    output = request.output.absolute()
    with locked(output):
        if (manifest := _existing(output, record, overwrite=request.overwrite)) is not None:
            print(f"{request.output}: already prepared by the same request")
            return manifest
        report = _Report()
        with replaced(output) as directory:
            manifest = _write(directory, request, record, kind, tokenizer, report)
    report.show(request, manifest, kind)
    return manifest


def _record(request: PrepareScored, kind: Kind, tokenizer: Tokenizer) -> dict[str, Any]:
    """What decides the output: two requests with the same record have the same result."""
    options: dict[str, Any] = {"shard_tokens": request.shard_tokens, "max_document_tokens": request.max_document_tokens}
    options["split"], other = str(request.divided), request.validation_source
    identities = {"source": open_source(request.source).identity()}
    identities |= {} if other is None else {"validation_source": open_source(other).identity()}
    made = {"kind": kind.name, "tokenizer": tokenizer.fingerprint, "format": MANIFEST_VERSION}
    return options | identities | made


def _existing(output: Path, record: dict[str, Any], *, overwrite: bool) -> Manifest | None:
    """The manifest of `output` if it is what is asked for; None if it may be (re)made; else an error."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not all((output / name).is_file() for name in (MANIFEST_NAME, "tokenizer.json")):
        raise UserError(f"{output}: exists and is not prepared data; it will not be replaced. Choose another --output.")
    if overwrite:
        return None
    manifest = read_manifest(output)
    assert manifest is not None
    differing = sorted(key for key in record | manifest.request if record.get(key) != manifest.request.get(key))
    if differing:
        raise UserError(
            f"{output}: was prepared by another request ({', '.join(differing)} differ). "
            "Choose another --output, or replace it with --overwrite."
        )
    for split in manifest.splits:
        open_split(output, split)
    return manifest


class _Report:
    """What was left out and why, and how much of the rest is scored."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.broken: list[str] = []
        self.examples: Counter[str] = Counter()
        self.scored: Counter[str] = Counter()
        self.start = time.perf_counter()

    def leave_out(self, error: UserError) -> None:
        if isinstance(error, LeftOut):
            self.reasons[str(error)] += 1
        else:
            self.reasons["broken lines left out"] += 1
            self.broken += [str(error)] if len(self.broken) < NAMED else []

    def show(self, request: PrepareScored, manifest: Manifest, kind: Kind) -> None:
        for name, count in manifest.splits.items():
            examples, share = f"{self.examples[name]:>10,} {kind.plural}", self.scored[name] / count.tokens
            print(f"{name:5} {examples} {count.bytes:>14,} bytes {count.tokens:>14,} tokens ({share:.1%} scored)")
        for reason, times in sorted(self.reasons.items()):
            print(f"note: {times:,} {reason}")
        for message in self.broken:
            print(f"  {message}")
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
    dtype = token_dtype(tokenizer.vocab_size)
    only_train = request.validation_source is None and request.divided.kind == "none"
    names = ("train",) if only_train else ("train", "val")
    writers: dict[str, _ScoredWriter] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            writer = _ScoredWriter(directory, name, dtype=dtype, shard_tokens=request.shard_tokens)
            writers[name] = stack.enter_context(writer)
        show = stack.enter_context(moving_line(f"reading {request.source}"))
        for split, documents in _examples(request, kind, report):
            for document in documents:
                size = int(tokenizer.bytes_per_token[document.tokens].sum())
                writers[split].append(document, size=size)
                report.scored[split] += int(document.scored.sum())
            report.examples[split] += 1
            written = sum(writer.counts.tokens for writer in writers.values())
            show(f"{report.examples.total():,} {kind.plural}, {written / 1e6:,.2f} M tokens")
    counts = {name: writer.counts for name, writer in writers.items()}
    _refuse_empty(request, kind, counts, report)
    sync(tokenizer.save(directory))
    manifest = Manifest(
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype.name,
        splits=counts,
        files={name: file for writer in writers.values() for name, file in writer.files.items()},
        companions={name: file for writer in writers.values() for name, file in writer.companions.items()},
        request=record,
    )
    manifest.write(directory)
    return manifest


def _examples(request: PrepareScored, kind: Kind, report: _Report) -> Iterator[tuple[str, list[Scored]]]:
    """The split and the documents of every example that can be used, in the order of the source."""
    sources = [(request.source, request.divided.fraction)]
    if request.validation_source is not None:
        sources.append((request.validation_source, 1.0))
    for spec, fraction in sources:
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
                yield _side(example.key, fraction), documents


def _side(key: str, fraction: float) -> str:
    """For validation are the keys whose hash falls into this fraction."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "val" if share < fraction else "train"


def _shortened(documents: list[Scored], limit: int | None, kind: Kind, report: _Report) -> list[Scored] | None:
    """All documents with at most `limit` tokens; None where they lose what is scored, or what makes them differ."""
    if limit is None or all(len(document.tokens) <= limit for document in documents):
        return documents
    short = [Scored(document.tokens[:limit], document.scored[:limit]) for document in documents]
    differ = len({document.tokens.tobytes() for document in short}) == len(short)
    useful = differ and all(document.scored.any() for document in short)
    what = "cut off" if useful else "left out: nothing left to learn"
    report.reasons[f"{kind.plural} {what} at --max-document-tokens={limit}"] += 1
    return short if useful else None


def _refuse_empty(request: PrepareScored, kind: Kind, counts: dict[str, Counts], report: _Report) -> None:
    total = sum(count.documents for count in counts.values())
    if total == 0:
        why = report.broken[0] if report.broken else "; ".join(report.reasons) or "it is empty"
        raise UserError(f"source {request.source}: holds no {kind.plural} that can be used. {why}")
    for name, count in counts.items():
        if count.documents == 0:
            raise UserError(
                f"nothing is left for {name} (of {total} documents, with --split={request.divided}). Use another "
                "fraction, none, or another --validation-source."
            )


class _ScoredWriter:
    """The shards of one split with both of their companions; used as a context."""

    def __init__(self, directory: Path, split: str, *, dtype: np.dtype, shard_tokens: int) -> None:
        self.counts = Counts(0, 0, 0)
        self._shards = SplitWriter(directory, split, dtype=dtype, shard_tokens=shard_tokens)
        self._documents = CompanionWriter(directory, split, "documents")
        self._scored = CompanionWriter(directory, split, "scored")
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_ScoredWriter":
        for writer in (self._shards, self._documents, self._scored):
            self._open.enter_context(writer)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @property
    def files(self) -> dict[str, ShardFile]:
        return self._shards.files

    @property
    def companions(self) -> dict[str, Companion]:
        return self._documents.files | self._scored.files

    def append(self, document: Scored, *, size: int) -> None:
        """Add one document, of which `size` bytes are text."""
        self._documents.append([self.counts.tokens])
        self._scored.append(document.scored)
        self._shards.append(document.tokens)
        counts = self.counts
        self.counts = Counts(counts.documents + 1, counts.tokens + len(document.tokens), counts.bytes + size)
