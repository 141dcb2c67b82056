"""Which text is for training and which for validation: decided by whole documents, before anything is tokenised."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from data_pipelines.sources import Notes, Source
from gptjax.errors import UserError

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
            yield from ((name, text) for text in _not_blank(source, notes))

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
        if self.kind == "tail":
            return self._tail(documents, [len(text) for text in _not_blank(source, Counter())])
        return ((self._by_hash(text), text) for text in documents)

    def _by_hash(self, text: str) -> str:
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        return "val" if share < self.fraction else "train"

    def _tail(self, documents: Iterator[str], lengths: list[int]) -> Iterator[tuple[str, str]]:
        cut = int(sum(lengths) * (1 - self.fraction))
        begin = 0
        for number, text in enumerate(documents, start=1):
            if len(lengths) == 1:
                yield "train", text[:cut]
                yield "val", text[cut:]
                return
            yield "train" if begin < cut and number < len(lengths) else "val", text
            begin += len(text)


def _not_blank(source: Source, notes: Notes) -> Iterator[str]:
    for text in source.documents(notes):
        if text.strip():
            yield text
        else:
            notes[SKIPPED] += 1
