"""The corpus of a request: documents, each for training or for validation."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.encode.split_rules import AllTo, HashFraction, RandomSample, Rule, Side
from data_pipelines.readers.documents import (
    EMPTY,
    Chunk,
    Document,
    ReadContext,
    Source,
    is_blank,
    iter_documents,
    iter_text,
)
from gptjax.core.errors import UserError

MIN_TAIL = 0.1
ENOUGH_CHARACTERS = 100_000


@dataclass(frozen=True)
class Tail:
    """The last fraction of all characters; no rule, because it depends on the length of the whole source."""

    fraction: float

    def __str__(self) -> str:
        return f"tail:{self.fraction}"

    def iter_chunks(self, source: Source, context: ReadContext) -> Iterator[tuple[Rule, Document]]:
        """Yield the documents that are not blank, in order, each with the rule of its split."""
        lengths, begin = _measure(source, context), 0
        total = int(lengths.sum())
        cut = int(total * (1 - self.fraction))
        for document, length in zip(_iter_nonblank(source, context), lengths, strict=False):
            is_last = begin + length == total
            if is_last and begin <= cut and 2 * begin < total:
                place = len(str(document, "utf-8")[: cut - begin].encode())
                if place:
                    yield AllTo("train"), document[:place]
                yield AllTo("val"), document[place:]
            else:
                yield AllTo("train" if begin < cut and not is_last else "val"), document
            begin += length


def parse_split(spec: str) -> Rule | Tail:
    """`hash:F`, `tail:F`, `random:K/N/SEED` or `none`; raises `UserError` for anything else.

    - `hash`: a document is for validation when the SHA-256 of its text falls into the fraction F. The order of the
      documents does not matter, and equal documents are never on both sides. Where all documents would be on one side,
      `tail` splits them instead: by F if that gives 100,000 characters, else by a tenth if that is more.
    - `tail`: the last F of all characters, as nanoGPT splits tiny Shakespeare. Documents that begin behind the cut are
      for validation, and always the last one. A last document of more than half the text is cut inside.
    - `random`: K of exactly N documents, the first of NumPy's permutation by the seed: as `train_test_split` of Hugging
      Face draws them, and so nanoGPT's OpenWebText.
    - `none`: everything is for training.
    """
    if spec == "none":
        return AllTo("train")
    if found := re.fullmatch(r"random:(\d+)/(\d+)/(\d+)", spec):
        sample = RandomSample(*map(int, found.groups()))
        if 0 < sample.chosen < sample.total:
            return sample
    kind, _, number = spec.partition(":")
    with contextlib.suppress(ValueError):
        if kind in ("hash", "tail") and 0 < (fraction := float(number)) < 1 and 1 - fraction < 1:
            return HashFraction(fraction) if kind == "hash" else Tail(fraction)
    raise UserError(
        f"split {spec!r}: wanted hash:F or tail:F with F between 0 and 1, random:K/N/SEED with K of N documents, "
        "or none."
    )


@dataclass(frozen=True)
class Corpus:
    """A source and its split; or, with `validation`, a source for training and another one for validation."""

    source: Source
    split: Rule | Tail
    validation: Source | None = None

    def iter_chunks(self, context: ReadContext) -> Iterator[tuple[Rule, Chunk]]:
        """Yield documents, or blocks of them, each with the rule that splits its documents."""
        rule = self.split
        if isinstance(rule, HashFraction) and (few := _count_if_one_sided(self.source, rule, context)):
            enough = _measure(self.source, context).sum() * rule.fraction >= ENOUGH_CHARACTERS
            rule = Tail(rule.fraction if enough else max(rule.fraction, MIN_TAIL))
            context.notes[f"documents, too few for {self.split}: split by {rule} instead"] += few
        if isinstance(rule, Tail):
            yield from rule.iter_chunks(self.source, context)
        else:
            yield from ((rule, chunk) for chunk in self.source.chunks(context))
        if self.validation is not None:
            yield from ((AllTo("val"), chunk) for chunk in self.validation.chunks(context))

    def iter_split_documents(self, context: ReadContext) -> Iterator[tuple[Side, Document]]:
        """Read all documents in this process and yield each that is not blank with its split."""
        number = 0
        for rule, chunk in self.iter_chunks(context):
            for document in iter_documents([chunk], context):
                if is_blank(document):
                    context.notes[EMPTY] += 1
                else:
                    yield rule.side(document, number), document
                number += 1
        self.check_count(number)

    def check_count(self, documents: int) -> None:
        """Raise `UserError` unless the source had the number of documents from which `random` draws."""
        sample = self.split
        if isinstance(sample, RandomSample) and documents != sample.total:
            raise UserError(
                f"split {sample}: {self.source.name} has {documents:,} documents, not {sample.total:,}. Use "
                f"--split=random:{sample.chosen}/{documents}/{sample.seed}, or hash:{sample.chosen / sample.total:.2g}."
            )

    def identity(self) -> dict[str, Any]:
        """JSON that distinguishes this text, split this way, from any other."""
        if self.validation is None:
            return self.source.identity() | {"split": str(self.split)}
        return self.source.identity() | {"validation": self.validation.identity()}


def _count_if_one_sided(source: Source, rule: Rule, context: ReadContext) -> int:
    """Count the documents if all are for the same split, else return 0; usually few are read."""
    sides = list[Side]()
    for document in _iter_nonblank(source, context.fresh_copy()):
        sides.append(rule.side(document))
        if sides[0] != sides[-1]:
            return 0
    return len(sides)


def _measure(source: Source, context: ReadContext) -> np.ndarray:
    """The characters of each document that is not blank."""
    documents = _iter_nonblank(source, context.fresh_copy())
    return np.fromiter((sum(map(len, iter_text(document))) for document in documents), np.int64)


def _iter_nonblank(source: Source, context: ReadContext) -> Iterator[Document]:
    for document in iter_documents(source.chunks(context), context):
        if is_blank(document):
            context.notes[EMPTY] += 1
        else:
            yield document
