"""Batches of a corpus, and their tokens: on all cores and in the order of the corpus.

A unit is a chunk of the corpus, or a piece of a large document. A batch is about a megabyte of units and knows where in
the corpus it ends, so a run that continues skips the units that are done without reading blocks. The process that
encodes a batch also reads its blocks. The process that gathers the results only finds batches, decides splits and
writes, so it can feed many cores.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.encode.pieces import Piece, iter_pieces
from data_pipelines.encode.splits import AllTo, SplitRule
from data_pipelines.encode.worker_pool import Workers, map_on_cores
from data_pipelines.readers.documents import (
    EMPTY,
    Chunk,
    DocumentBlock,
    Notes,
    ReadContext,
    is_blank,
    iter_documents,
)
from gptjax.data.shards import token_dtype
from gptjax.tokenization.special_names import compile_names
from gptjax.tokenization.tokenizer import Tokenizer

UNIT_COST = 2**8
"""Bytes that a unit counts beside its text, so that a batch does not hold a million empty documents."""
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""What texts often have between documents."""
LEARNED_MARKS = (*ENDS, "<|im_start|>")
"""Marks that a reader of text takes for special tokens. They are text here, and that is told."""
LEARNED = "times {0} stands in text and is learnt as text"
CUTTABLE = LEARNED + "; --separator='{0}' (data.separator in a config) cuts text files"
"""The notes of a mark, in records and in text files."""
LEAST_CUTS = 5
"""A mark that is rarer may be something else, as `</s>` is in HTML."""
LOST = "times {} stands for text that the vocabulary cannot express"
DROPPED = "times a character is left out that the vocabulary cannot express: it has no unknown token"


@dataclass(frozen=True)
class Limits:
    """Bytes of text in a batch, in a piece of a document, and worth starting processes; seconds between two records."""

    batch_bytes: int = 2**20
    piece_bytes: int = 2**19
    pool_bytes: int = 2**22
    record_seconds: float = 2.0


DEFAULT_LIMITS = Limits()


class Unit(NamedTuple):
    """A chunk or a piece, the notes of finding it (so that a report is in corpus order), and its size."""

    content: Chunk | Piece
    notes: Notes
    size: int


class UnitBatch(NamedTuple):
    """Consecutive units under one rule; `end` is the number of units of the corpus up to its end."""

    rule: SplitRule
    units: list[Unit]
    end: int


def iter_batches(
    chunks: Iterable[tuple[SplitRule, Chunk]],
    context: ReadContext,
    *,
    tokenizer: Tokenizer,
    limits: Limits,
    start: int = 0,
) -> Iterator[UnitBatch]:
    """Yield the batches after the first `start` units; notes that are taken after the last unit stay in `context`."""
    units = _iter_units(chunks, context, tokenizer=tokenizer, piece_bytes=limits.piece_bytes)
    rule, batch, size, number = AllTo("train"), list[Unit](), 0, start
    for next_rule, unit in itertools.islice(units, start, None):
        if batch and (next_rule != rule or size + unit.size > limits.batch_bytes):
            yield UnitBatch(rule, batch, number)
            batch, size = [], 0
        rule = next_rule
        batch.append(unit)
        size, number = size + unit.size, number + 1
    if batch:
        yield UnitBatch(rule, batch, number)


def _iter_units(
    chunks: Iterable[tuple[SplitRule, Chunk]], context: ReadContext, *, tokenizer: Tokenizer, piece_bytes: int
) -> Iterator[tuple[SplitRule, Unit]]:
    for rule, chunk in chunks:
        notes = context.notes.take()
        if isinstance(chunk, DocumentBlock):
            yield rule, Unit(chunk, notes, UNIT_COST + chunk.size)
        elif len(chunk) <= piece_bytes or is_blank(chunk):
            # Memory that a reader lends cannot be sent to another process.
            yield rule, Unit(bytes(chunk), notes, UNIT_COST + len(chunk))
        else:
            for piece in iter_pieces(chunk, tokenizer, point=rule.point(chunk), size=piece_bytes):
                yield rule, Unit(piece, notes if piece.begins else Notes(), UNIT_COST + len(piece.content))


PART = np.dtype([("number", "i8"), ("point", "f8"), ("tokens", "i8"), ("bytes", "i8"), ("begins", "?")])
"""A document or a piece: its number among the documents of the batch, its point, its size, and whether it begins."""


