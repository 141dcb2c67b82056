"""What is encoded at once: a corpus as batches of about a megabyte, each of which knows how far it goes.

The one idea: the corpus is counted in chunks, so that a run that goes on passes over blocks that are done without
reading them; and what was noted in finding a chunk stays with it, so that the report is that of one run, in its order.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from data_pipelines.encode.pieces import PIECE_BYTES, Piece, pieces
from data_pipelines.encode.split_rules import Rule, Ruled
from data_pipelines.readers.documents import Chunk, Document, Notes, ReadContext, is_blank
from gptjax.errors import UserError
from gptjax.tokenizer import Tokenizer

T = TypeVar("T")
BATCH_BYTES = 2**20
CHUNK_COSTS = 2**8
"""Bytes that a chunk counts for beside its text: a million empty ones are no single batch."""


class Position(NamedTuple):
    """How far one has come: chunks that are done, bytes of the next that are done, and documents in all of that."""

    chunks: int = 0
    bytes: int = 0
    documents: int = 0


START = Position()


class Found(NamedTuple):
    """A chunk, or a piece of one; and what was noted since the one before was found."""

    what: Chunk | Piece
    notes: Notes


class Batch(NamedTuple):
    """Neighbouring chunks of a corpus that one rule divides, or a single piece of a document.

    `chunks_done` and `bytes_done` say how far the corpus is done with it, as in `Position`. `point` is that of the
    document of a piece. So many documents at the beginning, as `skip` says, are done already.
    """

    rule: Rule
    found: list[Found]
    chunks_done: int
    bytes_done: int = 0
    point: float = 0.0
    skip: int = 0

    @property
    def size(self) -> int:
        """About how many bytes of text these are."""
        return sum(_size(found.what) + CHUNK_COSTS for found in self.found)


def batches(
    parts: Iterable[Ruled], tokenizer: Tokenizer, context: ReadContext, *, start: Position = START
) -> Iterator[Batch]:
    """The corpus from `start` on, which is the end of a batch; `context` is the one of `parts`.

    What is noted behind the last chunk is left in `context`. A `UserError` comes after all that was found before it.
    """
    gathered = _Gathered()
    number, trouble = 0, list[UserError]()
    for rule, chunk in until_trouble(parts, trouble):
        notes = context.notes.take()
        if number < start.chunks:
            pass
        elif isinstance(chunk, Document) and len(chunk) > PIECE_BYTES and (rule.keeps_blank or not is_blank(chunk)):
            yield from gathered.batch(number)
            point = rule.point(chunk)
            for piece in pieces(chunk, tokenizer, begin=start.bytes if number == start.chunks else 0):
                done = (number + 1, 0) if piece.ends else (number, piece.end)
                yield Batch(rule, [Found(piece, notes if piece.begin == 0 else Notes())], *done, point)
        else:
            if rule != gathered.rule or gathered.size + _size(chunk) > BATCH_BYTES:
                yield from gathered.batch(number)
            gathered.add(rule, chunk, notes)
        number += 1
        del chunk  # or it would be held while the source reads the next one
    yield from gathered.batch(number)
    if trouble:
        raise trouble[0]


def until_trouble(some: Iterable[T], trouble: list[UserError]) -> Iterator[T]:
    """All there is before the first `UserError`, which is put into `trouble`: to be raised when all that is done."""
    try:
        yield from some
    except UserError as error:
        trouble.append(error)


class _Gathered:
    """Chunks on their way into a batch."""

    def __init__(self) -> None:
        self.rule: Rule | None = None
        self.size = 0
        self._found: list[Found] = []

    def add(self, rule: Rule, chunk: Chunk, notes: Notes) -> None:
        self.rule = rule
        self.size += _size(chunk) + CHUNK_COSTS
        if isinstance(chunk, Document):
            # A long one that comes here is blank, and one without a character stands for it.
            chunk = bytes(chunk) if len(chunk) <= PIECE_BYTES else b""
        self._found.append(Found(chunk, notes))

    def batch(self, chunks_done: int) -> Iterator[Batch]:
        """The batch, if there is anything for one, and begin the next."""
        if self.rule is not None:
            yield Batch(self.rule, self._found, chunks_done)
        self.rule, self.size, self._found = None, 0, []


def _size(what: Chunk | Piece) -> int:
    if isinstance(what, Piece):
        return len(what.content)
    return len(what) if isinstance(what, Document) else what.size
