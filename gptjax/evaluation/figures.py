"""Figures of a scored text, each with an interval: nats per token, perplexities, bits per byte.

Each figure is a quotient of two sums over documents. The interval draws documents anew, with replacement, and takes the
middle 95 % of the quotients (percentile bootstrap). Two models that are drawn with the same documents can be compared
far more closely than their own intervals suggest.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class DocumentSums:
    """Sums over each document's scored tokens. All arrays have one entry for each document."""

    nats: Float64[np.ndarray, " documents"]
    weighted_nats: Float64[np.ndarray, " documents"]
    """The same with the weights of windows, for figures per token."""
    tokens: Float64[np.ndarray, " documents"]
    """Weights of the scored tokens: 1, but for protocols with weights."""
    scored: Float64[np.ndarray, " documents"]
    """Scored tokens."""
    bytes: Float64[np.ndarray, " documents"]
    """Bytes of UTF-8 behind the scored tokens; special tokens have none."""
    words: Float64[np.ndarray, " documents"]
    """Words of the original text."""
    unit: str = "documents"
    """What is drawn for an interval: documents, or parts of a single one."""
    keys: Sequence[Hashable] | None = None
    """What tells each document, or part of one, from others: made of its text. None: its place does."""

    def take(self, rows: Int[np.ndarray, " rows"]) -> "DocumentSums":
        """The sums of some documents."""
        arrays = ("nats", "weighted_nats", "tokens", "scored", "bytes", "words")
        taken = {name: getattr(self, name)[rows] for name in arrays}
        return replace(self, **taken, keys=None if self.keys is None else [self.keys[row] for row in rows.tolist()])


@dataclass(frozen=True)
class Figure:
    """A figure with the ends of its interval. They are NaN where there is only one document."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.4f}"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def compute_figures(sums: DocumentSums, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Figure]:
    """`nats_per_token`, `token_perplexity`, `word_perplexity` and `bits_per_byte`, as far as their units are known."""
    quotients = compute_quotients(sums, draws=draws, seed=seed)
    return {name: Figure(float(values[0]), *find_interval(values[1:])) for name, values in quotients.items()}


def compare_figures(
    sums: DocumentSums, baseline: DocumentSums, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Figure]:
    """Differences of the figures from a baseline's, paired: every draw takes the same documents of both.

    Both are sums over the same documents, in the same order.
    """
    own = compute_quotients(sums, draws=draws, seed=seed)
    others = compute_quotients(baseline, draws=draws, seed=seed)
    with np.errstate(invalid="ignore"):  # perplexities of a draw may both be infinite
        differences = {name: own[name] - others[name] for name in own if name in others}
    return {name: Figure(float(values[0]), *find_interval(values[1:])) for name, values in differences.items()}


def pair_documents(sums: DocumentSums, baseline: DocumentSums) -> tuple[DocumentSums, DocumentSums] | str:
    """The sums of the documents that both have, in one order; or why there are none."""
    if sums.unit != baseline.unit:
        return f"one has {sums.unit}, the other {baseline.unit}"
    left, right = (range(len(x.nats)) if x.keys is None else x.keys for x in (sums, baseline))
    places = {key: place for place, key in enumerate(right)}
    own = [place for place, key in enumerate(left) if key in places]
    if not own:
        return "no document was scored with both"
    return sums.take(np.array(own)), baseline.take(np.array([places[left[place]] for place in own]))


def compute_quotients(sums: DocumentSums, *, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Each figure of all documents, and then of each draw."""
    arrays = np.stack([sums.nats, sums.weighted_nats, sums.tokens, sums.bytes, sums.words], axis=1)
    totals = np.concatenate([arrays.sum(axis=0, keepdims=True), draw_totals(arrays, draws=draws, seed=seed)])
    nats, weighted, tokens, text_bytes, words = totals.T
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        found = {"nats_per_token": weighted / tokens, "token_perplexity": np.exp(weighted / tokens)}
        if sums.words.sum() > 0:
            found["word_perplexity"] = np.exp(nats / words)
        if sums.bytes.sum() > 0:
            found["bits_per_byte"] = nats / text_bytes / math.log(2)
    return found


def draw_totals(
    arrays: Float64[np.ndarray, "documents sums"], *, draws: int, seed: int
) -> Float64[np.ndarray, "draws sums"]:
    """Sums over documents that are drawn with replacement. Without a second document nothing is drawn."""
    documents = len(arrays)
    if documents < 2:
        return np.zeros((0, arrays.shape[1]))
    random, share = np.random.default_rng(seed), np.full(documents, 1 / documents)
    at_once = max(1, 4_000_000 // documents)
    sizes = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    return np.concatenate([random.multinomial(documents, share, size=size) @ arrays for size in sizes])


@dataclass(frozen=True)
class ItemScores:
    """A task's items as pairs, whose sums give its metric."""

    pairs: Float64[np.ndarray, "items 2"]
    """Score and weight of each item."""
    transform: str
    """`mean`: Σ scores / Σ weights; `perplexity`: exp(-mean); `bits`: -mean / ln 2."""

    @property
    def value(self) -> float:
        """The metric of all items."""
        return float(self.compute(self.pairs.sum(axis=0, keepdims=True))[0])

    def compute(self, totals: Float64[np.ndarray, "draws 2"]) -> Float64[np.ndarray, " draws"]:
        """The metric of sums of pairs."""
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            quotient = totals[..., 0] / totals[..., 1]
            return {"mean": quotient, "perplexity": np.exp(-quotient), "bits": -quotient / math.log(2)}[self.transform]


def item_figure(scores: ItemScores, baseline: ItemScores | None = None) -> Figure:
    """A task's metric, or its paired difference from a baseline's, with its interval over items."""
    value, values = scores.value, scores.compute(draw_totals(scores.pairs, draws=DRAWS, seed=0))
    if baseline is not None:
        others = baseline.compute(draw_totals(baseline.pairs, draws=DRAWS, seed=0))
        with np.errstate(invalid="ignore"):
            value, values = value - baseline.value, values - others
    return Figure(value, *find_interval(values))


def compare_means(scores: Sequence[ItemScores], baseline: Sequence[ItemScores], *, weights: Sequence[float]) -> Figure:
    """The mean over tasks of their differences from a baseline's times `weights`. Each task's items are drawn anew."""
    values, draws = [], []
    for seed, (own, other, weight) in enumerate(zip(scores, baseline, weights, strict=True)):
        drawn = [s.compute(draw_totals(s.pairs, draws=DRAWS, seed=seed)) for s in (own, other)]
        values.append(weight * (own.value - other.value))
        change = drawn[0] - drawn[1] if len(own.pairs) > 1 else np.zeros(1) + own.value - other.value
        draws.append(weight * np.broadcast_to(change, DRAWS))
    return Figure(float(np.mean(values)), *find_interval(np.mean(draws, axis=0)))


def find_interval(values: np.ndarray) -> tuple[float, float]:
    """The interval of drawn values, those that are finite."""
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
