"""Parses and encodes blocks of records, in any process."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.conversations.examples import Example
from data_pipelines.encode.splits import Split, SplitRule
from data_pipelines.readers.documents import INVALID, Notes, ReadContext
from data_pipelines.readers.records import RecordBlock
from gptjax.core.errors import UserError
from gptjax.data.shards import token_dtype
from gptjax.tokenization.chat import MaskedTokens
from gptjax.tokenization.messages import InvalidRecord, UselessRecord
from gptjax.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class ExampleKind:
    """A kind of examples: its name, its plural, whose tokens it has, and how a record becomes an example.

    `encode` gets the record and its place; it raises `UserError` for an invalid one and `UselessRecord`. It can be
    pickled. `fields` are the columns of Parquet that it reads. `notes` are told once, when the shards are written.
    `identity` is JSON of further options that decide the output. `keys` names what decides the split of an example.
    """

    name: str
    plural: str
    tokenizer: Tokenizer
    encode: Callable[[Any, str], Example]
    fields: tuple[str, ...]
    notes: tuple[str, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    keys: str = "conversations"


class Task(NamedTuple):
    """A block of records and the rule of its split."""

    rule: SplitRule
    block: RecordBlock


class EncodedSplit(NamedTuple):
    """Documents of a split, one after another."""

    tokens: np.ndarray
    scored: np.ndarray
    starts: np.ndarray
    size: int
    """Bytes of text."""


class EncodedBlock(NamedTuple):
    """What a block gave."""

    splits: dict[Split, EncodedSplit]
    examples: int
    notes: Notes


@dataclass(frozen=True)
class BlockEncoder:
    """Parses and encodes a block, in any process."""

    kind: ExampleKind
    strict: bool
    max_tokens: int | None

    def __call__(self, task: Task) -> EncodedBlock:
        context, documents, count = ReadContext(strict=self.strict), dict[Split, list[MaskedTokens]](), 0
        for where, record in task.block.read():
            try:
                if isinstance(record, UserError):
                    raise record
                key, encoded, notes = self._fit(self.kind.encode(record, where))
            except UselessRecord as error:
                add_note(context.notes, str(error), where)
                continue
            except UserError as error:
                context.skip_record(str(error), note=error.note if isinstance(error, InvalidRecord) else INVALID)
                continue
            for note in notes:
                add_note(context.notes, note, where)
            documents.setdefault(task.rule.choose_split(key.encode()), []).extend(encoded)
            count += 1
        return EncodedBlock({side: self._join(each) for side, each in documents.items()}, count, context.notes)

    def list_keys(self, task: Task) -> list[str]:
        """The keys of the usable examples of a block."""
        keys = list[str]()
        for where, record in task.block.read():
            with contextlib.suppress(UserError):
                if not isinstance(record, UserError):
                    keys.append(self._fit(self.kind.encode(record, where)).key)
        return keys

    def _fit(self, example: Example) -> Example:
        """Cut off behind `max_tokens`; raises `UselessRecord` where no answer or no difference is left."""
        limit, plural = self.max_tokens, self.kind.plural
        documents, notes = example.documents, example.notes
        if limit is not None and any(len(document.tokens) > limit for document in documents):
            documents = [MaskedTokens(document.tokens[:limit], document.loss_mask[:limit]) for document in documents]
            if not all(document.loss_mask.any() for document in documents):
                raise UselessRecord(f"{plural} skipped: no answer is left at --max-document-tokens={limit}")
            if len({document.tokens.tobytes() for document in documents}) < len(documents):
                raise UselessRecord(f"{plural} skipped: no difference is left at --max-document-tokens={limit}")
            notes = (*notes, f"{plural} cut off at --max-document-tokens={limit}")
        return Example(example.key, documents, notes)

    def _join(self, documents: list[MaskedTokens]) -> EncodedSplit:
        tokenizer = self.kind.tokenizer
        tokens = np.concatenate([document.tokens for document in documents])
        lengths = np.array([len(document.tokens) for document in documents])
        return EncodedSplit(
            tokens.astype(token_dtype(tokenizer.vocab_size)),
            np.concatenate([document.loss_mask for document in documents]),
            np.cumsum(lengths) - lengths,
            int(tokenizer.bytes_per_token[tokens].sum()),
        )


def add_note(notes: Notes, note: str, where: str) -> None:
    """Count a note, with the place where it is first true."""
    notes[note] += 1
    notes.first.setdefault(note, where)
