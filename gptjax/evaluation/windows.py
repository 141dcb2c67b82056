"""Windows: which tokens a model reads together, and which of them are scored.

Every protocol is a list of windows. All figures follow from the log-probabilities of their scored tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from gptjax.core.errors import UserError

Ids = Int[np.ndarray, " _"]


class EvalWindow(NamedTuple):
    """Tokens that a model reads in one row. It reads all but the last, and predicts all but the first."""

    tokens: Ids
    scored: int
    """How many of the last predictions count."""
    begins: Bool[np.ndarray, " _"] | None = None
    """For each token that is read whether it begins a document, for models whose attention stays inside documents.
    None: all tokens are of one document."""

    @property
    def inputs(self) -> Ids:
        return self.tokens[:-1]

    @property
    def targets(self) -> Ids:
        """The scored tokens."""
        return self.tokens[len(self.tokens) - self.scored :]


def strided_windows(tokens: Ids, length: int, *, stride: int) -> Iterator[EvalWindow]:
    """Windows of at most `length` tokens, `stride` apart; each scores the tokens that no earlier one has seen.

    A stride of `length - 1` puts them side by side: each begins with the last token of the one before, so all tokens
    but the very first are scored once. A shorter one is the sliding window of transformers' page on perplexity, where a
    token that opens a row is never predicted. The last window ends with the text, and may be shorter.

    Raises:
        UserError: the stride is not between 1 and `length`.
    """
    if not 1 <= stride <= length:
        raise UserError(f"stride is {stride}; it lies between 1 and the window of {length} tokens.")
    seen = 0
    for start in range(0, len(tokens), stride):
        end = min(start + length, len(tokens))
        scored = min(end - seen, end - start - 1)
        if scored > 0:
            yield EvalWindow(tokens[start:end], scored)
        seen = end
        if end == len(tokens):
            return


def rolling_windows(tokens: Ids, length: int) -> Iterator[EvalWindow]:
    """The windows of lm-evaluation-harness (`get_rolling_token_windows`, context 1): all but the first are scored once.

    A window reads at most `length` tokens. Each begins with the last token of the one before. The last is moved back to
    end with the text, and so sees all that fits before its first scored token.
    """
    for start in range(1, len(tokens), length):
        end = min(start + length, len(tokens))
        yield EvalWindow(tokens[max(0, end - length - 1) : end], end - start)
