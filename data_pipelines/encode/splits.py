"""The corpus of a request: documents, each for training or for validation.

A rule decides by the number of a document in the corpus, which the main process knows, and by its point, which the
process that reads the document computes from the text.
"""

import contextlib
import functools
import hashlib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_pipelines.readers import documents as docs
from data_pipelines.readers.documents import EMPTY, Chunk, Document, ReadContext, Source, is_blank
from data_pipelines.runtime.split_specs import DEFAULT_SPLIT, INSTEAD
from gptjax.core.errors import UserError, count_of

Split = Literal["train", "val"]
MIN_TAIL = 0.1
SMALL_BYTES, MANY = 2**23, 100
"""Of a source of fewer bytes and at least so many documents, the default split keeps more for validation."""
ENOUGH = 10
"""Examples for validation above which a widened hash is not larger than the one asked for."""


class SplitRule(ABC):
    """Decides the split of each document. It is small and can be pickled."""

    def point(self, document: Document) -> float:
        """A number from 0 to 1 that the text decides; 0 for rules that need none."""
        return 0.0

    @abstractmethod
    def is_validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        """For documents by their numbers in the corpus (from 0, empty ones counted) and their points."""

    def choose_split(self, document: Document, number: int = 0) -> Split:
        """The split of a single document."""
        return "val" if self.is_validation(np.array([number]), np.array([self.point(document)]))[0] else "train"


@dataclass(frozen=True)
class AllTo(SplitRule):
    """All documents to one split."""

    split: Split

    def is_validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return np.full(len(numbers), self.split == "val")


@dataclass(frozen=True)
class HashFraction(SplitRule):
    """A fraction of the documents, by the SHA-256 of the text."""

    fraction: float

    def point(self, document: Document) -> float:
        return int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64

    def is_validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return points < self.fraction

    def choose_split(self, document: Document, number: int = 0) -> Split:
        return "val" if self.point(document) < self.fraction else "train"  # a fifth of the time of arrays of one

    def widen(self, points: Iterable[float]) -> "HashFraction | None":
        """The rule for a source whose `points` it would all put on one side: its part of them.

        Of few points that is a tenth, but not more than `ENOUGH`. Equal points stay together. None where both sides
        have some, of which no more are read, and for a single point.
        """
        found, sides = set[float](), set[bool]()
        for point in points:
            found.add(point)
            sides.add(point < self.fraction)
            if len(sides) > 1:
                return None
        ordered = sorted(found)
        if len(ordered) < 2:
            return None
        wanted = max(1, min(round(MIN_TAIL * len(ordered)), ENOUGH), round(self.fraction * len(ordered)))
        count = min(wanted, len(ordered) - 1)
        last, behind = ordered[count - 1 : count + 1]
        shorter = (float(f"{(last + behind) / 2:.{digits}g}") for digits in range(1, 17))
        return HashFraction(next((number for number in shorter if last < number <= behind), behind))


@dataclass(frozen=True)
class RandomSample(SplitRule):
    """`chosen` of the first `total` documents, drawn by a seed as Hugging Face's `train_test_split` draws them."""

    chosen: int
    total: int
    seed: int

    def is_validation(self, numbers: np.ndarray, points: np.ndarray) -> np.ndarray:
        return _draw(self.chosen, self.total, self.seed)[np.minimum(numbers, self.total)]


@functools.lru_cache(maxsize=1)
def _draw(chosen: int, total: int, seed: int) -> np.ndarray:
    drawn = np.zeros(total + 1, bool)  # the last entry stands for all numbers from `total` on
    drawn[np.random.default_rng(seed).permutation(total)[:chosen]] = True
    return drawn


@dataclass(frozen=True)
class Tail:
    """The last fraction of all characters; no rule, because it depends on the length of the whole source."""

    fraction: float

    def iter_chunks(self, source: Source, context: ReadContext) -> Iterator[tuple[SplitRule, Document]]:
        """Yield the documents that are not blank, in order, each with the rule of its split; one may be cut in two."""
        texts = _iter_nonblank(source, context.fresh_copy())
        lengths = [sum(map(len, docs.iter_text(document))) for document in texts]
        left = int(sum(lengths) * (1 - self.fraction))  # characters for training
        for document, length in zip(_iter_nonblank(source, context), lengths, strict=False):
            if 0 < left < length:
                cut = len(str(document, "utf-8")[:left].encode())
                parts: tuple[tuple[Split, Document], ...] = (("train", document[:cut]), ("val", document[cut:]))
                yield from ((AllTo(split), part) for split, part in parts if not is_blank(part))
            else:
                yield AllTo("train" if left > 0 else "val"), document
            left -= length


