"""A baseline: the loss of a model that knows only the previous token. A GPT must be clearly better."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Integer

from gptjax.core.errors import UserError
from gptjax.core.lazy import LazyModule
from gptjax.evaluators.evaluator import EvalContext, Metrics, OpenEvaluator

if TYPE_CHECKING:
    from gptjax.model import gpt
else:
    gpt = LazyModule("gptjax.model.gpt")  # imports flax

TokenIds = Integer[np.ndarray, " _"]


@dataclass(frozen=True)
class BigramBaseline:
    """Loss of a bigram, fitted on the training split, on the whole validation split: a baseline for the model."""

    metrics: ClassVar[tuple[str, ...]] = ()  # none of the model

    def should_run(self, step: int, *, steps: int) -> bool:
        return step == 0

    def check(self, context: EvalContext) -> None:
        _ = context.validation

    def open(self, context: EvalContext) -> OpenEvaluator:
        train, validation, tokenizer = context.data.open_stream("train"), context.validation, context.tokenizer
        if train is None:
            raise UserError(f"evaluators: {type(context.data).__name__} has no single training text for a bigram.")

        def evaluate(model: "gpt.GPT") -> Metrics:
            ids = validation.read(0, len(validation))
            vocab_size = max(context.model_config.resolved_vocab_size, int(ids.max()) + 1)
            nats, constant = bigram_loss(train.read(0, len(train)), ids, vocab_size=vocab_size)
            values: Metrics = {"bigram_loss": nats, "bigram_constant": constant}
            if tokenizer is None:
                return values
            text_bytes = int(tokenizer.bytes_per_token[ids[1:]].sum(dtype=np.int64))
            return values | {"bigram_bpb": nats * (len(ids) - 1) / math.log(2) / text_bytes}

        return evaluate


class BigramCounts(NamedTuple):
    """How often tokens and pairs occur in a text."""

    unigrams: np.ndarray
    """By token: occurrences."""
    followed: np.ndarray
    """By token: occurrences that have a successor."""
    pairs: np.ndarray
    """The codes of the pairs that occur, ascending (see `_encode_pairs`)."""
    pair_counts: np.ndarray
    """By index in `pairs`: occurrences."""


def bigram_loss(train: TokenIds, validation: TokenIds, *, vocab_size: int) -> tuple[float, float]:
    """Fit a bigram, interpolated with unigrams, on `train`; return (nats per token on `validation`, K).

    p(b | a) = (c(a, b) + K p(b)) / (c(a) + K), where c(a) sums c(a, b) over b, and p(b) is from counts plus one.
    K is tuned on the last twentieth of `train`, with counts of the rest.
    """
    cut = len(train) - max(2, len(train) // 20)
    fitted = _count_tokens(train[:cut], vocab_size)
    candidates = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)
    constant = min(candidates, key=lambda k: _mean_loss(fitted, train[cut:], k))
    return _mean_loss(_count_tokens(train, vocab_size), validation, constant), float(constant)


def _encode_pairs(tokens: TokenIds, vocab_size: int) -> np.ndarray:
    """One number for each pair of adjacent tokens."""
    return tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]


def _count_tokens(tokens: TokenIds, vocab_size: int) -> BigramCounts:
    pairs, counts = np.unique(_encode_pairs(tokens, vocab_size), return_counts=True)
    unigrams, followed = (np.bincount(ids, minlength=vocab_size) for ids in (tokens, tokens[:-1]))
    return BigramCounts(unigrams, followed, pairs, counts)


def _mean_loss(counts: BigramCounts, tokens: TokenIds, constant: int) -> float:
    """Mean −log p over the tokens of a text after its first."""
    vocab_size = len(counts.unigrams)
    codes = _encode_pairs(tokens, vocab_size)
    indices = np.minimum(np.searchsorted(counts.pairs, codes), len(counts.pairs) - 1)
    pair_counts = np.where(counts.pairs[indices] == codes, counts.pair_counts[indices], 0)
    unigram = (counts.unigrams[tokens[1:]] + 1) / (counts.unigrams.sum() + vocab_size)
    probabilities = (pair_counts + constant * unigram) / (counts.followed[tokens[:-1]] + constant)
    return float(-np.log(probabilities).mean())
