#!/usr/bin/env bash
# grain: a state of `InterleaveIterDataset` can be restored once; a second time it leaves out rows and repeats others.
#
# A run keeps the state of a good step in memory, to go back there when the loss diverges. The iterator takes the list
# of its open sources from the state without a copy, and writes into it while it reads on. Going back to that state once
# more opens sources that come later: some rows are never read, others twice, and the count of rows is right. Other
# transformations, such as a shuffle in windows, can go back any number of times. So can this one from a deep copy.
#
# Versions: Python 3.11 or newer, grain 0.2.18. Seen (eight files of three rows, two open at a time):
#     interleave, back to row 3: rows left out [], read twice []
#     interleave, back to row 3 again: rows left out [12, 21, 22], read twice [72, 81, 82]
#     interleave of a copied state, back to row 3: rows left out [], read twice []
#     interleave of a copied state, back to row 3 again: rows left out [], read twice []
#     shuffle, back to row 3: rows left out [], read twice []
#     shuffle, back to row 3 again: rows left out [], read twice []
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "grain==0.2.18"
cat > "$work/try.py" <<'PY'
import copy

import grain
import numpy as np
from grain.experimental import InterleaveIterDataset, WindowShuffleIterDataset

ROWS = 3
FILES = [grain.MapDataset.source(np.arange(10 * file, 10 * file + 3)).to_iter_dataset() for file in range(1, 9)]


def interleave():
    return InterleaveIterDataset(FILES, cycle_length=2)


def shuffle():
    return WindowShuffleIterDataset(grain.MapDataset.source(np.arange(24)).to_iter_dataset(), window_size=5, seed=1)


def go_back(make, copied):
    """Rows of a run that reads on, goes back to its fourth row and reads on, and does that once more."""
    rows = iter(make())
    first = [int(next(rows)) for _ in range(ROWS)]
    state = rows.get_state()
    attempts = [first + [int(row) for row in rows]]
    for _ in range(2):
        rows.set_state(copy.deepcopy(state) if copied else state)
        attempts.append(first + [int(row) for row in rows])
    return attempts


found = []
for make, copied in ((interleave, False), (interleave, True), (shuffle, False)):
    whole, *attempts = go_back(make, copied)
    for attempt, again in zip(attempts, ("", " again"), strict=True):
        left_out = sorted(set(whole) - set(attempt))
        twice = sorted({row for row in attempt if attempt.count(row) > 1})
        found.append(attempt == whole)
        name = f"{make.__name__}{' of a copied state' if copied else ''}, back to row {ROWS}{again}"
        print(f"{name}: rows left out {left_out}, read twice {twice}")
assert found == [True, False, True, True, True, True], "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