def parse_split(spec: str) -> SplitRule | Tail:
    """`hash:F`, `tail:F`, `random:K/N/SEED` or `none`, as docs/data.md explains; other specs raise `UserError`."""
    if spec == "none":
        return AllTo("train")
    if found := re.fullmatch(r"random:(\d+)/(\d+)/(\d+)", spec):
        sample = RandomSample(*map(int, found.groups()))
        if 0 < sample.chosen < sample.total:
            return sample
    kind, _, number = spec.partition(":")
    with contextlib.suppress(ValueError):
        if kind in ("hash", "tail") and 0 < (fraction := float(number)) < 1:
            return HashFraction(fraction) if kind == "hash" else Tail(fraction)
    part = _read_part(spec)
    meant = f" Write hash:{part:g} for that part of the documents." if 0 < part < 1 else ""
    forms = "hash:F or tail:F with F between 0 and 1, random:K/N/SEED (K < N) or none"
    raise UserError(f"split {spec!r}: wanted {forms}.{meant}")


def _read_part(spec: str) -> float:
    """The part for validation of `0.1`, of `90/10`, or of Megatron-LM's `969,30,1`; 0 for what is none of these."""
    with contextlib.suppress(ValueError, ZeroDivisionError):
        numbers = [float(number) for number in re.split(r"[/,]", spec)]
        return round(numbers[1] / sum(numbers), 4) if len(numbers) > 1 else numbers[0]
    return 0.0


@dataclass(frozen=True)
class Corpus:
    """A source and the spec of its split; or, with `validation`, two sources, one for each split."""

    source: Source
    split: str
    validation: Source | None = None

    def __post_init__(self) -> None:
        parse_split(self.split)

    def iter_chunks(self, context: ReadContext) -> Iterator[tuple[SplitRule, Chunk]]:
        """Yield documents, or blocks of them, each with the rule that splits its documents."""
        rule = parse_split(self.split)
        if isinstance(rule, HashFraction) and (few := _count_if_one_sided(self.source, rule, context)):
            rule = Tail(max(rule.fraction, MIN_TAIL))
            context.notes[f"documents, too few for {self.split}: {INSTEAD.format(f'tail:{rule.fraction}')}"] += few
        if isinstance(rule, Tail):
            yield from rule.iter_chunks(self.source, context)
        else:
            yield from ((rule, chunk) for chunk in self.source.chunks(context))
        if self.validation is not None:
            yield from ((AllTo("val"), chunk) for chunk in self.validation.chunks(context))

    def iter_split_documents(self, context: ReadContext) -> Iterator[tuple[Split, Document]]:
        """Read all documents in this process and yield each that is not blank with its split."""
        number = 0
        for rule, chunk in self.iter_chunks(context):
            for document in docs.iter_documents([chunk], context):
                if is_blank(document):
                    context.notes[EMPTY] += 1
                else:
                    yield rule.choose_split(document, number), document
                number += 1
        self.check_count(number)

    def iter_to_learn(self, context: ReadContext, *, spec: str) -> Iterator[tuple[Split, Document]]:
        """The same for a tokenizer that learns from them.

        Raises `UserError` for a source (`spec`) without text, of which a tokenizer would only say that it is short.
        """
        documents = self.iter_split_documents(context)
        if (first := next(documents, None)) is None:
            raise UserError(f"source {spec}: holds no text. {'; '.join(context.notes.lines())}".strip())
        return itertools.chain([first], documents)

    def check_count(self, documents: int) -> None:
        """Raise `UserError` unless the source had the number of documents from which `random` draws."""
        sample = parse_split(self.split)
        if isinstance(sample, RandomSample) and documents != sample.total:
            found = f"{self.source.name} has {count_of(documents, 'documents')}, not {sample.total:,}"
            raise UserError(f"split {self.split}: {found}. Use random:{sample.chosen}/{documents}/{sample.seed}.")

    def identity(self) -> dict[str, Any]:
        """JSON that distinguishes this text, split this way, from any other."""
        if self.validation is None:
            return self.source.identity() | {"split": self.split}
        return self.source.identity() | {"validation": self.validation.identity()}


def choose_default_split(source: Source, context: ReadContext, *, size: int) -> str:
    """The spec of the split of a source for which none is given; `size` is that of its files, 0 if it is not known.

    Of a small source with many documents a tenth is for validation. It is read for that.
    """
    if not 0 < size < SMALL_BYTES:
        return DEFAULT_SPLIT
    rule, number, sizes = HashFraction(MIN_TAIL), 0, {"train": 0, "val": 0}
    with contextlib.suppress(UserError):  # what is wrong with a source is told where it is encoded
        for document in _iter_nonblank(source, context.fresh_copy()):
            sizes[rule.choose_split(document)] += len(document)
            number += 1
    part = sizes["val"] / max(1, sum(sizes.values()))
    is_even = number >= MANY and MIN_TAIL / 2 < part < 2 * MIN_TAIL  # a long document may be most of the text
    return f"hash:{MIN_TAIL}" if is_even else DEFAULT_SPLIT


def _count_if_one_sided(source: Source, rule: SplitRule, context: ReadContext) -> int:
    """Count the documents if all are for the same split, else return 0; usually few are read."""
    splits = list[Split]()
    for document in _iter_nonblank(source, context.fresh_copy()):
        splits.append(rule.choose_split(document))
        if splits[0] != splits[-1]:
            return 0
    return len(splits)


def _iter_nonblank(source: Source, context: ReadContext) -> Iterator[Document]:
    for document in docs.iter_documents(source.chunks(context), context):
        if is_blank(document):
            context.notes[EMPTY] += 1
        else:
            yield document
