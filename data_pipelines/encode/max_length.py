"""Splits long documents into several, each of at most so many tokens; no text is dropped.

Each begins with the end-of-text id if the tokenizer has one, like any document.
"""

import numpy as np


def limit_documents(
    tokens: np.ndarray, starts: np.ndarray, *, limit: int, end_of_text: int | None, unfinished: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and starts of documents, none longer than `limit` tokens with its end-of-text id.

    `starts` (ascending) are the indices in `tokens` at which documents begin. The tokens before the first continue a
    document of which `unfinished` tokens came earlier. The result does not depend on how a stream is cut into calls.
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
        return tokens, starts
    cuts = np.concatenate(places)
    if end_of_text is not None:
        tokens = np.insert(tokens, cuts, end_of_text)
    new = cuts + inserted * np.arange(len(cuts))
    old = starts + inserted * np.searchsorted(cuts, starts)
    return tokens, np.sort(np.concatenate([new, old]))
