"""Which text is for training and which for validation: decided by whole documents, before anything is tokenised.

A document is let go of (`del`) before the next one is asked for: two large ones need not fit into memory at once.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from data_pipelines.sources import Notes, Source
from gptjax.errors import UserError

DEFAULT_SPLIT = "documents:0.005"
SKIPPED = "empty documents skipped"


class Corpus(Protocol):
    """Documents, each for one of the splits, always in the same order."""

    def parts(self, notes: Notes) -> Iterator[tuple[str, str]]:
        """Yield (`train` or `val`, text) for every document that is not blank."""
        ...

    def identity(self) -> dict[str, Any]:
        """What, in JSON, distinguishes this text, so divided, from another."""
        ...


@dataclass(frozen=True)
class Divided:
    """One source, of which a part is for validation."""

    source: Source
    split: "Split"

    def parts(self, notes: Notes) -> Iterator[tuple[str, str]]:
        return self.split.parts(self.source, notes)

    def identity(self) -> dict[str, Any]:
        return self.source.identity() | {"split": str(self.split)}


@dataclass(frozen=True)
class TwoSources:
    """A source for training, and another one for validation."""

    train: Source
    validation: Source

    def parts(self, notes: Notes) -> Iterator[tuple[str, str]]:
        for name, source in (("train", self.train), ("val", self.validation)):
            for text in _not_blank(source, notes):
                yield name, text
                del text

    def identity(self) -> dict[str, Any]:
        return self.train.identity() | {"validation": self.validation.identity()}


@dataclass(frozen=True)
class Split:
    """`documents:F`, `tail:F` or `none`.

    - `documents`: a document is for validation when the SHA-256 of its text falls into the fraction F; so neither
      order nor number of processes matters, and equal documents are never on both sides.
    - `tail`: the last F of all characters, as nanoGPT cuts tiny Shakespeare. A single document is cut inside; of
      several, those that begin after the cut are for validation, and always the last.
    - `none`: everything is for training.
    """

    kind: Literal["documents", "tail", "none"]
    fraction: float = 0.0

    @classmethod
    def parse(cls, spec: str) -> "Split":
        kind, _, number = spec.partition(":")
        if spec == "none":
            return cls("none")
        try:
            fraction = float(number)
        except ValueError:
            fraction = 0.0
        if kind in ("documents", "tail") and 0 < fraction < 1:
            return cls("documents" if kind == "documents" else "tail", fraction)
        raise UserError(f"split {spec!r}: wanted documents:F or tail:F with F between 0 and 1, or none.")

    def __str__(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind}:{self.fraction}"

    def parts(self, source: Source, notes: Notes) -> Iterator[tuple[str, str]]:
        """Yield (`train` or `val`, text) for every document that is not blank, in the order of the source."""
        documents = _not_blank(source, notes)
        return self._tail(documents, _size(source)) if self.kind == "tail" else self._hashed(documents)

    def side(self, text: str) -> str:
        """The split to which a text belongs by its hash alone, wherever it stands."""
        share = 1.0 if self.kind == "none" else int.from_bytes(_sha256(text)[:8], "big") / 2**64
        return "val" if share < self.fraction else "train"

    def _hashed(self, documents: Iterator[str]) -> Iterator[tuple[str, str]]:
        for text in documents:
            yield self.side(text), text
            del text

    def _tail(self, documents: Iterator[str], size: "_Size") -> Iterator[tuple[str, str]]:
        cut = int(size.characters * (1 - self.fraction))
        number = begin = 0
        for text in documents:
            number += 1  # noqa: SIM113  `enumerate` would hold the text
            if size.documents == 1:
                yield "train", text[:cut]
                yield "val", text[cut:]
                return
            begin, before = begin + len(text), begin
            yield "train" if before < cut and number < size.documents else "val", text
            del text


class _Size(NamedTuple):
    documents: int
    characters: int


def _size(source: Source) -> _Size:
    documents = characters = 0
    for text in _not_blank(source, Counter()):
        documents += 1
        characters += len(text)
        del text
    return _Size(documents, characters)


def _sha256(text: str) -> bytes:
    """SHA-256 of the text's UTF-8, a part of it at a time."""
    digest = hashlib.sha256()
    for start in range(0, len(text), 2**20):
        digest.update(text[start : start + 2**20].encode(errors="surrogatepass"))
    return digest.digest()


def _not_blank(source: Source, notes: Notes) -> Iterator[str]:
    for text in source.documents(notes):
        if not text or text.isspace():
            notes[SKIPPED] += 1
        else:
            yield text
        del text
