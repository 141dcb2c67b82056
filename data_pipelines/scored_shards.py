"""Documents of which only a part is scored, as shards: shared by conversations and preferences.

An example becomes one or more documents of (tokens, marks), which are for the same split. Beside the shards of a split
are its sidecars `SPLIT.documents` and `SPLIT.scored`. Invalid records are skipped and counted, each kind by itself.

Blocks of records are parsed and encoded on all cores. A killed command continues behind the last recorded block.
"""

import contextlib
import functools
import itertools
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.conversations.block_encoder import BlockEncoder, ExampleKind, Task
from data_pipelines.encode.encoder import DEFAULT_LIMITS, Limits
from data_pipelines.encode.splits import AllTo, HashFraction, SplitRule, Tail, parse_split
from data_pipelines.encode.worker_pool import Workers, map_on_cores
from data_pipelines.output.build import ShardContents, build_shards
from data_pipelines.output.journal import Journal, Progress
from data_pipelines.output.shard_writer import open_split_writers
from data_pipelines.readers.fields import parse_renaming
from data_pipelines.readers.record_sources import RecordSource, open_records
from data_pipelines.readers.records import BLOCK_BYTES
from data_pipelines.runtime.options import ShardOptions, count_weight_bytes, find_model, require_at_least
from data_pipelines.runtime.progress import progress_line
from data_pipelines.runtime.split_specs import INSTEAD
from gptjax.core.errors import UserError, count_of
from gptjax.data.manifest import MANIFEST_VERSION, Counts, Manifest
from gptjax.tokenization.chat import with_jinja
from gptjax.tokenization.chat_template import read_jinja_template
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer, note_left_out
from gptjax.tokenization.tokenizer_json import find_tokenizer_directory

RECORDS_VERSION = 11
"""Increase it whenever the same records become other tokens."""
ENCODERS = (BlockEncoder.__module__, "data_pipelines.conversations.examples", "gptjax.tokenization.table_tokenizers")
"""What workers import."""
SMALL_BYTES, SMALL_SPLIT = 2**23, "hash:0.05"
"""Sources of fewer bytes have another split by default."""
LARGE_BYTES = 2**26
"""Sources of so many have examples for both sides of any usual split."""


@dataclass(frozen=True, kw_only=True)
class PrepareScored(ShardOptions):
    """Options of conversations and preferences alike."""

    tokenizer: str
    """`gpt2`, `gpt2:DIR`, a tokenizer.json or a directory with one."""
    end_of_text: str | None = None
    """The special token that begins documents, such as `</s>`. Default: as in `prepare`, what the files beside the
    tokenizer say, else `<|endoftext|>`, if the tokenizer has it."""
    rename_fields: str | None = None
    """Names of fields that are not known, with the known ones, such as `Frage:prompt,Antwort:completion`;
    `body.messages:messages` is a field inside another."""
    processes: int | None = None
    """Worker processes; by default one for each core. Small sources need none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, processes=self.processes)
        parse_renaming(self.rename_fields)
        if self.split is not None and not isinstance(rule := parse_split(self.split), HashFraction | AllTo):
            meant = f" Write --split=hash:{rule.fraction:g}." if isinstance(rule, Tail) else ""
            raise UserError(f"--split={self.split}: wanted hash:F or none.{meant}")

    @property
    def renamed(self) -> dict[str, str]:
        """The fields that have another name in the source."""
        return parse_renaming(self.rename_fields)

    @functools.cached_property
    def sources(self) -> dict[str, RecordSource]:
        """The sources by the flag that names them."""
        other = None if self.validation_source is None else open_records(self.validation_source)
        return {"source": open_records(self.source)} | ({} if other is None else {"validation_source": other})

    @contextlib.contextmanager
    def start_workers(self, limits: Limits) -> Iterator[Workers]:
        """The workers of this request; those that a large source will need start at once."""
        with Workers() as workers:
            with contextlib.suppress(UserError):  # what is wrong with a source is told where it is read
                if not self.output.exists():
                    size = self.sources["source"].size
                    workers.start_ahead(size, *ENCODERS, processes=self.processes, pool_size=limits.pool_bytes)
            yield workers

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, with the end of text that was asked for and the chat template of a saved model."""
        tokenizer = note_left_out(load_tokenizer(self.tokenizer, end_of_text=self.end_of_text), self.tokenizer)
        directory = find_tokenizer_directory(self.tokenizer)
        return tokenizer if directory is None else with_jinja(tokenizer, read_jinja_template(directory))

    def choose_flags(self, tokens: int) -> str:
        """Where the tokenizer is that of a model, the model is named, too, and its size decides."""
        if (model := find_model(self.tokenizer)) is None:
            return super().choose_flags(tokens)
        flags = self.train_flags.choose(tokens, weight_bytes=count_weight_bytes(model))
        return f"{flags} --init-from={shlex.quote(str(model))}"

    @property
    def effective_split(self) -> str:
        """As given; by default a larger part of a small source, so that it has a validation split."""
        if self.split is not None or self.validation_source is not None:
            return super().effective_split
        return SMALL_SPLIT if self.sources["source"].size < SMALL_BYTES else super().effective_split

    def suggest_splits(self, used: str) -> str:
        return "--split=none or a --validation-source"


