#!/usr/bin/env bash
# datasets: `set_epoch` shuffles the shards of a streamed data set on which nobody has called `shuffle`.
#
# A stream in the order of its shards, say from short texts to long ones, has that order in epoch 0 alone. In later
# epochs its shards are permuted by a generator whose seed is the number of the epoch. transformers' Trainer and
# accelerate call `set_epoch` by themselves. Version 4.5.0 keeps the order in every epoch.
#
# Versions: Python 3.11 or newer, datasets 4.5.0 and 5.2.0. Seen:
#     4.5.0, epochs 0 to 2: [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
#     5.2.0, epochs 0 to 2: [[0, 1, 2, 3, 4, 5], [4, 0, 2, 1, 5, 3], [3, 5, 2, 4, 0, 1]]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cat > "$work/try.py" <<'PY'
import sys

import datasets

ROWS = list(range(6))
stream = datasets.Dataset.from_dict({"row": ROWS}).to_iterable_dataset(num_shards=6)
orders = []
for epoch in range(3):
    stream.set_epoch(epoch)
    orders.append([row["row"] for row in stream])
print(f"{datasets.__version__}, epochs 0 to 2: {orders}")
assert all(sorted(order) == ROWS for order in orders), "the behaviour has changed"
is_kept = sys.argv[1] == "kept"
assert [order == ROWS for order in orders] == [True, is_kept, is_kept], "the behaviour has changed"
PY
for expected in "4.5.0 kept" "5.2.0 shuffled"; do
    read -r version outcome <<< "$expected"
    "$work/venv/bin/pip" install -q --disable-pip-version-check "datasets==$version"
    HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$outcome" 2> "$work/errors" ||
        { cat "$work/errors" && exit 1; }
done
