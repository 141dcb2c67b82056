"""Which text is for training and which for validation: decided by whole documents, before anything is tokenised.

A document is let go of (`del`) before the next one is asked for: two large ones need not fit into memory at once.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from data_pipelines.readers.documents import Document, Reading, Source, is_blank, texts_of
from gptjax.errors import UserError

DEFAULT_SPLIT = "documents:0.005"
SMALLEST_TAIL = 0.1
ENOUGH_CHARACTERS = 100_000
"""A single text gives its tenth to validation, unless a smaller part would have so many characters."""
SKIPPED = "empty documents skipped"


class Corpus(Protocol):
    """Documents, each for one of the splits, always in the same order."""

    def parts(self, reading: Reading) -> Iterator[tuple[str, Document]]:
        """Yield (`train` or `val`, document) for every document that is not blank."""
        ...

    def identity(self) -> dict[str, Any]:
        """What, in JSON, distinguishes this text, so divided, from another."""
        ...


@dataclass(frozen=True)
class Divided:
    """One source, of which a part is for validation."""

    source: Source
    split: "Split"

    def parts(self, reading: Reading) -> Iterator[tuple[str, Document]]:
        return self.split.parts(self.source, reading)

    def identity(self) -> dict[str, Any]:
        return self.source.identity() | {"split": str(self.split)}


@dataclass(frozen=True)
class TwoSources:
    """A source for training, and another one for validation."""

    train: Source
    validation: Source

    def parts(self, reading: Reading) -> Iterator[tuple[str, Document]]:
        for name, source in (("train", self.train), ("val", self.validation)):
            for document in _not_blank(source, reading):
                yield name, document
                del document

    def identity(self) -> dict[str, Any]:
        return self.train.identity() | {"validation": self.validation.identity()}


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
        if kind in ("documents", "tail") and 0 < fraction < 1:
            return cls("documents" if kind == "documents" else "tail", fraction)
        raise UserError(
            f"split {spec!r}: wanted documents:F or tail:F with F between 0 and 1, drawn:K/N/SEED with K of N "
            "documents, or none."
        )

    def __str__(self) -> str:
        if self.drawn is not None:
            return f"drawn:{'/'.join(map(str, self.drawn))}"
        return self.kind if self.kind == "none" else f"{self.kind}:{self.fraction}"

    def parts(self, source: Source, reading: Reading) -> Iterator[tuple[str, Document]]:
        """Yield (`train` or `val`, document) for every document that is not blank, in the order of the source."""
        if self.drawn is not None:
            return self._drawn(source, reading, *self.drawn)
        if self.kind == "documents" and (few := self._on_one_side(source, reading)):
            size = _size(source, reading)
            enough = size.characters * self.fraction >= ENOUGH_CHARACTERS
            tail = Split("tail", self.fraction if enough else max(self.fraction, SMALLEST_TAIL))
            reading.notes[f"documents, too few for {self}: cut by {tail} instead"] += few
            return tail._tail(_not_blank(source, reading), size)
        documents = _not_blank(source, reading)
        return self._tail(documents, _size(source, reading)) if self.kind == "tail" else self._hashed(documents)

    def side(self, document: Document) -> str:
        """The split to which a document belongs by its hash alone, wherever it stands."""
        if self.kind == "none":
            return "train"
        share = int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64
        return "val" if share < self.fraction else "train"

    def _on_one_side(self, source: Source, reading: Reading) -> int:
        """How many documents the source has, if all are for the same split; else 0, which few of them tell."""
        sides, number = set[str](), 0
        for document in _not_blank(source, reading.again()):
            number += 1
            sides.add(self.side(document))
            del document
            if len(sides) == 2:
                return 0
        return number

    def _hashed(self, documents: Iterator[Document]) -> Iterator[tuple[str, Document]]:
        for document in documents:
            yield self.side(document), document
            del document

    def _drawn(
        self, source: Source, reading: Reading, chosen: int, total: int, seed: int
    ) -> Iterator[tuple[str, Document]]:
        """Blank documents count, though they are left out: the permutation is of all that the source has."""
        validation = frozenset(np.random.default_rng(seed).permutation(total)[:chosen].tolist())
        number = 0
        for document in source.documents(reading):
            if is_blank(document):
                reading.notes[SKIPPED] += 1
            else:
                yield "val" if number in validation else "train", document
            del document
            number += 1
        if number != total:
            raise UserError(
                f"split {self}: {source.name} has {number:,} documents, not {total:,}. "
                f"Use --split=drawn:{chosen}/{number}/{seed}, or documents:{chosen / total:.2g}."
            )

    def _tail(self, documents: Iterator[Document], size: "_Size") -> Iterator[tuple[str, Document]]:
        cut = int(size.characters * (1 - self.fraction))
        number = begin = 0
        for document in documents:
            number += 1  # noqa: SIM113  `enumerate` would hold the document
            if number == size.documents and begin <= cut and 2 * begin < size.characters:
                whole, place = memoryview(document), _place(document, cut - begin)
                yield "train", whole[:place]
                yield "val", whole[place:]
                return
            begin, before = begin + _characters(document), begin
            yield "train" if before < cut and number < size.documents else "val", document
            del document


class _Size(NamedTuple):
    documents: int
    characters: int


def _size(source: Source, reading: Reading) -> _Size:
    documents = characters = 0
    for document in _not_blank(source, reading.again()):
        documents += 1
        characters += _characters(document)
        del document
    return _Size(documents, characters)


def _characters(document: Document) -> int:
    return sum(map(len, texts_of(document)))


def _place(document: Document, characters: int) -> int:
    """Behind which byte so many characters have passed."""
    place = 0
    for text in texts_of(document):
        place += len(text[:characters].encode())
        characters = max(0, characters - len(text))
    return place


def _not_blank(source: Source, reading: Reading) -> Iterator[Document]:
    for document in source.documents(reading):
        if is_blank(document):
            reading.notes[SKIPPED] += 1
        else:
            yield document
        del document
