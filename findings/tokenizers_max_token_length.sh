#!/usr/bin/env bash
# `max_token_length` of tokenizers' BpeTrainer allows one character less than it says, and 1 allows 2.
#
# The documentation says that no tokens longer than the number are made. A merge that reaches exactly the number is
# never made, except for the merges of two single characters, which are made whatever the number is. `expected` counts
# the merges by the definition of BPE, with tokens of the number itself allowed.
#
# Versions: Python 3.11 or newer, tokenizers 0.23.3. Seen:
#     max_token_length    1: longest token  2, tokens   54; expected  1 and    8
#     max_token_length    2: longest token  2, tokens   54; expected  2 and   54
#     max_token_length    3: longest token  2, tokens   54; expected  3 and  115
#     max_token_length    4: longest token  3, tokens  115; expected  4 and  155
#     max_token_length    6: longest token  5, tokens  183; expected  6 and  207
#     max_token_length    8: longest token  7, tokens  223; expected  8 and  229
#     max_token_length None: longest token 12, tokens  275; expected 12 and  275
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "tokenizers==0.23.3"
cat > "$work/try.py" <<'PY'
import random
from collections import Counter

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer

VOCAB = 10_000  # more than there is to merge
choose = random.Random(0).choices
WORDS = ["".join(choose("abcdefgh", k=12)) for _ in range(40)]


def train(limit):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = WhitespaceSplit()
    options = {} if limit is None else {"max_token_length": limit}
    tokenizer.train_from_iterator(WORDS, BpeTrainer(vocab_size=VOCAB, show_progress=False, **options))
    return set(tokenizer.get_vocab())


def merge(pieces, pair):
    found, i = [], 0
    while i < len(pieces):
        count = 2 if tuple(pieces[i : i + 2]) == pair else 1
        found.append("".join(pieces[i : i + count]))
        i += count
    return found


def merge_all(limit):
    """Plain BPE: the most frequent pair whose token is no longer than the limit, until there is none."""
    words, vocab, order = [list(word) for word in WORDS], {}, {}
    for token in sorted(set("".join(WORDS))):
        order[token] = vocab[token] = len(vocab)
    while True:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        allowed = [pair for pair in pairs if limit is None or len("".join(pair)) <= limit]
        if not allowed:
            return set(vocab)
        best = max(allowed, key=lambda pair: (pairs[pair], -order[pair[0]], -order[pair[1]]))
        order.setdefault("".join(best), len(order))
        vocab.setdefault("".join(best), len(vocab))
        words = [merge(word, best) for word in words]


wrong = []
for limit in (1, 2, 3, 4, 6, 8, None):
    found, expected = train(limit), merge_all(limit)
    longest = [max(map(len, tokens)) for tokens in (found, expected)]
    wrong.append(longest[0] - longest[1])
    numbers = f"longest token {longest[0]:2}, tokens {len(found):4}; expected {longest[1]:2} and {len(expected):4}"
    print(f"max_token_length {limit or 'None':>4}: {numbers}")
assert wrong == [1, 0, -1, -1, -1, -1, 0], "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