@dataclass(frozen=True)
class ExampleSplit:
    """The split of the source's examples. It is decided once, when it is first asked for.

    `read_key` gets a record and its place, and gives what decides its split. It raises `UserError` for invalid ones.
    `fields` are the columns of Parquet that it reads.
    """

    request: PrepareScored
    fields: tuple[str, ...]
    read_key: Callable[[Any, str], str]

    @property
    def rule(self) -> SplitRule:
        """The rule that was asked for; where a hash would put all examples on one side, another hash."""
        return self._choice[0]

    @property
    def different(self) -> int:
        """The number of different keys, where another hash was chosen for want of them; else 0."""
        return self._choice[1]

    @functools.cached_property
    def _choice(self) -> tuple[SplitRule, int]:
        """The rule, and the number of different keys where it is not the one that was asked for.

        Keys are read until both sides have one, and not from a source of `LARGE_BYTES` or more. An answer that
        `--max-document-tokens` cuts off has a key, too: a tokenizer that is learned does not exist yet.
        """
        rule = parse_split(self.request.effective_split)
        assert isinstance(rule, SplitRule)
        if not isinstance(rule, HashFraction) or self.request.sources["source"].size >= LARGE_BYTES:
            return rule, 0
        found = set[float]()
        with progress_line(f"choosing the split of {self.request.source}") as show:
            points = (rule.point(key.encode()) for key in self._iter_keys(show))
            wider = rule.widen(found.add(point) or point for point in points)
        return (rule, 0) if wider is None else (wider, len(found))

    def _iter_keys(self, show: Callable[[str], None]) -> Iterator[str]:
        """The keys of examples; what is wrong with other records is told when they are encoded."""
        count = 0
        for block in self.request.sources["source"].iter_blocks(self.fields, BLOCK_BYTES):
            for where, record in block.read():
                count += 1
                if not isinstance(record, UserError):
                    with contextlib.suppress(UserError):
                        yield self.read_key(record, where)
            show(f"choosing the split: {count:,} records")


def prepare_scored(
    request: PrepareScored, kind: ExampleKind, split: ExampleSplit, *, workers: Workers, limits: Limits
) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""

    def compute_identity() -> dict[str, Any]:
        return {
            "kind": kind.name,
            "tokenizer": kind.tokenizer.fingerprint,
            **({} if (begin := kind.tokenizer.begin_of_text_name) is None else {"begin_of_text": begin}),
            "chat_template": None if (template := kind.tokenizer.chat_template) is None else template.to_dict(),
            "split": request.effective_split,
            "shard_tokens": request.shard_tokens,
            "max_document_tokens": request.max_document_tokens,
            "strict": request.strict,
            "format": MANIFEST_VERSION,
            "records": RECORDS_VERSION,
            **{flag: source.identity() for flag, source in request.sources.items()},
            **({"rename_fields": request.renamed} if request.renamed else {}),
            **kind.identity,
        }

    def write(directory: Path, identity: dict[str, Any]) -> ShardContents:
        journal = Journal(directory, identity, seconds=limits.record_seconds)
        return _write_shards(directory, request, kind, split, journal=journal, limits=limits, workers=workers)

    return build_shards(request, compute_identity, write=write, what=f"usable {kind.plural}")


