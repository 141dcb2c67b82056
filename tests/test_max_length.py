"""Long documents become several, none longer than the limit, without a lost token."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.encode.max_length import limit_documents

END = 0


def join(documents, end_of_text):
    """A stream of documents, and where they begin."""
    before = [] if end_of_text is None else [end_of_text]
    whole = [np.array([*before, *document]) for document in documents]
    ends = np.cumsum([len(document) for document in whole])
    return np.concatenate(whole), np.array([0, *ends[:-1]])


@given(
    documents=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=30), min_size=1, max_size=8),
    limit=st.integers(2, 12),
    end_of_text=st.sampled_from([END, None]),
    calls=st.lists(st.integers(0, 250), max_size=5),
)
def test_limit_documents_cuts_the_same_in_any_calls(documents, limit, end_of_text, calls):
    room = limit - (end_of_text is not None)
    wanted = join([d[i : i + room] for d in documents for i in range(0, len(d), room)], end_of_text)
    tokens, starts = join(documents, end_of_text)
    cuts = [0, *sorted(min(call, len(tokens)) for call in calls), len(tokens)]
    made, made_starts, written, last = [], [], 0, 0
    for begin, end in pairwise(cuts):
        inside = starts[(starts >= begin) & (starts < end)] - begin
        part = limit_documents(
            tokens[begin:end], inside, limit=limit, end_of_text=end_of_text, unfinished=written - last
        )
        made.append(part[0])
        made_starts.append(part[1] + written)
        last = int(made_starts[-1][-1]) if len(part[1]) else last
        written += len(part[0])
    np.testing.assert_array_equal(np.concatenate(made), wanted[0])
    np.testing.assert_array_equal(np.concatenate(made_starts), wanted[1])


def test_limit_documents_keeps_short_ones():
    tokens, starts = np.array([0, 5, 5, 0, 7], np.uint16), np.array([0, 3])
    same = limit_documents(tokens, starts, limit=3, end_of_text=0, unfinished=0)
    assert same[0] is tokens
    assert same[1] is starts
    cut, cut_starts = limit_documents(tokens, starts, limit=2, end_of_text=0, unfinished=0)
    assert cut.tolist() == [0, 5, 0, 5, 0, 7]
    assert cut_starts.tolist() == [0, 2, 4]
    assert cut.dtype == np.uint16
