import itertools
import math
from collections import Counter

import numpy as np
import pytest

from gptjax.training.bigram import bigram_loss

CANDIDATES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)


def draw(size, vocab_size, seed):
    """Tokens of which each leans on the one before, so that a bigram knows more than a unigram."""
    random = np.random.RandomState(seed)
    ids = [0]
    for _ in range(size - 1):
        ids.append((ids[-1] * 3 + 1) % vocab_size if random.rand() < 0.6 else random.randint(vocab_size))
    return ids


def by_hand(train, text, *, vocab_size, constant):
    """The formula of the docstring, one token at a time."""
    pairs, alone, followed = Counter(itertools.pairwise(train)), Counter(train), Counter(train[:-1])
    nats = []
    for a, b in itertools.pairwise(text):
        unigram = (alone[b] + 1) / (len(train) + vocab_size)
        nats.append(-math.log((pairs[a, b] + constant * unigram) / (followed[a] + constant)))
    return sum(nats) / len(nats)


@pytest.mark.parametrize(("size", "vocab_size"), [(40, 5), (400, 11), (2000, 60)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_it_is_the_interpolated_bigram(size, vocab_size, dtype):
    """The last token of the vocabulary is never trained on, and must still have a probability."""
    train, validation = draw(size, vocab_size - 1, 0), [*draw(100, vocab_size - 1, 1), vocab_size - 1]
    arrays = (np.array(ids, dtype) for ids in (train, validation))
    loss, constant = bigram_loss(*arrays, vocab_size=vocab_size)
    cut = size - max(2, size // 20)
    tuned = [by_hand(train[:cut], train[cut:], vocab_size=vocab_size, constant=k) for k in CANDIDATES]
    assert constant == CANDIDATES[int(np.argmin(tuned))]
    assert loss == pytest.approx(by_hand(train, validation, vocab_size=vocab_size, constant=constant), rel=1e-12)


def test_its_probabilities_sum_to_one():
    vocab_size = 7
    train = np.array(draw(300, vocab_size, 0), np.uint16)
    for before in range(vocab_size):
        losses = [bigram_loss(train, np.array([before, b], np.uint16), vocab_size=vocab_size)[0] for b in range(7)]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_large_vocabularies_do_not_overflow():
    """A pair is coded in one number: 100,000² does not fit 32 bits."""
    train = np.array([99_999, 99_998] * 500, np.uint32)
    loss, _ = bigram_loss(train, train[:50], vocab_size=100_000)
    assert loss < 0.02
