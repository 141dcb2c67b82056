"""Rules that decide which documents are for validation.

A rule sees only what the process that writes tokens knows: the number of a document in the corpus, and its point, which
the process that read the document computed from the text.
"""

import functools
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.readers.documents import Document

Side = Literal["train", "val"]


class Rule(ABC):
    """Decides the split of each document. It is small and can be pickled; `str` gives its spec."""

    def point(self, document: Document) -> float:
        """A number from 0 to 1 that the text decides; 0 for rules that need none."""
        return 0.0

    @abstractmethod
    def is_validation(
        self, numbers: Int[np.ndarray, " documents"], points: Float[np.ndarray, " documents"]
    ) -> Bool[np.ndarray, " documents"]:
        """For documents by their numbers in the corpus (from 0, empty ones counted) and their points."""

    def side(self, document: Document, number: int = 0) -> Side:
        """The split of a single document."""
        return "val" if self.is_validation(np.array([number]), np.array([self.point(document)]))[0] else "train"


@dataclass(frozen=True)
class AllTo(Rule):
    """All documents to one split."""

    split: Side

    def __str__(self) -> str:
        return "none"

    def is_validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return np.full(len(numbers), self.split == "val")


@dataclass(frozen=True)
class HashFraction(Rule):
    """A fraction of the documents, by the SHA-256 of the text."""

    fraction: float

    def __str__(self) -> str:
        return f"hash:{self.fraction}"

    def point(self, document: Document) -> float:
        return int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64

    def is_validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return points < self.fraction


@dataclass(frozen=True)
class RandomSample(Rule):
    """`chosen` of the first `total` documents, drawn by a seed."""

    chosen: int
    total: int
    seed: int

    def __str__(self) -> str:
        return f"random:{self.chosen}/{self.total}/{self.seed}"

    def is_validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return _draw(self.chosen, self.total, self.seed)[np.minimum(numbers, self.total)]


@functools.lru_cache(maxsize=1)
def _draw(chosen: int, total: int, seed: int) -> np.ndarray:
    """Whether each number below `total` is drawn; one more entry stands for all numbers above."""
    drawn = np.zeros(total + 1, bool)
    drawn[np.random.default_rng(seed).permutation(total)[:chosen]] = True
    return drawn
