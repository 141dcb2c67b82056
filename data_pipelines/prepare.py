"""Any text to token shards: `python -m data_pipelines.prepare --help`.

    python -m data_pipelines.prepare --source=books/ --tokenizer=gpt2 --output=data/books
    python -m data_pipelines.prepare --source=stdlib --tokenizer=bpe:1024 --output=data/stdlib
    python -m data_pipelines.prepare --source=train/ --validation-source=val/ --tokenizer=gpt2 --output=data/own
    python -m data_pipelines.prepare --source=shakespeare --tokenizer=chars --split=tail:0.1 --output=data/shakespeare

Often given:

    --source            a file, a directory, a quoted pattern, hf:OWNER/NAME, tfds:NAME or a recipe
    --tokenizer         gpt2, bytes, chars, bpe:SIZE (learned from this text), or a tokenizer.json
    --text-field        where the text of a record is, if that is not called `text`
    --separator         what cuts a text file into documents
    --split             what is kept for validation: hash:F, tail:F or none; or --validation-source
    --output            the directory to make

The output is a directory of shards with `manifest.json` and `tokenizer.json`; it appears when it is complete. The same
request again finds it and stops. After a kill the same command continues, to the same bytes.
"""

import contextlib
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.encode.bpe_trainer import describe_fewer, train_bpe_on_documents
from data_pipelines.encode.encoder import (
    DEFAULT_LIMITS,
    Encoder,
    Limits,
    encode_batches,
    find_separator,
    iter_batches,
)
from data_pipelines.encode.splits import Corpus, choose_default_split
from data_pipelines.encode.worker_pool import Workers
from data_pipelines.output.build import ShardContents, build_shards
from data_pipelines.output.journal import Journal, Progress
from data_pipelines.output.shard_writer import open_split_writers
from data_pipelines.readers.documents import TEXT_FIELD, ReadContext, iter_text, parse_separator
from data_pipelines.readers.sources import count_local_bytes, has_text_files, open_source
from data_pipelines.recipes import RECIPES
from data_pipelines.runtime.options import ShardOptions, find_model, read_positions, require_at_least, run_command
from data_pipelines.runtime.progress import progress_line
from data_pipelines.runtime.split_specs import DEFAULT_SPLIT
from gptjax.core.errors import UserError
from gptjax.data.fitting_flags import TEXT_FLAGS, FittingFlags
from gptjax.data.manifest import MANIFEST_VERSION, Manifest
from gptjax.data.shards import load_shard_tokenizer
from gptjax.tokenization.tokenizer import Chars, Tokenizer, load_tokenizer, note_left_out
from gptjax.tokenization.tokenizer_json import FILE_NAME


