"""The corpus as batches of about a megabyte, each of which knows where in the corpus it ends.

A unit is a chunk of the corpus, or a piece of a large document. A run that continues skips the units that are done
without reading blocks. Notes that are taken while a unit is found stay with it, so that a report is in corpus order.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from data_pipelines.encode.pieces import Piece, iter_pieces
from data_pipelines.encode.split_rules import Rule
from data_pipelines.readers.documents import Chunk, Document, Notes, ReadContext, is_blank
from gptjax.core.errors import UserError
from gptjax.tokenization.tokenizer import Tokenizer

T = TypeVar("T")
UNIT_COST = 2**8
"""Bytes that a unit counts beside its text, so that a batch does not hold a million empty documents."""


@dataclass(frozen=True)
class Limits:
    """Bytes of text in a batch, in a piece of a document, and worth starting processes; seconds between two records."""

    batch_bytes: int = 2**20
    piece_bytes: int = 2**19
    pool_bytes: int = 2**22
    record_seconds: float = 2.0


DEFAULT_LIMITS = Limits()


class Unit(NamedTuple):
    """A chunk or a piece, and the notes taken since the unit before."""

    content: Chunk | Piece
    notes: Notes

    @property
    def size(self) -> int:
        content = self.content.content if isinstance(self.content, Piece) else self.content
        return UNIT_COST + (len(content) if isinstance(content, Document) else content.size)


class Batch(NamedTuple):
    """Neighbouring units under one rule; `end` is the number of units of the corpus up to its end."""

    rule: Rule
    units: list[Unit]
    end: int

    @property
    def size(self) -> int:
        return sum(unit.size for unit in self.units)


def iter_batches(
    chunks: Iterable[tuple[Rule, Chunk]],
    context: ReadContext,
    *,
    tokenizer: Tokenizer,
    start: int = 0,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Batch]:
    """Yield the batches after the first `start` units; `context` is the one that reads `chunks`.

    Notes taken after the last unit stay in `context`. A `UserError` is raised after all batches before it.
    """
    errors: list[UserError] = []
    units = defer_error(_iter_units(chunks, context, tokenizer=tokenizer, piece_bytes=limits.piece_bytes), errors)
    rule, batch, size, number = None, list[Unit](), 0, start
    for number, (next_rule, unit) in enumerate(itertools.islice(units, start, None), start):
        if rule is not None and (next_rule != rule or size + unit.size > limits.batch_bytes):
            yield Batch(rule, batch, number)
            batch, size = [], 0
        rule = next_rule
        batch.append(unit)
        size += unit.size
    if rule is not None:
        yield Batch(rule, batch, number + 1)
    if errors:
        raise errors[0]


def _iter_units(
    chunks: Iterable[tuple[Rule, Chunk]], context: ReadContext, *, tokenizer: Tokenizer, piece_bytes: int
) -> Iterator[tuple[Rule, Unit]]:
    for rule, chunk in chunks:
        notes = context.notes.take()
        if not isinstance(chunk, Document) or len(chunk) <= piece_bytes or is_blank(chunk):
            # Memory that a reader lends cannot be sent to another process.
            yield rule, Unit(bytes(chunk) if isinstance(chunk, Document) else chunk, notes)
            continue
        for piece in iter_pieces(chunk, tokenizer, point=rule.point(chunk), size=piece_bytes):
            yield rule, Unit(piece, notes if piece.begins else Notes())


def defer_error(items: Iterable[T], errors: list[UserError]) -> Iterator[T]:
    """Yield all items before the first `UserError`, which is appended to `errors` for the caller to raise later."""
    try:
        yield from items
    except UserError as error:
        errors.append(error)