class EncodedBatch(NamedTuple):
    """The tokens of a batch, with `<|endoftext|>` before each document if the tokenizer has it.

    `parts` are its documents and pieces without blank ones, of dtype `PART`. `documents` counts the documents of the
    source that end in the batch, blank ones too.
    """

    rule: SplitRule
    end: int
    tokens: np.ndarray
    parts: np.ndarray
    documents: int
    notes: Notes

    def iter_splits(self, before: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
        """Yield (split, its tokens, starts of documents among them, bytes of text) for each split with text.

        `before` is the number of documents of the corpus before the batch.
        """
        is_validation = self.rule.is_validation(before + self.parts["number"], self.parts["point"])
        for split, mask in (("train", ~is_validation), ("val", is_validation)):
            if mask.any():
                parts = self.parts[mask]
                tokens = self.tokens if mask.all() else self.tokens[np.repeat(mask, self.parts["tokens"])]
                starts = np.cumsum(parts["tokens"]) - parts["tokens"]
                yield split, tokens, starts[parts["begins"]], int(parts["bytes"].sum())


@dataclass(frozen=True)
class Encoder:
    """Reads and encodes a batch, in any process.

    Documents of more than `max_tokens` continue as further documents; they must come whole. With `has_text_files`, the
    notes advise to cut them.
    """

    tokenizer: Tokenizer
    context: ReadContext
    max_tokens: int | None = None
    has_text_files: bool = False

    @functools.cached_property
    def names(self) -> re.Pattern[str]:
        return compile_names([*LEARNED_MARKS, *self.tokenizer.specials, *self.tokenizer.text_tokens])

    def __call__(self, batch: UnitBatch) -> EncodedBatch:
        context, number, end = self.context.fresh_copy(), 0, self.tokenizer.end_of_text
        before = np.array([] if end is None else [end], token_dtype(self.tokenizer.vocab_size))
        tokens, parts, texts, found = [before[:0]], [], list[str](), list[tuple[int, float, int, bool]]()
        for piece in _iter_documents(batch, context):
            if piece.begins and piece.ends and is_blank(piece.content):
                context.notes[EMPTY] += 1
            else:
                marks = {"has_text_files": self.has_text_files, "found": self.tokenizer.text_tokens}
                texts.append(str(piece.content, "utf-8"))
                count_marks(texts[-1], self.names, context.notes, **marks)
                found.append((number, piece.point, len(piece.content), piece.begins))
            number += piece.ends
        trios = zip(found, texts, self.tokenizer.encode_all(texts), strict=True)
        for (place, point, size, begins), text, ids in trios:
            self._note_lost(text, ids, context.notes)
            length = max(1, len(ids)) if self.max_tokens is None else self.max_tokens - len(before)
            for begin in range(0, len(ids), length):
                part = ids[begin : begin + length].astype(before.dtype)
                new = [before, part] if begins else [part]
                tokens += new
                parts.append((place, point, sum(map(len, new)), size if begin == 0 else 0, begins))
        return EncodedBatch(batch.rule, batch.end, np.concatenate(tokens), np.array(parts, PART), number, context.notes)

    def _note_lost(self, text: str, ids: np.ndarray, notes: Notes) -> None:
        """Count what of a document the vocabulary cannot express."""
        if len(ids) == 0:  # a normalizer has dropped all
            notes[EMPTY] += 1
        if lost := self.tokenizer.count_lost(text, ids):
            unknown = self.tokenizer.unknown
            notes[DROPPED if unknown is None else LOST.format(self.tokenizer.decode([unknown]))] += lost


def count_marks(
    text: str, names: re.Pattern[str], notes: Notes, *, has_text_files: bool, found: Collection[str] = ()
) -> None:
    """Note how often the text of a special token stands in a document; text files can be cut there, records cannot.

    `names` finds them, and `found` are added tokens that such a text becomes.
    """
    for mark, times in Counter(names.findall(text)).items():
        if mark in found:
            notes[f"times {mark} stands in text and becomes this token, which is not special"] += times
        else:
            notes[(CUTTABLE if has_text_files and mark in ENDS else LEARNED).format(mark)] += times


def find_separator(notes: Iterable[str]) -> str | None:
    """The mark that stands most often in text files, by the lines of their notes; None for a few of each."""
    lines = [line.partition(" ") for line in notes]
    ends = {CUTTABLE.format(mark).partition(" ")[2]: mark for mark in ENDS}
    times = {
        ends[end]: int(count.replace(",", "")) for count, _, note in lines if (end := note.partition(" ")[2]) in ends
    }
    most = max(times, key=lambda mark: times[mark], default=None)
    return None if most is None or times[most] < LEAST_CUTS else most


def _iter_documents(batch: UnitBatch, context: ReadContext) -> Iterator[Piece]:
    """Yield every document as one piece, and pieces as they are; notes of finding and reading come in corpus order."""
    for unit in batch.units:
        context.notes.add(unit.notes)
        if isinstance(unit.content, Piece):
            yield unit.content
        else:
            for document in iter_documents([unit.content], context):
                yield Piece(document, begins=True, ends=True, point=batch.rule.point(document))


def encode_batches(
    batches: Iterator[UnitBatch],
    encoder: Encoder,
    *,
    processes: int | None,
    limits: Limits,
    workers: Workers | None = None,
) -> Generator[EncodedBatch, None, None]:
    """Encode all batches in order, in this process where there is little text."""
    size = lambda batch: sum(unit.size for unit in batch.units)
    pool_size = limits.pool_bytes
    return map_on_cores(encoder, batches, processes=processes, size=size, pool_size=pool_size, workers=workers)