@dataclass(frozen=True, kw_only=True)
class Prepare(ShardOptions):
    """Tokenise a source into shards."""

    train_flags: ClassVar[FittingFlags] = TEXT_FLAGS
    least_tokens: ClassVar[int] = 257
    source: str
    """A text, .jsonl, .csv (plain, .gz, .zst), .json, .parquet, .arrow or .array_record file, a directory, a pattern,
    `hf:OWNER/NAME`, `tfds:NAME`, `stdlib`, `shakespeare`, a class of your own as `my_reader.py:Mails`, or a recipe such
    as `openwebtext` (see `python -m data_pipelines.recipes`)."""
    tokenizer: str | None = None
    """`gpt2`, `gpt2:DIR`, `bytes`, a tokenizer.json; or learned from this text: `chars`, `bpe:SIZE` (from 2 GB of its
    training part at most; a text with fewer merges gives fewer ids)."""
    split: str | None = None
    """Validation split: `hash:F` (by a hash of the text; by default hash:0.005, or hash:0.1 of 100 documents or more in
    less than 8 MiB; of a single text or of few, at least a tenth as the tail), `tail:F` (the last characters),
    `random:K/N/SEED` (K of N documents, as nanoGPT draws them), or `none`."""
    max_document_tokens: int | None = None
    """Longer documents continue as further documents of at most so many tokens, each with its `<|endoftext|>`."""
    end_of_text: str | None = None
    """The special token that begins documents, such as `</s>`. Default: what tokenizer_config.json or
    special_tokens_map.json beside the tokenizer says, else `<|endoftext|>`, if the tokenizer has it."""
    processes: int | None = None
    """Worker processes; by default one for each core. Small sources need none."""
    text_field: str = TEXT_FIELD
    """Where the text of a record is: a key of JSON objects, a column of a table, of Parquet or of Arrow, a feature of a
    TFDS set (there, if it has no `text`, the only one of text). `content.text` is a field inside another, and
    `title,body` are two, whose texts become paragraphs."""
    separator: str | None = None
    """Cut text files into documents here, such as `<|endoftext|>` or `\\n\\n`. By default a file is one document."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, processes=self.processes)
        parse_separator(self.separator)

    def choose_flags(self, tokens: int) -> str:
        """Where the tokenizer is that of a model, the model is trained on, at the rate of fine-tuning."""
        if (model := find_model(self.tokenizer)) is None:
            return super().choose_flags(tokens)
        return f"--config=own_finetune_cpu --init-from={shlex.quote(str(model))}"

    def limit_context(self, length: int) -> int:
        model = find_model(self.tokenizer)
        return min(length, read_positions(model) or length) if model is not None else length

    def suggest_flag(self, manifest: Manifest) -> str | None:
        """A separator that text files have and that was learnt; a split whose validation fills a row."""
        if self.separator is None and (mark := find_separator(manifest.notes)) is not None:
            return f"--separator={shlex.quote(mark)}"
        tokens, val = sum(count.tokens for count in manifest.splits.values()), manifest.splits.get("val")
        if val is None or val.tokens >= self.least_tokens or self.validation_source is not None:
            return None
        if tokens >= 20 * self.least_tokens:
            return "--split=tail:0.1"
        return "--split=none" if val.tokens < 2 else None

    def make_context(self) -> ReadContext:
        """How the source is read."""
        return ReadContext(self.text_field, self.strict, separator=parse_separator(self.separator))


class PrepareForRun(Prepare):
    """The same, as the config of a run asks for it, by flags such as `--data.source` and `--data.split`."""

    again: ClassVar[str] = ""
    """Other options have another directory."""

    def spell_flags(self, text: str) -> str:
        return re.sub(r"--(?=(source|tokenizer|split|text-field|separator|end-of-text)\b)", "--data.", text)


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with its defaults filled in, its corpus opened and its tokenizer loaded."""

    options: Prepare
    corpus: Corpus
    tokenizer: Tokenizer | None
    """None for one that is to be learned from the text."""
    has_default_split: bool = False

    def identity(self) -> dict[str, Any]:
        """JSON that decides the output: two requests with the same identity have the same result."""
        return self.corpus.identity() | {
            "tokenizer": self.options.tokenizer if self.tokenizer is None else self.tokenizer.fingerprint,
            "shard_tokens": self.options.shard_tokens,
            "max_document_tokens": self.options.max_document_tokens,
            "text_field": self.options.text_field,
            "separator": self.options.separator,
            "strict": self.options.strict,
            "format": MANIFEST_VERSION,
        }


def resolve_request(
    request: Prepare, *, workers: Workers | None = None, limits: Limits = DEFAULT_LIMITS
) -> ResolvedRequest:
    """Fill in defaults, from a recipe if the source names one; open the sources and load the tokenizer.

    Of `workers`, those that a large source will need start while the tokenizer loads.

    Raises `UserError` for a source, split or tokenizer that does not exist.
    """
    if (recipe := RECIPES.get(request.source)) is not None:
        request = replace(request, source=recipe.source, tokenizer=request.tokenizer or recipe.tokenizer)
        if request.split is None and request.validation_source is None:
            request = replace(request, split=recipe.split, validation_source=recipe.validation_source)
    spec, other = request.tokenizer, request.validation_source
    if not spec:
        raise UserError("--tokenizer is not given: gpt2, bytes, chars, bpe:SIZE or a tokenizer.json.")
    if spec.partition(":")[0] == "bpe" and not spec.removeprefix("bpe:").isdecimal():
        raise UserError(
            f"tokenizer {spec!r}: wanted a number of tokens, such as bpe:8192, which is learned from the text."
        )
    validation = None if other is None else open_source(other)
    source, has_choice = open_source(request.source), request.split is None and validation is None
    if has_choice:
        split = choose_default_split(source, request.make_context(), size=count_local_bytes(source))
        request = replace(request, split=split)
    corpus = Corpus(source, request.effective_split, validation)
    is_learned = spec == "chars" or spec.startswith("bpe:")
    if is_learned and request.end_of_text is not None:
        raise UserError(f"--end-of-text is for a tokenizer that exists; {spec} is learned from the text.")
    if is_learned:
        return ResolvedRequest(request, corpus, None, has_choice)
    if workers is not None and not request.output.exists():
        size, modules = count_local_bytes(corpus.source), (Encoder.__module__, "gptjax.tokenization.table_tokenizers")
        workers.start_ahead(size, *modules, processes=request.processes, pool_size=limits.pool_bytes)
    tokenizer = note_left_out(load_shard_tokenizer(spec, end_of_text=request.end_of_text), spec)
    return ResolvedRequest(request, corpus, tokenizer, has_choice)