def _write_shards(
    directory: Path,
    request: PrepareScored,
    kind: ExampleKind,
    split: ExampleSplit,
    *,
    journal: Journal,
    limits: Limits,
    workers: Workers,
) -> ShardContents:
    """Write what is not written yet."""
    tokenizer, done = kind.tokenizer, journal.progress
    units, examples, notes = done.units, done.documents, done.notes
    encoder = BlockEncoder(kind, request.strict, request.max_document_tokens)
    tasks = itertools.islice(_iter_tasks(request, kind, limits, rule=split.rule), units, None)
    size = lambda task: task.block.size
    encoded = map_on_cores(
        encoder, tasks, processes=request.processes, size=size, pool_size=limits.pool_bytes, workers=workers
    )
    with (
        open_split_writers(directory, request, vocab_size=tokenizer.vocab_size, states=done.splits) as writers,
        progress_line(f"reading {request.source}") as show,
        contextlib.closing(encoded),
    ):
        for block in encoded:
            for name, part in block.splits.items():
                writers[name].append(part.tokens, part.starts, scored=part.scored, size=part.size)
            units, examples = units + 1, examples + block.examples
            notes.add(block.notes)
            if journal.is_due():
                states = {name: writer.sync() for name, writer in writers.items()}
                journal.record(Progress(units, examples, states, notes))
            show(f"{examples:,} {kind.plural}")
    lines = [*(kind.notes if examples else ()), *notes.lines()]
    if isinstance(rule := split.rule, HashFraction) and split.different:
        few = f"{count_of(examples, kind.plural)}, too few for {request.effective_split}"
        if split.different < examples:
            different = count_of(split.different, f"different {kind.keys}")
            few = f"{count_of(examples, kind.plural)} have {different}, too few for {request.effective_split}"
        lines.append(f"{few}: {INSTEAD.format(f'hash:{rule.fraction}')}")
    counts = {name: writer.counts for name, writer in writers.items()}
    if request.max_document_tokens is not None and request.validation_source is None:
        _check_cut(request, kind, counts, encoder, split.rule)
    return counts, tokenizer, lines


def _check_cut(
    request: PrepareScored, kind: ExampleKind, counts: dict[str, Counts], encoder: BlockEncoder, rule: SplitRule
) -> None:
    """Raise a `UserError` with a split that works if examples that are cut off were all of one side."""
    sides, size = [count.documents > 0 for count in counts.values()], request.sources["source"].size
    if all(sides) or not any(sides) or not isinstance(rule, HashFraction) or size >= LARGE_BYTES:
        return
    points = list[float]()
    for task in _iter_tasks(request, kind, DEFAULT_LIMITS, rule=rule):
        points += [rule.point(key.encode()) for key in encoder.list_keys(task)]
    if (other := rule.widen(points)) is not None:
        empty, number = list(counts)[sides.index(False)], count_of(len(points), kind.plural)
        raise UserError(
            f"--split=hash:{rule.fraction} leaves no usable {kind.plural} for {empty}: {number} have an answer within "
            f"--max-document-tokens={request.max_document_tokens}. Use --split=hash:{other.fraction}, a larger "
            f"--max-document-tokens, or --split=none."
        )


def _iter_tasks(request: PrepareScored, kind: ExampleKind, limits: Limits, *, rule: SplitRule) -> Iterator[Task]:
    rules = {"source": rule, "validation_source": AllTo("val")}
    for flag, source in request.sources.items():
        for block in source.iter_blocks(kind.fields, limits.batch_bytes):
            yield Task(rules[flag], block)


def note_added_tokens(given: Tokenizer, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Notes of the special tokens that the tokenizer got: rows for new ones, and that no text becomes the others."""
    news = {name: i for name, i in tokenizer.specials.items() if name not in given.specials}
    added = " and ".join(name for name, i in news.items() if i >= given.vocab_size)
    roles = " and ".join(name for name, i in news.items() if i < given.vocab_size)
    found = [f"{added} were added to {given.name}: a model needs {tokenizer.vocab_size:,} ids."] if added else []
    found += [f"{roles} are roles here: a text that spells one stays text."] if roles else []
    return tuple(found)
