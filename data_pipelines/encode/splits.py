"""Which text is for training and which for validation: decided by whole documents.

The one idea: a corpus is chunks of a source, each with the rule that divides its documents, whoever reads them.

A document is let go of (`del`) before the next one is asked for: two large ones need not fit into memory at once.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from data_pipelines.encode.split_rules import ByHash, Drawn, Only, Rule, Ruled, side_of
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
from gptjax.errors import UserError

DEFAULT_SPLIT = "documents:0.005"
SMALLEST_TAIL = 0.1
ENOUGH_CHARACTERS = 100_000
"""A single text gives its tenth to validation, unless a smaller part would have so many characters."""


class Corpus(Protocol):
    """Documents, each for one of the splits, always in the same order."""

    def parts(self, context: ReadContext) -> Iterator[Ruled]:
        """Yield the documents, or blocks of them, each with the rule that divides it."""
        ...

    def check(self, documents: int) -> None:
        """Raise where another number of documents was expected than were read, blank ones included."""
        ...

    def identity(self) -> dict[str, Any]:
        """What, in JSON, distinguishes this text, so divided, from another."""
        ...


@dataclass(frozen=True)
class Divided:
    """One source, of which a part is for validation."""

    source: Source
    split: "Split"

    def parts(self, context: ReadContext) -> Iterator[Ruled]:
        return self.split.parts(self.source, context)

    def check(self, documents: int) -> None:
        self.split.check(self.source.name, documents)

    def identity(self) -> dict[str, Any]:
        return self.source.identity() | {"split": str(self.split)}


@dataclass(frozen=True)
class TwoSources:
    """A source for training, and another one for validation."""

    train: Source
    validation: Source

    def parts(self, context: ReadContext) -> Iterator[Ruled]:
        for rule, source in ((Only("train"), self.train), (Only("val"), self.validation)):
            yield from _all(rule, source.chunks(context))

    def check(self, documents: int) -> None:
        pass  # any number will do

    def identity(self) -> dict[str, Any]:
        return self.train.identity() | {"validation": self.validation.identity()}


def divided(corpus: Corpus, context: ReadContext) -> Iterator[tuple[str, Document]]:
    """Yield (`train` or `val`, document) for every document that is not blank, all of them read here."""
    number = yield from _divided(corpus.parts(context), context)
    corpus.check(number)


def _divided(parts: Iterable[Ruled], context: ReadContext) -> Generator[tuple[str, Document], None, int]:
    """Returns how many documents there were, blank ones included."""
    number = 0
    for rule, chunk in parts:
        for document in iter_documents([chunk], context):
            if is_blank(document) and not rule.keeps_blank:
                context.notes[EMPTY] += 1
            else:
                yield side_of(rule, number, document), document
            del document
            number += 1
        del chunk
    return number


@dataclass(frozen=True)
class Split:
    """`documents:F`, `tail:F`, `drawn:K/N/SEED` or `none`.

    - `documents`: a document is for validation when the SHA-256 of its text falls into the fraction F; so neither
      order nor number of processes matters, and equal documents are never on both sides. But where all would be
      on one side, because there are few or a single one, `tail` divides them: by F if that gives 100,000 characters,
      else by a tenth if that is more.
    - `tail`: the last F of all characters, as nanoGPT cuts tiny Shakespeare. Documents that begin after the cut are for
      validation, and always the last; if that is more than half of all, it is cut inside.
    - `drawn`: K of exactly N documents are for validation, the first of NumPy's permutation by the seed: the cut of
      Hugging Face's `train_test_split`, and so nanoGPT's of OpenWebText. Both splits stay in the order of the source.
    - `none`: everything is for training.
    """

    kind: Literal["documents", "tail", "drawn", "none"]
    fraction: float = 0.0
    drawn: tuple[int, int, int] | None = None
    """(K, N, SEED)"""

    @classmethod
    def parse(cls, spec: str) -> "Split":
        kind, _, number = spec.partition(":")
        if spec == "none":
            return cls("none")
        if kind == "drawn" and (found := re.fullmatch(r"(\d+)/(\d+)/(\d+)", number)):
            chosen, documents, seed = map(int, found.groups())
            if 0 < chosen < documents:
                return cls("drawn", chosen / documents, (chosen, documents, seed))
        try:
            fraction = float(number)
        except ValueError:
            fraction = 0.0
        if kind in ("documents", "tail") and 0 < fraction < 1 and 1 - fraction < 1:
            return cls("documents" if kind == "documents" else "tail", fraction)
        raise UserError(
            f"split {spec!r}: wanted documents:F or tail:F with F between 0 and 1, drawn:K/N/SEED with K of N "
            "documents, or none."
        )

    def __str__(self) -> str:
        if self.drawn is not None:
            return f"drawn:{'/'.join(map(str, self.drawn))}"
        return self.kind if self.kind == "none" else f"{self.kind}:{self.fraction}"

    def parts(self, source: Source, context: ReadContext) -> Iterator[Ruled]:
        """The source's documents, or blocks of them, in its order, each with the rule that divides it."""
        if self.kind == "documents" and (few := self._on_one_side(source, context)):
            size = _size(source, context)
            enough = size.characters * self.fraction >= ENOUGH_CHARACTERS
            tail = Split("tail", self.fraction if enough else max(self.fraction, SMALLEST_TAIL))
            context.notes[f"documents, too few for {self}: cut by {tail} instead"] += few
            return tail._tail(_not_blank(source, context), size)
        if self.kind == "tail":
            return self._tail(_not_blank(source, context), _size(source, context))
        return _all(self.rule, source.chunks(context))

    @property
    def rule(self) -> Rule:
        """What divides documents wherever they stand; not for `tail`."""
        assert self.kind != "tail"
        if self.drawn is not None:
            return Drawn(*self.drawn)
        return Only("train") if self.kind == "none" else ByHash(self.fraction)

    def side(self, document: Document) -> str:
        """The split to which a document belongs by its text alone; for `documents` and `none`."""
        return side_of(self.rule, 0, document)

    def check(self, name: str, documents: int) -> None:
        """Raise unless the source of that name has as many documents as were to be drawn from."""
        if self.drawn is not None and documents != self.drawn[1]:
            chosen, total, seed = self.drawn
            raise UserError(
                f"split {self}: {name} has {documents:,} documents, not {total:,}. "
                f"Use --split=drawn:{chosen}/{documents}/{seed}, or documents:{chosen / total:.2g}."
            )

    def _on_one_side(self, source: Source, context: ReadContext) -> int:
        """How many documents the source has, if all are for the same split; else 0, which few of them tell."""
        sides, number, again = set[str](), 0, context.fresh_copy()
        for side, document in _divided(_all(self.rule, source.chunks(again)), again):
            del document
            number += 1
            sides.add(side)
            if len(sides) == 2:
                return 0
        return number

    def _tail(self, documents: Iterator[Document], size: "_Size") -> Iterator[Ruled]:
        cut = int(size.characters * (1 - self.fraction))
        train, val = Only("train"), Only("val")
        number = begin = 0
        for document in documents:
            number += 1  # noqa: SIM113  `enumerate` would hold the document
            if number == size.documents and begin <= cut and 2 * begin < size.characters:
                whole, place = memoryview(document), _place(document, cut - begin)
                if place:
                    yield Only("train", keeps_blank=True), whole[:place]
                yield Only("val", keeps_blank=True), whole[place:]
                del whole
            else:
                begin, before = begin + _characters(document), begin
                yield train if before < cut and number < size.documents else val, document
            del document  # and go on behind the last, where something may be wrong


def _all(rule: Rule, chunks: Iterator[Chunk]) -> Iterator[Ruled]:
    for chunk in chunks:
        yield rule, chunk
        del chunk


class _Size(NamedTuple):
    documents: int
    characters: int


def _size(source: Source, context: ReadContext) -> _Size:
    documents = characters = 0
    for document in _not_blank(source, context.fresh_copy()):
        documents += 1
        characters += _characters(document)
        del document
    return _Size(documents, characters)


def _characters(document: Document) -> int:
    return sum(map(len, iter_text(document)))


def _place(document: Document, characters: int) -> int:
    """Behind which byte so many characters have passed."""
    place = 0
    for text in iter_text(document):
        place += len(text[:characters].encode())
        characters -= len(text)
        if characters <= 0:
            break
    return place


def _not_blank(source: Source, context: ReadContext) -> Iterator[Document]:
    for document in iter_documents(source.chunks(context), context):
        if is_blank(document):
            context.notes[EMPTY] += 1
        else:
            yield document
        del document