def prepare(request: Prepare | ResolvedRequest, *, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Prepare the data unless it exists already; prints progress to stderr and a summary to stdout."""
    with Workers() as workers:
        is_resolved = isinstance(request, ResolvedRequest)
        resolved = request if is_resolved else resolve_request(request, workers=workers, limits=limits)

        def write(directory: Path, identity: dict[str, Any]) -> ShardContents:
            journal = Journal(directory, identity, seconds=limits.record_seconds)
            tokenizer = resolved.tokenizer or _load_or_learn(directory, resolved, journal=journal)
            return _write_shards(directory, resolved, tokenizer, journal=journal, limits=limits, workers=workers)

        # What was prepared when all sources had the same default is still what this request made.
        former = {"split": DEFAULT_SPLIT} if resolved.has_default_split else {}
        return build_shards(resolved.options, resolved.identity, write=write, former=former)


def _load_or_learn(directory: Path, request: ResolvedRequest, *, journal: Journal) -> Tokenizer:
    """Learn the tokenizer, unless an earlier run has saved it in the directory."""
    if not (directory / FILE_NAME).is_file():
        context = request.options.make_context()
        spec = request.options.tokenizer or ""
        documents = request.corpus.iter_to_learn(context, spec=request.options.source)
        if spec == "chars":  # of both splits, as nanoGPT does: a rare letter in validation needs an id
            tokenizer = Chars.from_text(text for _, document in documents for text in iter_text(document))
        else:
            train = (document for side, document in documents if side == "train")
            tokenizer = train_bpe_on_documents(train, vocab_size=int(spec.removeprefix("bpe:")))
        tokenizer.save(directory)
        journal.record(Progress())
    return load_tokenizer(directory)


def _write_shards(
    directory: Path,
    request: ResolvedRequest,
    tokenizer: Tokenizer,
    *,
    journal: Journal,
    limits: Limits,
    workers: Workers,
) -> ShardContents:
    """Write what is not written yet."""
    options, corpus, done = request.options, request.corpus, journal.progress
    documents, notes = done.documents, done.notes
    if options.max_document_tokens is not None:
        limits = replace(limits, piece_bytes=sys.maxsize)  # only whole documents can be counted
    context = replace(options.make_context(), block_bytes=limits.batch_bytes)
    has_text = any(map(has_text_files, (corpus.source, corpus.validation)))
    encoder = Encoder(tokenizer, context.fresh_copy(), options.max_document_tokens, has_text)
    batches = iter_batches(corpus.iter_chunks(context), context, tokenizer=tokenizer, limits=limits, start=done.units)
    encoded = encode_batches(batches, encoder, processes=options.processes, limits=limits, workers=workers)
    with (
        open_split_writers(directory, options, vocab_size=tokenizer.vocab_size, states=done.splits) as writers,
        progress_line("encoding") as show,
        contextlib.closing(encoded),
    ):
        for batch in encoded:
            for split, tokens, starts, size in batch.iter_splits(documents):
                writers[split].append(tokens, starts, size=size)
            documents += batch.documents
            notes.add(batch.notes)
            if journal.is_due():
                journal.record(Progress(batch.end, documents, {name: w.sync() for name, w in writers.items()}, notes))
            size, tokens = (sum(getattr(w, count) for w in writers.values()) for count in ("bytes", "tokens"))
            show(f"encoding: {size / 1e6:,.1f} MB, {tokens / 1e6:,.2f} M tokens")
        corpus.check_count(documents)
    notes.add(context.notes)
    spec, lines = options.tokenizer or "", notes.lines()
    if spec.startswith("bpe:"):
        lines += describe_fewer(tokenizer, int(spec.removeprefix("bpe:")))
    counts = {name: writer.counts for name, writer in writers.items()}
    are_together = any(count.documents > 1 for count in counts.values())  # a tail may cut a single text in two
    if are_together and (problem := tokenizer.explain_no_end_of_text()):
        lines.append(problem)
    return counts, tokenizer, lines


if __name__ == "__main__":
    run_command(prepare, Prepare)
