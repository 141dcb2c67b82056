#!/usr/bin/env bash
# webdataset shuffles the shards alike in every epoch of a run: `shardshuffle` draws one order, with a seed or without.
#
# A new generator is made from the same seed whenever the data set is iterated. So rows of the same shards follow each
# other in every epoch, also where a buffer mixes them behind. Only `detshuffle=True` draws an order for each epoch.
#
# Versions: Python 3.11 or newer, webdataset 1.0.2. Seen (the orders without a seed differ from run to run):
#     shardshuffle=100:                          1 order in 6 epochs, such as 0 4 1 3 2 5
#     shardshuffle=100, seed=1:                  1 order in 6 epochs, such as 1 4 0 5 3 2
#     shardshuffle=100, seed=1, detshuffle=True: 6 orders in 6 epochs, such as 1 4 0 5 3 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "webdataset==1.0.2"
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import webdataset

SHARDS, EPOCHS = 6, 6
paths = [str(Path(sys.argv[1]) / f"{shard}.tar") for shard in range(SHARDS)]
for shard, path in enumerate(paths):
    with webdataset.TarWriter(path) as writer:
        writer.write({"__key__": f"{shard}", "txt": f"{shard}"})
counts = []
for options in ({}, {"seed": 1}, {"seed": 1, "detshuffle": True}):
    rows = webdataset.WebDataset(paths, shardshuffle=100, **options).decode().to_tuple("txt")
    orders = [" ".join(text for (text,) in rows) for _ in range(EPOCHS)]
    assert all(sorted(order.split()) == sorted(map(str, range(SHARDS))) for order in orders)
    counts.append(len(set(orders)))
    name = ", ".join(["shardshuffle=100", *(f"{key}={value}" for key, value in options.items())])
    print(f"{name + ':':42} {counts[-1]} order{'s' * (counts[-1] > 1)} in {EPOCHS} epochs, such as {orders[0]}")
assert counts[:2] == [1, 1] and counts[2] > 2, "the behaviour has changed"
PY
mkdir "$work/data"
"$work/venv/bin/python" "$work/try.py" "$work/data" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
