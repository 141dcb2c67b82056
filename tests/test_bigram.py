"""The bigram baseline is its formula."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from gptjax.evaluators.bigram import bigram_loss

CANDIDATES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)


def draw_text(size: int, vocab_size: int, *, seed: int) -> list[int]:
    """Tokens that often follow from the previous one, so that a bigram beats a unigram."""
    random = np.random.RandomState(seed)
    ids = [0]
    for _ in range(size - 1):
        ids.append((ids[-1] * 3 + 1) % vocab_size if random.rand() < 0.6 else random.randint(vocab_size))
    return ids


def compute_by_hand(train: Sequence[int], text: Sequence[int], *, vocab_size: int, constant: float) -> float:
    """The formula in the docstring, one token at a time."""
    pairs, unigrams, followed = Counter(itertools.pairwise(train)), Counter(train), Counter(train[:-1])
    nats = []
    for a, b in itertools.pairwise(text):
        unigram = (unigrams[b] + 1) / (len(train) + vocab_size)
        nats.append(-math.log((pairs[a, b] + constant * unigram) / (followed[a] + constant)))
    return sum(nats) / len(nats)


@pytest.mark.parametrize(("size", "vocab_size"), [(40, 5), (400, 11), (2000, 60)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_bigram_loss_matches_the_formula(size: int, vocab_size: int, dtype: type):
    """The last token of the vocabulary is not in the training text, and must still have a probability."""
    train = draw_text(size, vocab_size - 1, seed=0)
    validation = [*draw_text(100, vocab_size - 1, seed=1), vocab_size - 1]
    loss, constant = bigram_loss(np.array(train, dtype), np.array(validation, dtype), vocab_size=vocab_size)
    cut = size - max(2, size // 20)
    tuned = [compute_by_hand(train[:cut], train[cut:], vocab_size=vocab_size, constant=k) for k in CANDIDATES]
    assert constant == CANDIDATES[int(np.argmin(tuned))]
    wanted = compute_by_hand(train, validation, vocab_size=vocab_size, constant=constant)
    assert loss == pytest.approx(wanted, rel=1e-12)


def test_bigram_probabilities_sum_to_one():
    train = np.array(draw_text(300, 7, seed=0), np.uint16)
    for first in range(7):
        losses = [bigram_loss(train, np.array([first, b], np.uint16), vocab_size=7)[0] for b in range(7)]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_large_vocabularies_do_not_overflow():
    """A pair is encoded in one number, and 100,000² does not fit 32 bits."""
    train = np.array([99_999, 99_998] * 500, np.uint32)
    loss, _ = bigram_loss(train, train[:50], vocab_size=100_000)
    assert loss < 0.02
