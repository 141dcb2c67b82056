"""A yardstick: what a model that knows only the previous token would score. A GPT must beat it clearly."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

Tokens = Integer[np.ndarray, " _"]


class Counts(NamedTuple):
    """How often each token was seen, how often it had a successor, and how often each pair of neighbours was seen."""

    unigrams: np.ndarray
    followed: np.ndarray
    pairs: np.ndarray
    pair_counts: np.ndarray


def bigram_loss(train: Tokens, validation: Tokens, *, vocab_size: int) -> tuple[float, float]:
    """(nats per token on `validation`, K) of a bigram interpolated with unigrams, fitted on all of `train`.

    p(b | a) = (c(a, b) + K p(b)) / (c(a) + K), where c(a) sums c(a, b) over b, and p(b) is from counts plus one.
    K is tuned on the last twentieth of `train`, with counts of the rest.
    """
    cut = len(train) - max(2, len(train) // 20)
    fitted = _count(train[:cut], vocab_size)
    candidates = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)
    constant = min(candidates, key=lambda k: _nats(fitted, train[cut:], k))
    return _nats(_count(train, vocab_size), validation, constant), float(constant)


def _codes(tokens: Tokens, vocab_size: int) -> np.ndarray:
    return tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]


def _count(tokens: Tokens, vocab_size: int) -> Counts:
    pairs, counts = np.unique(_codes(tokens, vocab_size), return_counts=True)
    unigrams, followed = (np.bincount(ids, minlength=vocab_size) for ids in (tokens, tokens[:-1]))
    return Counts(unigrams, followed, pairs, counts)


def _nats(counts: Counts, tokens: Tokens, constant: int) -> float:
    """Mean −log p over the tokens of a text after its first."""
    vocab_size = len(counts.unigrams)
    codes = _codes(tokens, vocab_size)
    found = np.minimum(np.searchsorted(counts.pairs, codes), len(counts.pairs) - 1)
    together = np.where(counts.pairs[found] == codes, counts.pair_counts[found], 0)
    alone = (counts.unigrams[tokens[1:]] + 1) / (counts.unigrams.sum() + vocab_size)
    probabilities = (together + constant * alone) / (counts.followed[tokens[:-1]] + constant)
    return float(-np.log(probabilities).mean())
