"""What is encoded at once: a corpus as batches of about a megabyte, each of which knows how far it goes.

The one idea: the corpus is counted in chunks, so that a run that goes on passes over what is done without reading it;
and what was noted on the way belongs to the batch with which it was noted, so that the report is that of one run.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_pipelines.pieces import PIECE_BYTES, Piece, pieces
from data_pipelines.readers.documents import Chunk, Document, Notes, Reading, is_blank
from data_pipelines.splits import Part, Rule
from gptjax.tokenizer import Tokenizer

BATCH_BYTES = 2**20


class Position(NamedTuple):
    """How far one has come: chunks that are done, bytes of the next that are done, and documents in all of that."""

    chunks: int = 0
    bytes: int = 0
    documents: int = 0


START = Position()


class Batch(NamedTuple):
    """Neighbouring chunks of a corpus that one rule divides, or a piece of a document that is one of them.

    `notes` are those of whoever found the chunks, not of who reads them. `chunks_done` and `bytes_done` say how far the
    corpus is done with it, as in `Position`. Of a piece, `share` is what the rule found in its whole document.
    """

    rule: Rule
    content: list[Chunk] | Piece
    notes: Notes
    chunks_done: int
    bytes_done: int = 0
    share: float = 0.0

    @property
    def size(self) -> int:
        """About how many bytes of text these are."""
        return len(self.content.content) if isinstance(self.content, Piece) else sum(map(_size, self.content))


def batches(
    parts: Iterable[Part], tokenizer: Tokenizer, reading: Reading, *, start: Position = START
) -> Iterator[Batch]:
    """The corpus from `start` on, which is the end of a batch; `reading` is the one of `parts`.

    What is noted behind the last chunk is left in `reading`.
    """
    some = _Some()
    number = 0
    for rule, chunk in parts:
        notes = reading.notes.taken()
        if number < start.chunks:
            pass
        elif isinstance(chunk, Document) and len(chunk) > PIECE_BYTES and not is_blank(chunk):
            if some.chunks:
                yield some.batch(number)
                some = _Some()
            share = rule.share(chunk)
            for piece in pieces(chunk, tokenizer, begin=start.bytes if number == start.chunks else 0):
                done = (number + 1, 0) if piece.ends else (number, piece.end)
                yield Batch(rule, piece, notes if piece.begin == 0 else Notes(), *done, share)
        else:
            if some.chunks and rule != some.rule:
                yield some.batch(number)
                some = _Some()
            some.add(rule, chunk, notes)
            if some.size >= BATCH_BYTES:
                yield some.batch(number + 1)
                some = _Some()
        number += 1
        del chunk  # or it would be held while the source reads the next one
    if some.chunks:
        yield some.batch(number)


class _Some:
    """Chunks on their way into a batch."""

    def __init__(self) -> None:
        self.rule: Rule | None = None
        self.chunks: list[Chunk] = []
        self.size = 0
        self._notes = Notes()

    def add(self, rule: Rule, chunk: Chunk, notes: Notes) -> None:
        self.rule = rule
        self.size += _size(chunk)
        self.chunks.append(bytes(chunk) if isinstance(chunk, Document) else chunk)
        self._notes.add(notes)

    def batch(self, chunks_done: int) -> Batch:
        assert self.rule is not None
        return Batch(self.rule, self.chunks, self._notes, chunks_done)


def _size(chunk: Chunk) -> int:
    return len(chunk) if isinstance(chunk, Document) else chunk.size
