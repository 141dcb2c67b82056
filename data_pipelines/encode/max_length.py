"""No document longer than so many tokens: what is longer continues as further documents.

The one idea: nothing is dropped. A longer document becomes several, each of at most `limit` tokens, and each begins
with the end-of-text id where the tokenizer has one, so that all of them look alike to whoever reads by documents.
"""

from typing import NamedTuple

import numpy as np


class Limited(NamedTuple):
    """Tokens of one split, and which of them begin documents."""

    tokens: np.ndarray
    starts: np.ndarray


def limit_documents(
    tokens: np.ndarray, starts: np.ndarray, *, limit: int, end_of_text: int | None, unfinished: int
) -> Limited:
    """Cut documents that would pass `limit` tokens, counting the end-of-text id.

    `starts` (ascending) are the places in `tokens` at which documents begin; what stands before the first continues a
    document of which `unfinished` tokens were seen earlier. The result does not depend on how a stream is divided
    over calls.
    """
    begins = np.concatenate([[0], starts])
    ends = np.concatenate([starts, [len(tokens)]])
    earlier = np.zeros(len(begins), np.int64)
    earlier[0] = unfinished
    inserted = 0 if end_of_text is None else 1
    places = [
        np.arange(begins[i] + limit - earlier[i], ends[i], limit - inserted)
        for i in np.flatnonzero(ends - begins + earlier > limit)
    ]
    if not places:
        return Limited(tokens, starts)
    cuts = np.concatenate(places)
    if end_of_text is not None:
        tokens = np.insert(tokens, cuts, end_of_text)
    new = cuts + inserted * np.arange(len(cuts))
    old = starts + inserted * np.searchsorted(cuts, starts)
    return Limited(tokens, np.sort(np.concatenate([new, old])))
