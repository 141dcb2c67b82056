"""Rules that tell the split of a document, wherever it was read.

The one idea: a rule decides from what is known where tokens are written: the number of a document in the source, and
the point at which its text places it, which whoever read the document has found.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.readers.documents import Chunk, Document


class Rule(Protocol):
    """Tells for each document whether it is for validation. Small, and can be pickled."""

    @property
    def keeps_blank(self) -> bool:
        """Whether blank documents count like others: then they are parts of one that is not blank."""
        ...

    def point(self, document: Document) -> float:
        """Where its text places a document, from 0 to 1, if that decides."""
        ...

    def validation(
        self, numbers: Int[np.ndarray, " documents"], points: Float[np.ndarray, " documents"]
    ) -> Bool[np.ndarray, " documents"]:
        """For documents by their numbers in the corpus (from 0, blank ones counted) and their points."""
        ...


@dataclass(frozen=True)
class Only:
    """All for the same split."""

    split: Literal["train", "val"]
    keeps_blank: bool = False

    def point(self, document: Document) -> float:
        return 0.0

    def validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return np.full(len(numbers), self.split == "val")


@dataclass(frozen=True)
class ByHash:
    """A fraction, by the SHA-256 of the text."""

    fraction: float
    keeps_blank: bool = False

    def point(self, document: Document) -> float:
        return int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64

    def validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return points < self.fraction


@dataclass(frozen=True)
class Drawn:
    """K of N documents, drawn by a seed; of further ones none."""

    chosen: int
    total: int
    seed: int
    keeps_blank: bool = False

    def point(self, document: Document) -> float:
        return 0.0

    def validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return _drawn(self.chosen, self.total, self.seed)[np.minimum(numbers, self.total)]


@functools.lru_cache(maxsize=1)
def _drawn(chosen: int, total: int, seed: int) -> np.ndarray:
    """Of each number whether it is drawn, and at the end that those beyond are not."""
    drawn = np.zeros(total + 1, bool)
    drawn[np.random.default_rng(seed).permutation(total)[:chosen]] = True
    return drawn


Ruled = tuple[Rule, Chunk]


def side_of(rule: Rule, number: int, document: Document) -> str:
    """The split of a single document."""
    of_validation = rule.validation(np.array([number]), np.array([rule.point(document)]))
    return "val" if of_validation[0] else "train"
